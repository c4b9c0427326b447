"""Traffic: logs and weights of queries, which cascades replay, and of items, for the orders."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fct_jax.errors import UserError
from fct_jax.upgrade import assess
from fct_jax.upgrade.ways.on_demand import replay
from fct_jax.upgrade.ways.traffic import among, by_query_or_item, read_traffic, traffic_of

QUERIES, ITEMS = 60, 300
WEIGHTED = np.dtype([("id", "U8"), ("weight", np.float64)])


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(ITEMS, 24))
    asked = latent[:QUERIES] + 0.5 * rng.normal(size=(QUERIES, 24))
    made = []
    for dim, noise in ((16, 0.8), (32, 0.4)):
        turn = rng.normal(size=(24, dim)) / 5
        for part in (latent, asked):
            rows = part @ turn + noise * rng.normal(size=(len(part), dim))
            made.append((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))
    return made


def assessed(vectors, **keywords):
    old, query_old, new, query_new = vectors
    given = {"query_old": query_old, "query_new": query_new, "judged": np.arange(QUERIES)}
    given |= {"ways": ("cascade",), "method": "ridge", "resamples": 100}
    return assess(None, old, new, **given | keywords)


def test_every_form_of_a_file_is_read(tmp_path):
    array = np.array([("a", 2.0), ("b", 1.0), ("a", 0.5)], WEIGHTED)
    np.save(tmp_path / "weights.npy", array)
    np.save(tmp_path / "log.npy", np.array([7, 3, 7]))
    (tmp_path / "log.txt").write_text("# yesterday\n7\n\n3\n7\n")
    for name, text in (("tab", "a\t2\nb\t1\na\t.5\n"), ("comma", "a, 2\nb,1\na,0.5\n")):
        (tmp_path / name).write_text(text)
    for name in ("weights.npy", "tab", "comma"):
        ids, weights = read_traffic(tmp_path / name)
        assert ids.tolist() == ["a", "b", "a"] and weights.tolist() == [2.0, 1.0, 0.5]
    for name in ("log.npy", "log.txt"):
        ids, weights = read_traffic(tmp_path / name)
        assert ids.astype(str).tolist() == ["7", "3", "7"] and weights is None
        found = traffic_of((ids, weights), np.array([3, 5, 7]), "query")
        assert found.rows.tolist() == [2, 0, 2] and found.notes == ()
        assert found.per_row(3).tolist() == [1, 0, 2]
    ids, weights = read_traffic(tmp_path / "tab")
    found = traffic_of((ids, weights), np.array(["x", "a"]), "query")
    assert found.per_row(2).tolist() == [0, 2.5]
    assert found.notes == ("1 of 3 entries of the traffic name no query and are left out: "
                           "1 id (b).",)  # fmt: skip


def test_tables_are_read_by_the_names_of_their_columns(tmp_path):
    (tmp_path / "a.csv").write_text('name,count,id\nx,2,"a,1"\ny,1,b\n')
    (tmp_path / "a.tsv").write_text("id\tweight\na,1\t2\nb\t1\n")
    (tmp_path / "a.jsonl").write_text('{"id": "a,1", "count": 2}\n\n{"id": "b", "weight": 1}\n')
    pq.write_table(pa.table({"id": ["a,1", "b"], "count": [2, 1]}), tmp_path / "a.parquet")
    for form in ("csv", "tsv", "jsonl", "parquet"):
        ids, weights = read_traffic(tmp_path / f"a.{form}")
        assert ids.tolist() == ["a,1", "b"] and weights.tolist() == [2.0, 1.0]
    (tmp_path / "log.csv").write_text("id\n7\n3\n7\n")
    (tmp_path / "log.jsonl").write_text('{"id": 7}\n{"id": 3}\n{"id": 7}\n')
    pq.write_table(pa.table({"id": [7, 3, 7]}), tmp_path / "log.parquet")
    (tmp_path / "plain.csv").write_text("7\n3\n7\n")
    for name in ("log.csv", "log.jsonl", "log.parquet", "plain.csv"):
        ids, weights = read_traffic(tmp_path / name)
        assert ids.astype(str).tolist() == ["7", "3", "7"] and weights is None
    for name, text, message in (
        ("b.csv", "id,count\na\n", "line 2: 1 values for 2 columns"),
        ("b.csv", "id,count\na,x\n", "line 2: the weight must be a number, not 'x'"),
        ("b.csv", "id,clicks\na,3\n", "no column 'weight' or 'count'"),
        ("b.jsonl", '{"id": 1}\n[2]\n', "line 2 must be like"),
        ("b.jsonl", '{"id": 1}\n{"id": 2, "count": 3}\n', "line 2: every line must have an id"),
        ("b.jsonl", '{"key": 1}\n', "line 1 must be like"),
        ("b.parquet", "noise", "cannot be read"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=message) as raised:
            read_traffic(tmp_path / name)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a 1\nb\n", "line 2: every line must have an id"),
        ("a\nb c d\n", "line 2: every line"),
        ("a x\n", "line 1: the weight must be a number, not 'x'"),
        ("a 1\nb -2\n", "at least 0, not -2 of b"),
        ("a nan\n", "finite"),
        ("a 0\n", "all weights are 0"),
    ],
)
def test_mistakes_are_one_line(tmp_path, text, message):
    (tmp_path / "traffic").write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        read_traffic(tmp_path / "traffic")
    assert "\n" not in str(raised.value)


def test_files_that_cannot_be_read(tmp_path):
    np.save(tmp_path / "wrong.npy", np.zeros((2, 2)))
    (tmp_path / "noise.npy").write_bytes(b"no array")
    for name, message in (
        ("wrong.npy", "must be"), ("noise.npy", "cannot be read"), ("nowhere", "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            read_traffic(tmp_path / name)
    with pytest.raises(UserError, match="none of 1 entries names a query or an item"):
        by_query_or_item((np.array(["z"]), None), np.arange(3), np.arange(9))


def test_the_stream_is_the_log_and_weights_are_its_chances():
    log = traffic_of((np.array([4, 0, 9, 4, 2]), None), np.arange(5), "query")
    kept = np.array([0, 4])  # two of five queries are assessed
    stream, notes = among(log, kept, 5, 99, 0)
    assert stream.tolist() == [1, 0, 1]
    assert notes[0].startswith("1 of 5 entries") and "1 entries of the traffic ask" in notes[1]
    weighed = traffic_of((np.arange(3), np.array([1.0, 0.0, 3.0])), np.arange(3), "query")
    stream, notes = among(weighed, np.arange(3), 3, 40_000, 0)
    share = np.bincount(stream, minlength=3) / 40_000
    # The bound is five standard deviations of a binomial share.
    assert share[1] == 0 and abs(share[2] - 0.75) < 5 * np.sqrt(0.75 * 0.25 / 40_000) and not notes
    assert among(log, np.array([3]), 5, 9, 0)[0] is None


def test_a_cascade_replays_the_log(vectors, tmp_path):
    """With the same two queries again and again, only their candidates are embedded."""
    log = tmp_path / "log.txt"
    log.write_text("3\n5\n3\n" * 50 + "unknown\n")
    made = assessed(vectors, traffic=log)
    told = made.replays["cascade 20 new"]
    assert told["share_after"][150] * made.items <= 40 and told["median"] == 0
    assert told["share_after"][100] == told["share_after"][150]
    assert any("1 of 151 entries of the traffic name no query" in note for note in made.notes)
    once = assessed(vectors).replays["cascade 20 new"]
    assert once["share_after"][QUERIES] > told["share_after"][150]
    # It agrees with the plain replay of two lists of candidates.
    rows = np.array([np.arange(20), np.arange(10, 30)])
    plain = replay(np.array([0, 1, 0] * 50), rows, rows, rows, size=99, budget=None, k=0)
    assert plain.embedded.tolist()[:3] == [20, 10, 0] and plain.present[-1] == 30


def test_the_quality_with_a_budget_is_that_of_each_query_once(vectors, tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("3\n5\n" * 10)
    with_log, without = (
        assessed(vectors, embeddings_a_query=3, **given) for given in ({"traffic": log}, {})
    )
    label = "cascade 20 sum"
    one, other = (found.point(label, "candidates").values for found in (with_log, without))
    assert one == other
    assert with_log.replays[label]["mean"] < without.replays[label]["mean"]


def test_traffic_of_items_orders_them(vectors, tmp_path):
    weights = np.array([(f"item{i}", i % 7) for i in range(ITEMS)], WEIGHTED)
    np.save(tmp_path / "items.npy", weights)
    old, query_old, new, query_new = vectors
    from fct_jax.storage.embedding_set import EmbeddingSet

    ids = weights["id"]
    made = assessed(
        (EmbeddingSet.of(old, ids=ids), query_old, EmbeddingSet.of(new, ids=ids), query_new),
        judged=ids[:QUERIES],
        traffic=tmp_path / "items.npy",
        ways=("fused",),
        shares=(0.5,),
    )
    assert {p.order for p in made.points if p.way == "fused"} == {
        "uncertainty", "random", "certainty", "traffic", "uncertainty×traffic", "certainty×traffic",
    }  # fmt: skip
    with pytest.raises(UserError, match="popularity and traffic both"):
        assessed(vectors, popularity=1.0, traffic=tmp_path / "items.npy")
