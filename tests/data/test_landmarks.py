"""Revisited Oxford/Paris and GLDv2: measures against the golden arrays and slow loops; readers."""

import csv
import io
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fct_jax.data.landmarks import (
    gldv2_path,
    gldv2_readers,
    read_gldv2,
    read_ground_truth,
    read_index,
    revisited_readers,
)
from fct_jax.errors import UserError
from fct_jax.evaluate.protocols.landmarks import map_at_k, revisited_map, revisited_per_query

LETTERS = {"easy": "E", "medium": "M", "hard": "H"}
WANTED = {"easy": ["easy"], "medium": ["easy", "hard"], "hard": ["hard"]}
REMOVED = {"easy": ["junk", "hard"], "medium": ["junk"], "hard": ["junk", "easy"]}


def slow_revisited(ranking, positives, junk, kappas):
    """Return the measures of one query, computed item by item."""
    positives, junk = set(positives), set(junk) - set(positives)
    ranking = [item for item in ranking if item not in junk]
    if not positives:
        return None, [None] * len(kappas)
    ap, hits, last = 0.0, 0, 0
    for rank, item in enumerate(ranking):
        if item in positives:
            before = hits / rank if rank else 1.0
            hits += 1
            ap += (before + hits / (rank + 1)) / 2 / len(positives)
            last = rank + 1
    depths = [min(k, last) if hits else k for k in kappas]
    return ap, [sum(i in positives for i in ranking[:depth]) / depth for depth in depths]


def slow_ap_at_k(ranking, positives, k):
    positives = set(positives)
    ap, hits = 0.0, 0
    for rank, item in enumerate(ranking[:k], start=1):
        if item != -1 and item in positives:
            hits += 1
            ap += hits / rank
    return ap / min(len(positives), k) if hits else 0.0


def test_golden_revisited(golden_advbct):
    arrays = golden_advbct.arrays("retrieval_metrics")
    golden = golden_advbct.json("retrieval_metrics")["rox"]
    ranks, truth, kappas = arrays["rox/ranks"], golden["gnd"], golden["kappas"]
    report = revisited_map(ranks, truth, kappas)
    assert set(report) == {"easy", "medium", "hard"}
    for protocol, letter in LETTERS.items():
        wanted = golden[letter]
        assert report[protocol]["map"] == pytest.approx(wanted["map"], abs=1e-9)
        precision = [report[protocol][f"mp@{k}"] for k in kappas]
        np.testing.assert_allclose(precision, wanted["mean_precision_at_k"], atol=1e-9)
        ap, per_query = revisited_per_query(
            ranks,
            [[i for kind in WANTED[protocol] for i in entry[kind]] for entry in truth],
            [[i for kind in REMOVED[protocol] for i in entry[kind]] for entry in truth],
            kappas,
        )
        np.testing.assert_allclose(ap, np.array(wanted["aps"], float), atol=1e-9)
        np.testing.assert_allclose(
            per_query, np.array(wanted["precision_at_k_per_query"], float), atol=1e-9
        )
    assert golden["returned_by_reference"] == pytest.approx(report["medium"]["map"], abs=1e-9)
    printed = [f"{100 * report[protocol]['map']:.2f}" for protocol in LETTERS]
    assert golden["log_lines"][0] == ">> mAP E: {}, M: {}, H: {}".format(*printed)


def cosine_ranks(query, gallery):
    query, gallery = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery))
    return np.argsort(-(query @ gallery.T), axis=1)


def test_golden_ranks_are_the_cosine_order(golden_advbct):
    arrays = golden_advbct.arrays("retrieval_metrics")
    ranks = cosine_ranks(arrays["rox/query_feat"], arrays["rox/gallery_feat"])
    assert np.array_equal(ranks.T, arrays["rox/ranks"])


def test_golden_gldv2(golden_advbct):
    ranks = golden_advbct.arrays("retrieval_metrics")["gldv2/ranks"]
    golden = golden_advbct.json("retrieval_metrics")["gldv2"]
    assert map_at_k(ranks, golden["gts"], golden["topk"]) == pytest.approx(golden["mAP"], abs=1e-9)
    single = [map_at_k(ranks[i : i + 1], [gt]) for i, gt in enumerate(golden["gts"])]
    np.testing.assert_allclose(single, golden["ap_per_query"], atol=1e-9)
    # With k=50 the published code still counts hits beyond 50; ours deliberately does not.
    published = [
        slow_ap_at_k(ranking, gt, len(ranking)) * min(len(gt), len(ranking)) / min(len(gt), 50)
        for ranking, gt in zip(ranks.tolist(), golden["gts"], strict=True)
    ]
    assert np.mean(published) == pytest.approx(golden["mAP_same_ranks_topk50_argument"], abs=1e-9)
    assert map_at_k(ranks, golden["gts"], 50) == map_at_k(ranks[:, :50], golden["gts"], 50)
    assert map_at_k(ranks, golden["gts"], 50) < np.mean(published)


def test_golden_padding(golden_advbct):
    """Asking for 12 of 7 items pads the ids with -1, which are never hits."""
    arrays = golden_advbct.arrays("retrieval_metrics")
    ranks = arrays["gldv2/small_ranks_topk12"]
    full = cosine_ranks(arrays["gldv2/small_query"], arrays["gldv2/small_gallery"])
    assert np.array_equal(full, ranks[:, :7])
    assert (ranks[:, 7:] == -1).all()
    positives = [[int(ranks[0, 1])], [-1], []]
    assert map_at_k(ranks, positives) == pytest.approx(0.5 / 3)


@st.composite
def revisited_cases(draw):
    gallery = draw(st.integers(1, 25))
    queries = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    truth = []
    for _ in range(queries):
        kind = rng.choice(4, gallery, p=draw(st.sampled_from([(0.2,) * 3 + (0.4,), (0, 0, 1, 0)])))
        truth.append(
            {name: np.flatnonzero(kind == i) for i, name in enumerate(("easy", "hard", "junk"))}
        )
    depth = draw(st.integers(1, gallery))
    ranks = np.stack([rng.permutation(gallery)[:depth] for _ in range(queries)], axis=1)
    return ranks, truth


@settings(deadline=None, max_examples=60)
@given(revisited_cases())
def test_revisited_equals_slow_loop(case):
    ranks, truth = case
    report = revisited_map(ranks, truth, (1, 3))
    for protocol in LETTERS:
        slow = [
            slow_revisited(
                ranks[:, q].tolist(),
                np.concatenate([entry[k] for k in WANTED[protocol]]).tolist(),
                np.concatenate([entry[k] for k in REMOVED[protocol]]).tolist(),
                (1, 3),
            )
            for q, entry in enumerate(truth)
        ]
        scored = [(ap, *precision) for ap, precision in slow if ap is not None]
        wanted = np.mean(scored, axis=0) if scored else [np.nan] * 3
        found = [report[protocol][name] for name in ("map", "mp@1", "mp@3")]
        np.testing.assert_allclose(found, wanted, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 12), st.integers(1, 15))
def test_map_at_k_equals_slow_loop(seed, queries, length, k):
    rng = np.random.default_rng(seed)
    ranked = np.stack([rng.permutation(20)[:length] for _ in range(queries)])
    ranked[rng.random(ranked.shape) < 0.2] = -1
    positives = [rng.permutation(20)[: rng.integers(0, 8)].tolist() for _ in range(queries)]
    slow = np.mean([slow_ap_at_k(r, p, k) for r, p in zip(ranked.tolist(), positives, strict=True)])
    assert map_at_k(ranked, positives, k) == pytest.approx(slow, abs=1e-12)


def test_repeated_and_string_free_positives():
    assert map_at_k([[3, 1, 2]], [[3, 3, 1]]) == 1.0
    assert map_at_k(np.full((2, 4), -1), [[0], []]) == 0.0


def test_wrong_input():
    with pytest.raises(UserError, match="ground truth is empty"):
        revisited_map(np.zeros((3, 0), int), [])
    with pytest.raises(UserError, match="2 columns"):
        revisited_map(np.zeros((3, 1), int), [{}, {}])
    with pytest.raises(UserError, match="one ranking a query"):
        map_at_k(np.zeros((2, 3), int), [[1]])
    with pytest.raises(UserError, match="k must be"):
        map_at_k(np.zeros((1, 3), int), [[1]], 0)


def write_truth(path, **changes):
    content = {
        "imlist": ["all_souls_000013", "bodleian_2", "hertford_3"],
        "qimlist": ["query_1", "query_2"],
        "gnd": [
            {"bbx": [1.6, 2.0, 6.0, 5.0], "easy": [0], "hard": np.array([2]), "junk": []},
            {"bbx": (0.0, 0.0, 8.0, 6.0), "easy": [], "hard": [], "junk": [1]},
        ],
    }
    path.write_bytes(pickle.dumps(content | changes, protocol=2))
    return path


def write_images(folder, paths):
    rng = np.random.default_rng(0)
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (6, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / path)


def test_read_ground_truth(tmp_path):
    truth = read_ground_truth(write_truth(tmp_path / "gnd_roxford5k.pkl"))
    assert truth.imlist[0] == "all_souls_000013"
    assert truth.qimlist == ["query_1", "query_2"]
    assert truth.gnd[0]["bbx"] == [1.6, 2.0, 6.0, 5.0]
    assert truth.gnd[0]["hard"].tolist() == [2]
    assert truth.gnd[1]["easy"].size == 0
    report = revisited_map(np.array([[0, 1], [1, 2], [2, 0]]), truth.gnd)
    assert report["easy"]["map"] == 1.0


def test_revisited_images(tmp_path):
    truth = read_ground_truth(write_truth(tmp_path / "gnd_roxford5k.pkl"))
    with pytest.raises(UserError, match="does not exist"):
        revisited_readers(tmp_path, truth)
    write_images(tmp_path / "jpg", [f"{name}.jpg" for name in truth.imlist + truth.qimlist[:1]])
    with pytest.raises(UserError, match=r"1 of 2 images are missing .*query_2\.jpg"):
        revisited_readers(tmp_path, truth)
    write_images(tmp_path / "jpg", ["query_2.jpg"])
    queries, gallery = revisited_readers(tmp_path, truth)
    assert (len(queries), len(gallery)) == (2, 3)
    whole = queries.read(0)
    assert whole.shape == (6, 8, 3)
    cropped, _ = revisited_readers(tmp_path, truth, query_crop=True)
    assert np.array_equal(cropped.read(0), whole[2:5, 2:6])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gnd": []}, "2 queries but 0"),
        ({"gnd": [{"easy": [], "hard": [], "junk": [0]}] * 2}, "is empty"),
        ({"gnd": [{"easy": [3], "hard": [], "junk": []}] * 2}, "must lie in 0…2"),
        ({"gnd": [{"easy": ["a"], "hard": [], "junk": []}] * 2}, "list of integers"),
        ({"gnd": [{"ok": [], "junk": []}] * 2}, "lacks one of"),
        ({"imlist": 3}, "is no ground truth"),
        ({"qimlist": [], "gnd": []}, "is empty"),
    ],
)
def test_bad_ground_truth(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        read_ground_truth(write_truth(tmp_path / "gnd.pkl", **changes))


class Hostile:
    def __reduce__(self):
        return print, ("this must not run",)


def test_hostile_ground_truth(tmp_path, capsys):
    path = write_truth(tmp_path / "gnd.pkl", imlist=Hostile())
    with pytest.raises(UserError):
        read_ground_truth(path)
    assert capsys.readouterr().out == ""
    path.write_bytes(b"not a pickle")
    with pytest.raises(UserError):
        read_ground_truth(path)
    with pytest.raises(UserError, match="cannot read"):
        read_ground_truth(tmp_path / "none.pkl")


def write_csv(path, *rows):
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    path.write_text(text.getvalue())
    return path


HEADER = ("id", "images", "Usage")


def test_read_gldv2(tmp_path):
    solution = write_csv(
        tmp_path / "retrieval_solution_v2.1.csv",
        HEADER,
        ("q0000000", "i2 i0", "Private"),
        ("q1111111", "i1", "Public"),
        ("q2222222", "None", "Ignored"),
        ("q3333333", "i1", "Private"),
    )
    index = write_csv(tmp_path / "index.csv", ("id",), ("i0",), ("i1",), ("i2",))
    truth = read_gldv2(solution, index)
    assert truth.queries == ["q0000000", "q3333333"]
    assert truth.gallery == ["i0", "i1", "i2"]
    assert [rows.tolist() for rows in truth.positives] == [[2, 0], [1]]
    assert map_at_k([[2, 0, 1], [0, 1, -1]], truth.positives) == pytest.approx(0.75)
    assert read_gldv2(solution, index, "Public").queries == ["q1111111"]
    with pytest.raises(UserError, match="no Ignored query"):
        read_gldv2(solution, index, "Ignored")
    with pytest.raises(UserError, match="did you mean 'Private'"):
        read_gldv2(solution, index, "private")

    with pytest.raises(UserError, match="does not exist"):
        gldv2_readers(tmp_path, truth)
    assert gldv2_path("0123abc") == "0/1/2/0123abc.jpg"
    write_images(tmp_path / "test", map(gldv2_path, truth.queries))
    write_images(tmp_path / "index", map(gldv2_path, truth.gallery))
    queries, gallery = gldv2_readers(tmp_path, truth)
    assert (len(queries), len(gallery)) == (2, 3)
    assert gallery.read(2).shape == (6, 8, 3)
    assert read_index(tmp_path / "index") == truth.gallery


def test_bad_gldv2(tmp_path):
    index = write_csv(tmp_path / "index.csv", ("id",), ("i0",))
    names = [f"x{i:02d}" for i in range(12)]
    solution = write_csv(tmp_path / "s.csv", HEADER, ("q", " ".join(names), "Private"))
    with pytest.raises(UserError, match=r"12 right images .*x00.*x09, …$"):
        read_gldv2(solution, index)
    with pytest.raises(UserError, match="no column Usage"):
        read_gldv2(write_csv(tmp_path / "t.csv", ("id", "images"), ("q", "i0")), index)
    with pytest.raises(UserError, match="line 2: a field is missing"):
        read_gldv2(write_csv(tmp_path / "u.csv", HEADER, ("q", "i0")), index)
    with pytest.raises(UserError, match="is empty"):
        read_gldv2(write_csv(tmp_path / "v.csv", HEADER), index)
    with pytest.raises(UserError, match="cannot read"):
        read_gldv2(tmp_path / "none.csv", index)
    with pytest.raises(UserError, match="has no image"):
        read_index(write_csv(tmp_path / "w.csv", ("id",)))
    with pytest.raises(UserError, match="1 ids twice"):
        read_index(write_csv(tmp_path / "x.csv", ("id",), ("a",), ("a",)))
