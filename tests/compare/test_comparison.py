"""Comparison of compatible models: scoring of each kind of test set, and the report."""

import html
import json

import numpy as np
import pytest
import tiny_compatible
import tiny_runs

from fct_jax.compare.measures import compatibility_scores, negative_flip_rate
from fct_jax.compare.models import judge
from fct_jax.compare.report import Comparison, mean_report, report_of, write_reports
from fct_jax.compare.scoring import Row, labelled, landmarks, measure, revisited
from fct_jax.compare.test_sets import open_test
from fct_jax.errors import UserError
from fct_jax.evaluate.metrics import retrieval_metrics
from fct_jax.evaluate.protocols.landmarks import map_at_k, revisited_map
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.train.loop import train

pytestmark = pytest.mark.usefixtures("flat_model")

RNG = np.random.default_rng(0)


def vectors(count, dim=6):
    return RNG.standard_normal((count, dim)).astype(np.float32)


def cosine_ranks(query, gallery):
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery)]
    return np.argsort(-(unit[0] @ unit[1].T), axis=1, kind="stable")


@pytest.mark.parametrize("separate", [False, True])
def test_labelled_equals_retrieval_metrics(separate):
    gallery, labels = vectors(30), np.arange(30) % 4
    query, query_labels = (vectors(9), np.arange(9) % 3) if separate else (vectors(30), None)
    found = labelled(labels, query_labels)(query, gallery)
    own = query_labels if separate else labels
    arguments = (query, gallery, own, labels if separate else None)
    expected = retrieval_metrics(*arguments, metric="cosine", ks=(1,))
    assert found.map == pytest.approx(expected["map"])
    assert found.hit.mean() == pytest.approx(expected["cmc@1"])
    weights = np.bincount(own) / len(own)
    assert sum(weights[c] * ap for c, ap in found.groups.items()) == pytest.approx(found.map)
    one_group = labelled(labels, query_labels, groups=np.zeros(len(own), int))(query, gallery)
    assert one_group.groups == {0: pytest.approx(found.map)}


def test_landmark_scores():
    query, gallery = vectors(4), vectors(20)
    truth = [
        {"easy": [1, 2], "hard": [3], "junk": [4]},
        {"easy": [], "hard": [5], "junk": []},
        {"easy": [7], "hard": [], "junk": [8]},
        {"easy": [], "hard": [], "junk": [9]},  # left out of the mean
    ]
    ranks = cosine_ranks(query, gallery)
    expected = revisited_map(ranks.T, truth)
    for protocol in ("easy", "medium", "hard"):
        score = revisited(truth, protocol)
        assert score(query, gallery).map == pytest.approx(expected[protocol]["map"])
    hit = revisited(truth)(query, gallery).hit
    assert hit.mean() == pytest.approx(expected["medium"]["mp@1"])

    positives = [[1, 2, 3], [5], [7], []]
    found = landmarks(positives, k=10)(query, gallery)
    assert found.map == pytest.approx(map_at_k(ranks, positives, 10))
    assert found.hit.tolist() == [ranks[i, 0] in positives[i] for i in range(4)]


def test_measure_against_a_plain_loop():
    labels = np.arange(24) % 3
    score = labelled(labels)
    old, new = vectors(24), vectors(24)
    found = measure(score, Row(old, old, old), {"new": Row(new, new, old)}, seed=3)
    assert found["old"]["self"] == pytest.approx(score(old, old).map)
    row = found["new"]
    assert row["self"] == pytest.approx(score(new, new).map)
    assert row["cross"] == pytest.approx(score(new, old).map)
    order = np.random.default_rng(3).permutation(24)
    for share, value in zip((0, 0.25, 0.5, 0.75, 1), row["curve"], strict=True):
        mixed = old.copy()
        mixed[order[: int(share * 24)]] = new[order[: int(share * 24)]]
        assert value == pytest.approx(score(new, mixed).map)
    flips = negative_flip_rate(score(old, old).hit, score(new, old).hit)
    assert row["nfr"] == flips["nfr"] and row["relative_nfr"] == flips["relative_nfr"]
    groups = score(new, old).groups.values()
    assert row["gap"] == pytest.approx(max(groups) - min(groups))
    with pytest.raises(UserError, match="embeddings of 5 dimensions, but the gallery .* has 6"):
        measure(score, Row(old, old, old), {"wide": Row(vectors(24, 5), vectors(24, 5), old)})


PAPER = {  # mAP self/cross in percent on RParis, ROxford, GLDv2; P_up, P_comp, P_1
    "new alone": ((81.15, 63.85, 16.48), (4.93, 1.20, 0.2), None),
    "BCT": ((80.58, 56.34, 14.61), (77.37, 49.66, 11.30), (48.02, 54.71, 51.13)),
    "UniBCT": ((80.93, 57.24, 16.06), (78.30, 50.97, 13.25), (48.90, 59.19, 53.52)),
    "AdvBCT": ((82.78, 62.13, 15.71), (78.55, 52.31, 11.49), (49.55, 58.09, 53.45)),
}


def paper_report():
    old = dict(zip(("RParis", "ROxford", "GLDv2"), (75.45, 49.15, 10.03), strict=True))
    tests = {}
    for index, (name, value) in enumerate(old.items()):
        tests[name] = {"old": {"self": value / 100}}
        for row, (own, cross, _) in PAPER.items():
            points = np.linspace(cross[index], own[index], 5) / 100
            tests[name][row] = {
                "self": own[index] / 100,
                "cross": cross[index] / 100,
                "curve": points.tolist(),
            }
    return report_of("extended-data", tests)


def test_published_scores():
    report = paper_report()
    scores = report.scores()
    for row, (_, _, expected) in PAPER.items():
        if expected:
            found = [100 * scores[row][key] for key in ("p_up", "p_comp", "p_1")]
            np.testing.assert_allclose(found, expected, atol=0.02)
    assert scores["new alone"]["p_comp"] == pytest.approx(0.0719, abs=2e-4)
    assert report.reached("BCT") == (3, 3) and report.reached("new alone") == (0, 3)


def test_tables_json_and_figure(tmp_path):
    report = paper_report()
    write_reports([report], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| old | 75.5 |  | 49.1 |  | 10.0 |  |  |  |  |  |" in text
    assert (
        "| UniBCT | 80.9 | 78.3 | 57.2 | 51.0 | 16.1 | 13.2 | 3 of 3 | 48.9 | 59.2 | 53.5 |" in text
    )
    assert "| new alone | 81.2 | 4.9 |" in text and "0 of 3" in text
    written = json.loads((tmp_path / "report.json").read_text())["comparisons"]["extended-data"]
    assert written["tests"]["GLDv2"]["BCT"]["cross"] == pytest.approx(0.113)
    assert written["scores"]["BCT"]["p_1"] == report.scores()["BCT"]["p_1"]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    words = report.verdict()
    assert "BCT, UniBCT, AdvBCT" not in words and "all 3 models beat the old model's own" in words
    assert words in text and words in html.unescape((tmp_path / "report.html").read_text())


def test_mean_over_runs():
    first, second = paper_report(), paper_report()
    second.tests["GLDv2"]["BCT"] |= {"self": 0.2, "cross": 0.05, "reaches_old": 0.0}
    mean = mean_report([first, second])
    row = mean.tests["GLDv2"]["BCT"]
    assert row["self"] == pytest.approx((0.1461 + 0.2) / 2)
    assert row["cross"] == pytest.approx((0.1130 + 0.05) / 2)
    assert mean.runs == 2 and mean.reached("BCT") == (5, 6)
    star = [mean.tests[name]["new alone"]["self"] for name in mean.tests]
    own, cross = ([mean.tests[t]["BCT"][key] for t in mean.tests] for key in ("self", "cross"))
    old = [mean.tests[name]["old"]["self"] for name in mean.tests]
    assert mean.scores()["BCT"]["p_1"] == compatibility_scores(own, cross, old, star)["p_1"]
    second.title = "extended-class"
    with pytest.raises(UserError, match="do not hold the same rows"):
        mean_report([first, second])


def test_a_report_needs_the_old_model():
    row = {"self": 0.5, "cross": 0.4, "curve": [0.4, 0.5]}
    with pytest.raises(UserError, match="needs the row 'old'"):
        Comparison("x", {"test": {"new alone": row, "bct": row}})
    with pytest.raises(UserError, match="the same rows"):
        Comparison("x", {"a": {"old": row}, "b": {"old": row, "bct": row}})


@pytest.mark.slow
def test_runs_and_transformations_on_one_test_set(tmp_path):
    """Both families are trained for two epochs and compared through the files that they leave."""
    folder = tmp_path / "runs"
    subset = {"data__subset": "new images 0.3"}
    train(tiny_compatible.config(data__subset="old images 0.3", seed=5), folder / "old")
    train(tiny_compatible.config(**subset), folder / "alone")
    bct = tiny_compatible.config(method="bct", old=str(folder / "old"), **subset)
    train(bct, folder / "bct")
    fct = tiny_runs.transformation(folder / "old", folder / "alone", epochs=20, **subset)
    train(fct, folder / "fct")

    test = open_test(bct)
    models = {"bct": folder / "bct", "FCT": folder / "fct"}
    found = judge(test, folder / "old", folder / "alone", models, folder)
    assert list(found) == ["old", "new alone", "bct", "FCT"]
    assert found["FCT"]["self"] == found["new alone"]["self"]
    assert found["bct"]["cross"] > found["new alone"]["cross"] + 0.2
    assert found["FCT"]["cross"] > found["new alone"]["cross"] + 0.2
    moved = EmbeddingSet.read(folder / "FCT-digits")
    alone, labels = test.vectors(folder / "alone", "validation"), np.asarray(moved.labels)
    expected = retrieval_metrics(alone.vectors, moved.vectors, labels, metric="cosine")["map"]
    assert found["FCT"]["cross"] == pytest.approx(expected)
    assert report_of("extended-data", {"digits": found}).rows == ["new alone", "bct", "FCT"]


def test_no_gain_to_compare_with_leaves_cells_empty():
    """A new model alone that equals the old one on a test set must not lose the report."""
    row = {"self": 0.5, "cross": 0.4, "curve": [0.4, 0.45, 0.5, 0.5, 0.5], "gap": 0.1}
    report = report_of("x", {"test": {"old": {"self": 0.5}, "new alone": row, "bct": row}})
    assert report.scores()["bct"] == dict.fromkeys(("p_up", "p_comp", "p_1", "update_gain"))
    assert "| bct | 50.0 | 40.0 | no |  |  |  |" in report.markdown()
    assert json.loads(json.dumps(report.to_json()))["scores"]["bct"]["p_1"] is None
