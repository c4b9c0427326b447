"""Qrels, runs and BEIR folders: round trips, plain parsers as oracles, and malformed lines."""

import collections
import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fct_jax.errors import UserError
from fct_jax.storage import trec

# Excluded: characters that TREC files or UTF-8 cannot hold, and those that NumPy cuts off.
_ID = st.text(
    st.characters(blacklist_categories=("Cs",), blacklist_characters=" \t\r\n\f\v\0\ufeff"),
    min_size=1,
    max_size=8,
)


@settings(deadline=None, max_examples=60)
@given(
    pairs=st.dictionaries(st.tuples(_ID, _ID), st.integers(-2, 5), min_size=1, max_size=12),
    tabs=st.booleans(),
)
def test_qrels_come_back_as_they_were_written(tmp_path_factory, pairs, tabs):
    path = tmp_path_factory.mktemp("qrels") / "qrels.txt"
    table = np.array([(*pair, str(grade)) for pair, grade in pairs.items()])
    if tabs:
        lines = ["query-id\tcorpus-id\tscore", *("\t".join(row) for row in table)]
        path.write_bytes("\n".join(lines).encode())
    else:
        trec.write_qrels(path, table)
        assert path.read_bytes().decode().split("\n")[0] == f"{table[0, 0]} 0 {table[0, 1]} " + str(
            next(iter(pairs.values()))
        )
    np.testing.assert_array_equal(trec.read_qrels(path), table)


@settings(deadline=None, max_examples=60)
@given(
    queries=st.lists(_ID, min_size=1, max_size=4, unique=True),
    items=st.lists(_ID, min_size=1, max_size=6, unique=True),
    seed=st.integers(0, 99),
)
def test_a_run_keeps_its_order_by_the_rule_of_trec_eval(tmp_path_factory, queries, items, seed):
    """trec_eval sorts by float32 score, and equal scores by descending name of the item."""
    path = tmp_path_factory.mktemp("run") / "run.txt"
    rng = np.random.default_rng(seed)
    ranked = np.array([rng.permutation(items) for _ in queries])
    scores = -np.sort(-rng.integers(-1, 2, ranked.shape).astype(float))  # many are equal
    scores[rng.random(scores.shape) < 0.2] = -np.inf
    expected = {
        query: [name for name, score in zip(*row, strict=True) if score > -np.inf]
        for query, *row in zip(queries, ranked, scores, strict=True)
    }
    trec.write_run(path, np.array(queries), ranked, scores)
    lines = collections.defaultdict(list)
    for line in path.read_bytes().decode().split("\n")[:-1]:
        query, q0, item, rank, score, tag = line.split(" ")
        assert (q0, tag) == ("Q0", "fct_jax")
        lines[query].append((np.float32(score), item, int(rank)))
    for query, found in lines.items():
        best_first = sorted(found, key=lambda row: row[:2], reverse=True)
        assert [row[1] for row in best_first] == expected[query]
        assert [row[2] for row in best_first] == list(range(1, len(found) + 1))
    if lines:
        back = trec.read_run(path)
        for query in lines:
            assert back.items[back.queries == query].tolist() == expected[query]
            assert back.judged(2)[back.judged(2)[:, 0] == query, 1].tolist() == expected[query][:2]


def test_a_run_is_sorted_by_score_and_not_by_rank(tmp_path):
    path = tmp_path / "run.txt"
    path.write_text("q2 Q0 a 1 0.5 x\nq1 Q0 c 9 7 x\nq2 Q0 b 2 1.5 x\n\nq1  Q0\tb 1 -3e1 x\r\n")
    run = trec.read_run(path)
    assert run.queries.tolist() == ["q2", "q2", "q1", "q1"]
    assert run.items.tolist() == ["b", "a", "c", "b"]
    assert run.scores.tolist() == [1.5, 0.5, 7.0, -30.0]
    assert run.judged(1).tolist() == [["q2", "b", "1"], ["q1", "c", "1"]]


def test_ids_between_tabs_hold_blanks_and_files_may_be_packed(tmp_path):
    path = tmp_path / "test.tsv.gz"
    text = "\ufeffquery-id\tcorpus-id\tscore\nwho is é\tpage 1\t2\nq\u00a02\t7\u3000\t0\n"
    path.write_bytes(gzip.compress(text.encode()))
    expected = [["who is é", "page 1", "2"], ["q\u00a02", "7\u3000", "0"]]
    assert trec.read_qrels(path).tolist() == expected
    with pytest.raises(UserError, match=r"no room for blanks.* of a query: 1 id \('who is"):
        trec.write_qrels(tmp_path / "qrels.txt", expected)
    trec.write_qrels(tmp_path / "qrels.txt", expected[1:])
    assert trec.read_qrels(tmp_path / "qrels.txt").tolist() == expected[1:]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"q 0 a 1\nq 0 b\n", r":2: a line is \"query 0 item grade\" or"),
        (b"q 0 a 1\nq 0 b two\n", ":2: the grade must be a number, not 'two'"),
        (b"q 0 a nan\n", ":1: the grade must be a number, not 'nan'"),
        (b"q 0 a 1\n\nq 0 a 2\n", ":3: query 'q' and item 'a' are judged 2 here and 1 before"),
        (b"q Q0 a 1 0.5 tag\n", ":1: this is a line of a run, which ranks and does not judge"),
        (b"q 0 a 1\nq 0 \xff 1\n", ":2: this line is no UTF-8 text"),
        (b"query-id\tcorpus-id\tscore\n", "holds no judged pair"),
        (b"", "holds no judged pair"),
    ],
)
def test_malformed_qrels_are_named_by_file_and_line(tmp_path, text, message):
    path = tmp_path / "qrels.txt"
    path.write_bytes(text)
    with pytest.raises(UserError, match=message) as error:
        trec.read_qrels(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q Q0 a 1 0.5 x\nq 0 a 1\n", r":2: a line is \"query Q0 item rank score tag\", not 'q 0"),
        ("q Q0 a 1 high x\n", ":1: the score must be a number, not 'high'"),
        ("q Q0 a 1 0.5 x\nq Q0 a 2 0.4 x\n", ":2: query 'q' ranks item 'a' twice"),
        ("\n", "holds no result"),
    ],
)
def test_malformed_runs_are_named_by_file_and_line(tmp_path, text, message):
    path = tmp_path / "run.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        trec.read_run(path)


def test_what_is_not_there_or_broken_is_one_line(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        trec.read_run(tmp_path / "nothing.txt")
    broken = tmp_path / "broken.gz"
    broken.write_bytes(gzip.compress(b"q 0 a 1\n" * 100)[:20])
    with pytest.raises(UserError, match="cannot be read"):
        trec.read_qrels(broken)
    there = tmp_path / "there.txt"
    there.write_text("mine")
    with pytest.raises(UserError, match="exists already; nothing was overwritten"):
        trec.write_run(there, ["q"], [["a"]], [[1.0]])
    assert there.read_text() == "mine"
    with pytest.raises(UserError, match=r"a run needs items and scores \(Q, K\) of 2 queries"):
        trec.write_run(tmp_path / "run.txt", ["q", "p"], [["a"]], [[1.0]])
    with pytest.raises(UserError, match=r"judged must have shape \(P, 2\) or \(P, 3\)"):
        trec.write_qrels(tmp_path / "qrels.txt", ["a", "b"])


def write_beir(folder, splits=("test",)):
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": "d 1", "title": "Über", "text": "x"}, {"_id": "d2", "title": "", "text": "y"}]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q1", "text": "why"}) + "\n")
    for split in splits:
        (folder / "qrels" / f"{split}.tsv").write_text(
            "query-id\tcorpus-id\tscore\nq1\td 1\t1\nq1\tgone\t2\nq9\td2\t1\n"
        )


def test_a_beir_folder_is_read_and_its_unknown_ids_are_counted(tmp_path):
    write_beir(tmp_path / "beir")
    found = trec.read_beir(tmp_path / "beir")
    assert found.item_ids.tolist() == ["d 1", "d2"] and found.item_texts == ["Über x", "y"]
    assert found.query_ids.tolist() == ["q1"] and found.query_texts == ["why"]
    assert found.judged.tolist() == [["q1", "d 1", "1"], ["q1", "gone", "2"], ["q9", "d2", "1"]]
    assert found.unknown == 2


def test_the_split_of_a_beir_folder(tmp_path):
    write_beir(tmp_path / "one", ["dev"])
    assert trec.qrels_of(tmp_path / "one").name == "dev.tsv"
    write_beir(tmp_path / "two", ["dev", "train"])
    assert trec.qrels_of(tmp_path / "two", "train").name == "train.tsv"
    with pytest.raises(UserError, match=r"has no qrels/test.tsv; name one of .*dev.tsv"):
        trec.qrels_of(tmp_path / "two")
    with pytest.raises(UserError, match=r"is not a BEIR folder: it has no qrels/\*.tsv"):
        trec.qrels_of(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"corpus.jsonl:3: this line is no JSON"),
        ('{"text": "no id"}', r"corpus.jsonl:3: a line is"),
        ('{"_id": "d2"}', r"corpus.jsonl:3: the id 'd2' comes twice"),
    ],
)
def test_malformed_lines_of_a_corpus(tmp_path, line, message):
    write_beir(tmp_path / "beir")
    with (tmp_path / "beir" / "corpus.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=message):
        trec.read_beir(tmp_path / "beir")
