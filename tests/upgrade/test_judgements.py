"""Judged pairs from files: the same assessment as from an array, and ids that are not there."""

import numpy as np
import pytest

from fct_jax import upgrade
from fct_jax.cli import main
from fct_jax.errors import UserError
from fct_jax.storage import trec
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade.ways import relevance
from fct_jax.upgrade.ways.judgements import judged_of, rows_of_ids, unknown_ids


@pytest.mark.parametrize(
    ("ids", "given", "expected"),
    [
        (np.array([5, 7]), np.array(["7", "07", "x", "5", "-7", "9" * 30]), [1, -1, -1, 0, -1, -1]),
        (np.array(["5", "é ü"]), np.array([5, 7]), [0, -1]),
        (np.array(["ab", "é ü"]), np.array(["abc", "é ü", "a"]), [-1, 1, -1]),  # never truncated
        (np.array([5, 7]), np.array([7.0, 7.5, np.nan]), [1, -1, -1]),
        (np.array(["5"]), np.array([5.0]), [0]),
    ],
)
def test_ids_are_found_across_kinds(ids, given, expected):
    assert rows_of_ids(ids, given).tolist() == expected


def test_unknown_ids_are_counted_and_named():
    queries, items = np.array(["q 1", "q2"]), np.arange(3)
    judged = np.array([["q 1", "2"], ["q 1", "9"], ["ü", "1"], ["ü", "7"]])
    asked, searched = unknown_ids(judged, queries, items)
    assert (
        asked.startswith("2 of 4 judged pairs name a query that does not exist") and "(ü)" in asked
    )
    assert searched.startswith("2 of 4 judged pairs name an item that does not exist")
    assert "2 ids (7, 9)" in searched
    assert unknown_ids(judged[:1], queries, items) == []
    assert relevance.by_table(judged, queries, items).total.tolist() == [1, 0]
    with pytest.raises(
        UserError, match="none of 1 judged pairs names .* such as 'ü' and '7', .* 0"
    ):
        unknown_ids(judged[3:], queries, items)
    with pytest.raises(UserError, match="the gains of judged pairs must be numbers"):
        relevance.by_table(np.array([["q2", "1", "good"]]), queries, items)


def test_what_judged_may_be(tmp_path):
    assert judged_of(None) is None and judged_of("") is None
    np.save(tmp_path / "judged.npy", np.arange(3))
    assert judged_of(tmp_path / "judged.npy").tolist() == [0, 1, 2]
    assert judged_of([["q", "a"]]).tolist() == [["q", "a"]]
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta b\t1\n")
    assert judged_of(str(tmp_path)).tolist() == [["q", "a b", "1"]]
    with pytest.raises(UserError, match="nothing.txt does not exist"):
        judged_of(tmp_path / "nothing.txt")


def pair(seed=0, items=120, queries=40):
    """Return a gallery with text ids and queries near known items, by two similar models."""
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((items, 12))
    asked = rng.permutation(items)[:queries]
    near = truth[asked] + 0.1 * rng.standard_normal((queries, 12))
    turns = [np.linalg.qr(rng.standard_normal((12, 12)))[0] for _ in range(2)]
    names, asking = np.array([f"ítem {i}" for i in range(items)]), [f"q{i}" for i in range(queries)]
    old, new = (EmbeddingSet.of((truth @ t).astype(np.float32), names) for t in turns)
    query_old, query_new = (EmbeddingSet.of((near @ t).astype(np.float32), asking) for t in turns)
    return old, new, query_old, query_new, np.stack([asking, names[asked], ["1"] * queries], axis=1)


def test_an_assessment_by_a_file_is_that_by_the_array(tmp_path, capsys):
    old, new, query_old, query_new, judged = pair()
    strange = np.concatenate([judged, [["q1", "nobody knows", "1"], ["q77", "ítem 3", "2"]]])
    path = tmp_path / "beir" / "qrels" / "test.tsv"
    path.parent.mkdir(parents=True)
    lines = ("\t".join(row) for row in [["query-id", "corpus-id", "score"], *strange])
    path.write_text("\n".join(lines))
    settings = {"ways": ("translated",), "shares": (), "resamples": 50, "method": "ridge"}
    asked = {"query_old": query_old, "query_new": query_new}
    by_array = upgrade.assess(None, old, new, judged=judged, **asked, **settings)
    by_file = upgrade.assess(None, old, new, judged=path.parents[1], **asked, **settings)
    assert by_file.by == "judged pairs"
    assert [p.values for p in by_file.points] == [p.values for p in by_array.points]
    said = [note for note in by_file.notes if "does not exist" in note]
    assert [note[:8] for note in said] == ["1 of 42 "] * 2 and "nobody knows" in said[1]
    assert not [note for note in by_array.notes if "does not exist" in note]

    for name, given in {"old": old, "new": new, "q_old": query_old, "q_new": query_new}.items():
        given.write(tmp_path / name)
    command = ["assess", *(str(tmp_path / name) for name in ("old", "new"))]
    command += ["--query-old", str(tmp_path / "q_old"), "--query-new", str(tmp_path / "q_new")]
    command += ["--ways", "translated", "--shares", "0", "--resamples", "50", "--method", "ridge"]
    assert main([*command, "--judged", str(tmp_path / "beir")]) in (0, 2)
    assert "judged pairs" in capsys.readouterr().out
    wrong = tmp_path / "qrels.txt"
    wrong.write_text("q1 0 x 1\nq1 x\n")
    assert main([*command, "--judged", str(wrong)]) == 1
    assert "qrels.txt:2: a line is" in capsys.readouterr().err
    wrong.unlink()
    trec.write_qrels(wrong, [["a", "b"]])
    assert main([*command, "--judged", str(wrong)]) == 1
    assert "none of 1 judged pairs names an existing query and item" in capsys.readouterr().err


def test_runs_are_the_rankings_that_were_judged(tmp_path):
    old, new, query_old, query_new, judged = pair()
    plain = np.char.replace(judged, " ", "_")
    old, new = (
        EmbeddingSet.of(part.vectors, np.char.replace(part.ids, " ", "_")) for part in (old, new)
    )
    query_old = EmbeddingSet.of(np.roll(query_old.vectors, 3, axis=1), query_old.ids)  # much worse
    found = upgrade.assess(
        None, old, new, query_old=query_old, query_new=query_new, judged=plain, resamples=50,
        method="ridge", ways=("translated", "cascade"), shares=(), runs_out=tmp_path / "runs",
    )  # fmt: skip
    assert found.advice == "upgrade"
    files = {"keep": "keep", "re-embed_all": "re-embed all", "advised": found.way}
    assert {p.stem for p in (tmp_path / "runs").iterdir()} == set(files)
    relevant = {query: item for query, item, _ in plain}
    for name, way in files.items():
        run = trec.read_run(tmp_path / "runs" / f"{name}.run")
        ranks = []
        for query in np.unique(run.queries):
            items = run.items[run.queries == query].tolist()
            ranks.append(1 / (items.index(relevant[query]) + 1) if relevant[query] in items else 0)
        share = found.share if name == "advised" else None
        order = found.order or "" if name == "advised" else ""
        point = [p for p in found.points if p.way == way and share in (None, p.share)]
        point = [p for p in point if p.order == order and (share is None or p.settings == dict(
            found.verdict.settings))]  # fmt: skip
        assert np.mean(ranks) == pytest.approx(point[0].values["mrr"])


def test_runs_need_ids_without_blanks(tmp_path):
    old, new, query_old, query_new, judged = pair()
    with pytest.raises(UserError, match="no room for blanks, .* of an item"):
        upgrade.assess(
            None, old, new, query_old=query_old, query_new=query_new, judged=judged,
            method="ridge", runs_out=tmp_path / "runs",
        )  # fmt: skip
    assert not (tmp_path / "runs").exists()
