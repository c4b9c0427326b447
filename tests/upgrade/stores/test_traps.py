"""Known traps of single kinds of store, each tried on the real engine."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from patience import LONG
from store_apps import COUNT, NEW, ids, plain_map, vectors

from fct_jax.errors import UserError
from fct_jax.upgrade.stores.base import content_tokens
from fct_jax.upgrade.stores.migrate import catch_up, migrate

META = {"fingerprint": "abc123"}


def at_once(action, count: int) -> list:
    """Return the result of an action for each number, all started at the same moment."""
    start, found = threading.Barrier(count), [None] * count

    def run(n):
        start.wait()
        found[n] = action(n)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    return found


class TestPostgres:
    @pytest.mark.parametrize(("dim", "kind"), [(1999, "vector"), (2001, "halfvec"), (4001, None)])
    def test_wide_vectors_are_indexed_as_halfvec(self, make_app, open_store, dim, kind):
        app = make_app("postgres")
        app.create(dim)
        rows = vectors(40, 3, dim)
        app.put(ids("int", 0, 40), rows)
        store = open_store(app.uri)
        store.build_index()
        indexes = app.db.execute(
            "select indexdef from pg_indexes where tablename = 'items' and indexdef like '%hnsw%'"
        ).fetchall()
        assert len(indexes) == (kind is not None)
        assert all(f"{kind}_cosine_ops" in text for (text,) in indexes)
        _, found = store.search(rows[:5], 1)
        assert found[:, 0].tolist() == ids("int", 0, 5)
        if kind:
            app.db.execute("set enable_seqscan = off")
            text = (
                store.nearest(1).as_string(app.db).replace("%s", "'" + str(rows[0].tolist()) + "'")
            )
            plan = "\n".join(row[0] for row in app.db.execute("explain " + text))
            assert "items_hnsw" in plan

    def test_halfvec_columns(self, make_app, open_store, tmp_path):
        app = make_app("postgres")
        app.create(type_="halfvec")
        rows = vectors(300, 5)
        app.put(ids("int", 0, 300), rows)
        store = open_store(app.uri)
        batch = store.read(None, 300)
        np.testing.assert_array_equal(batch.vectors, rows.astype(np.float16).astype(np.float32))
        target = store.sibling(NEW, META)
        migrate(store, target, plain_map, tmp_path / "journal.jsonl")
        assert target.count() == 300

    def test_null_vectors_have_no_row(self, make_app, open_store, tmp_path):
        app = make_app("postgres").filled()
        app.db.execute("update items set embedding = null where key = 5")
        store = open_store(app.uri)
        target = store.sibling(NEW, META)
        migrate(store, target, plain_map, tmp_path / "journal.jsonl")
        assert store.count() == target.count() == COUNT - 1 and not target.has([5])[0]
        # A row that loses its vector later is an orphan.
        app.db.execute("update items set embedding = null where key = 8")
        assert catch_up(store, target, plain_map).deleted == 1

    def test_the_metric_is_that_of_the_index(self, make_app, open_store):
        app = make_app("postgres").filled()
        app.db.execute("create index on items using hnsw (embedding vector_l2_ops)")
        assert open_store(app.uri.replace("&metric=cosine", "")).metric == "l2"

    def test_indexes_of_others_do_not_count(self, make_app, open_store):
        """Nor do those of a table of the same name elsewhere, or of a column named similarly."""
        app = make_app("postgres").filled()
        uri = app.uri.replace("&metric=cosine", "")
        app.db.execute(
            "create schema if not exists other; drop table if exists other.items; "
            "create table other.items (key bigint primary key, embedding vector(16)); "
            "create index on other.items using hnsw (embedding vector_l2_ops); "
            "alter table items add column embedding_2 vector(16); "
            "create index on items using hnsw (embedding_2 vector_l2_ops)"
        )
        assert open_store(uri).metric == "cosine"
        assert open_store(uri.replace("table=items", "table=other.items")).metric == "l2"
        app.db.execute("create index on items using hnsw ((embedding::halfvec(16)) halfvec_ip_ops)")
        assert open_store(uri).metric == "ip"
        with pytest.raises(UserError, match="metric=cosine contradicts .*, which is for ip") as one:
            open_store(app.uri)
        assert "\n" not in str(one.value)
        app.db.execute("create index on items using hnsw (embedding vector_cosine_ops)")
        with pytest.raises(UserError, match="indexes for cosine and ip; say which by metric="):
            open_store(uri)
        assert open_store(app.uri).metric == "cosine"

    @pytest.mark.parametrize("store", ["postgres", "lance"])
    def test_a_sample_is_full_although_most_rows_have_no_vector(self, make_app, open_store, store):
        app = make_app(store)
        app.create()
        keys, rows = ids("int", 0, 6000), vectors(6000, 1)
        app.put(keys, rows)
        if store == "postgres":
            app.db.execute("update items set embedding = null where key % 50 <> 0; analyze items")
        else:
            app.db.open_table("items").update("key % 50 <> 0", {"embedding": None})
        opened = open_store(app.uri)
        have = [one for one in keys if one % 50 == 0]
        assert opened.count() == len(have) > 100
        for seed in range(3):
            drawn = opened.sample(100, seed)
            assert len(set(drawn.ids.tolist())) == 100 and set(drawn.ids.tolist()) <= set(have)
            np.testing.assert_array_equal(drawn.vectors, rows[np.searchsorted(keys, drawn.ids)])
        assert opened.sample(200, 1).ids.tolist() == have

    def test_rows_that_filters_drop_do_not_shorten_the_list(self, make_app, open_store, tmp_path):
        app = make_app("postgres").filled()
        store = open_store(app.uri)
        target = store.sibling(NEW, META)
        migrate(store, target, plain_map, tmp_path / "journal.jsonl")
        last = ids("int", COUNT - 20, COUNT)
        app.put_new(target, last, vectors(20, 3, NEW))  # of version NEW, 20 in 1,500
        app.db.execute("analyze")
        _, found = target.search(vectors(5, 8, NEW), 15, only=1)
        assert (found >= 0).all() and set(found.ravel().tolist()) <= set(last)

    def test_mistakes(self, make_app, open_store):
        app = make_app("postgres").filled()
        for change, message in (
            ("vector=title", "column 'title' is text, not vector"),
            ("id=embedding", "ids of type vector"),
            ("vector=embeding", r"no column 'embeding' in 'items' \(key, title, embedding\)"),
            ("table=item", "no such table"),
            ("metric=manhattan", "unknown metric 'manhattan'"),
        ):
            name = change.partition("=")[0]
            query = "&".join(
                [part for part in app.uri.split("&") if not part.startswith(name + "=")]
            )
            with pytest.raises(UserError, match=message):
                open_store(f"{query}&{change}")

    def test_passwords_come_from_the_environment_and_stay_there(
        self, make_app, open_store, monkeypatch, tmp_path
    ):
        monkeypatch.setenv("PGPASSWORD", "hunter2-Zq9")
        app = make_app("postgres").filled()
        store = open_store(app.uri)
        target = store.sibling(NEW, META)
        now = migrate(store, target, plain_map, tmp_path / "journal.jsonl")
        shown = repr(store) + repr(target) + repr(now) + repr(target.meta)
        assert "hunter2" not in shown + (tmp_path / "journal.jsonl").read_text()
        with pytest.raises(UserError) as error:
            open_store("postgresql://me@127.0.0.1:1/db?table=items")
        assert "hunter2" not in str(error.value)

    def test_four_that_make_our_table_at_once(self, make_app, open_store):
        app = make_app("postgres").filled()
        stores = [open_store(app.uri) for _ in range(4)]
        for _ in range(30):  # they collide at different places, not every time
            done = at_once(lambda n: stores[n].put_state("key", {"n": n}), 4)
            assert sorted(done) == [False, False, False, True]
            app.db.execute("drop table fct_jax")

    def test_of_four_that_switch_at_once_one_does(self, make_app, open_store):
        app = make_app("postgres").filled()
        pointers = [open_store(app.uri).pointer() for _ in range(4)]
        for expect in range(5):  # the first swap also makes the table
            values = [{"store": f"qdrant://h/{n}", "generation": expect + 1} for n in range(4)]
            done = at_once(lambda n: pointers[n].swap(values[n], expect), 4)  # noqa: B023
            assert sorted(done) == [False, False, False, True]
            assert pointers[0].load() == values[done.index(True)]


class TestQdrant:
    def test_cosine_normalises(self, make_app, open_store):
        app = make_app("qdrant")
        app.create()
        rows = 3 * vectors(30, 2)
        app.put(ids("int", 0, 30), rows)
        store = open_store(app.uri)
        batch = store.read()
        assert store.normalises
        np.testing.assert_allclose(np.linalg.norm(batch.vectors, axis=1), 1, rtol=1e-6)

    def test_named_vectors(self, make_app, open_store, tmp_path):
        pytest.importorskip("qdrant_client", reason="needs the extra qdrant")
        from qdrant_client import models

        app = make_app("qdrant")
        app.create()
        app.db.delete_collection("items")
        params = models.VectorParams(size=16, distance=models.Distance.DOT)
        app.db.create_collection("items", vectors_config={"text": params, "image": params})
        rows = vectors(50, 4)
        points = [
            models.PointStruct(id=n, vector={"text": row.tolist(), "image": (-row).tolist()})
            for n, row in enumerate(rows)
        ]
        app.db.upsert("items", points)
        with pytest.raises(UserError, match="vector=…; known: image, text|known: text, image"):
            open_store(app.uri)
        store = open_store(f"{app.uri}?vector=text")
        np.testing.assert_array_equal(store.read().vectors, rows)
        target = store.sibling(NEW, META)
        migrate(store, target, plain_map, tmp_path / "journal.jsonl")
        assert target.count() == 50

    def test_a_folder_opens_again(self, open_store, tmp_path):
        pytest.importorskip("qdrant_client", reason="needs the extra qdrant")
        from qdrant_client import QdrantClient, models

        db = QdrantClient(path=str(tmp_path / "db"))
        params = models.VectorParams(size=16, distance=models.Distance.DOT)
        db.create_collection("items", vectors_config=params)
        db.upsert("items", [models.PointStruct(id=n, vector=[1.0] * 16) for n in range(9)])
        db.close()
        uri = f"qdrant://{tmp_path}/db#items"
        store = open_store(uri)
        target = store.sibling(NEW, META)
        migrate(store, target, plain_map, tmp_path / "journal.jsonl")
        assert open_store(str(target.uri)).count() == 9

    def test_two_kinds_of_ids_are_refused(self, make_app, open_store):
        app = make_app("qdrant").filled()
        app.put(ids("uuid", 0, 2), vectors(2, 3))
        with pytest.raises(UserError, match="both numbers and UUIDs"):
            open_store(app.uri)

    def test_the_real_engine_keeps_bits_and_order(self, tmp_path):
        """The adapter relies on this in the Rust engine, which `qdrant-client` re-implements."""
        edge = pytest.importorskip("qdrant_edge", reason="pip install qdrant-edge-py")
        rows = vectors(200, 6)
        keys = np.random.default_rng(1).permutation(200).tolist()
        for distance, scale, kept in (("Dot", 3, 3), ("Cosine", 3, 1)):
            folder = tmp_path / distance
            folder.mkdir()
            params = edge.EdgeVectorParams(size=16, distance=getattr(edge.Distance, distance))
            shard = edge.EdgeShard.create(str(folder), edge.EdgeConfig(vectors=params))
            points = [edge.Point(k, (scale * rows[k]).tolist(), {"n": k}) for k in keys]
            shard.update(edge.UpdateOperation.upsert_points(points))
            found, _ = shard.scroll(edge.ScrollRequest(limit=200, with_vector=True))
            assert [point.id for point in found] == list(range(200))
            have = np.array([point.vector for point in found], np.float32)
            if distance == "Dot":
                np.testing.assert_array_equal(have, scale * rows)
            np.testing.assert_allclose(np.linalg.norm(have, axis=1), kept, rtol=1e-6)


class TestLance:
    def test_repeated_ids_are_refused(self, make_app, open_store):
        app = make_app("lance").filled()
        app.db.open_table("items").add(app.table([5, 8], vectors(2, 3)))
        with pytest.raises(UserError, match=r"2 repeated ids \(5, 8\)"):
            open_store(app.uri).read()

    def test_a_switch_that_is_just_being_made(self, make_app, open_store):
        """A new pointer's folder exists before its table; until then the last pointer holds."""
        app = make_app("lance").filled()
        store = open_store(app.uri)
        store.pointer().switch({"store": app.uri}, 0)
        place = Path(app.place.removeprefix("lancedb://"))
        (place / "items__pointer_000000002.lance" / "_versions").mkdir(parents=True)
        assert store.pointer().current()["generation"] == 1
        assert store.pointer().undo()["generation"] == 2
        assert store.pointer().current()["generation"] == 2

    @pytest.mark.slow
    def test_windows_smaller_than_the_table(self, make_app, open_store, tmp_path, monkeypatch):
        monkeypatch.setattr("fct_jax.upgrade.stores.lance_order.WINDOW", 100)
        app = make_app("lance", "text").filled()
        app.delete(ids("text", 3, 9))
        store = open_store(app.uri)
        target = store.sibling(NEW, META)
        migrate(store, target, plain_map, tmp_path / "journal.jsonl", limit=64)
        assert set(app.rows(target)) == set(app.rows())
        app.delete(ids("text", 100, 400))
        app.put(ids("text", 700, 705), vectors(5, 3))
        caught = catch_up(store, target, plain_map, limit=64)
        assert (caught.written, caught.deleted, caught.passes) == (5, 300, 2)
        assert set(app.rows(target)) == set(app.rows())

    def test_the_application_can_still_insert(self, make_app, open_store, tmp_path):
        app = make_app("lance").filled()
        store = open_store(app.uri)
        target = store.sibling(NEW, META)
        migrate(store, target, plain_map, tmp_path / "journal.jsonl")
        app.put_new(target, [1, 2], vectors(2, 3, NEW))  # without our columns
        app.put([1], vectors(1, 4))
        catch_up(store, target, plain_map)
        assert target.states([1, 2]) == {1: (None, None), 2: (None, None)}

    def test_of_four_that_switch_at_once_one_does(self, make_app, open_store):
        app = make_app("lance").filled()
        pointers = [open_store(app.uri).pointer() for _ in range(4)]
        for expect in range(8):  # they do not collide every time
            values = [{"store": f"lancedb:///{n}#a", "generation": expect + 1} for n in range(4)]
            done = at_once(lambda n: pointers[n].swap(values[n], expect), 4)  # noqa: B023
            assert sorted(done) == [False, False, False, True]
            assert pointers[0].load() == values[done.index(True)]


class TestMilvus:
    def test_the_service_keeps_its_log(self, tmp_path):
        """The client configures logging when it is imported, and so closes others' files."""
        pytest.importorskip("pymilvus", reason="needs the extra milvus")
        code = (
            "import logging, sys\n"
            "handler = logging.FileHandler(sys.argv[1], 'w')\n"
            "from fct_jax.errors import UserError\n"
            "from fct_jax.upgrade.stores import open_store\n"
            "try:\n    open_store('milvus:///nowhere/at/all.db#items')\n"
            "except UserError: print('pymilvus' in sys.modules, handler.stream.closed)"
        )
        command = [sys.executable, "-c", code, str(tmp_path / "log")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONG)
        assert done.stdout.split() == ["True", "False"], done.stderr

    def test_of_two_that_switch_at_once_at_most_one_does(self, make_app, open_store):
        app = make_app("milvus").filled()
        pointers = [open_store(app.uri).pointer() for _ in range(3)]
        pointers[0].switch({"store": "milvus://h/a"}, 0)
        values = [{"store": f"milvus://h/{n}", "generation": 2} for n in range(3)]
        done = at_once(lambda n: pointers[n].swap(values[n], 1), 3)
        assert sum(done) <= 1
        assert pointers[0].current()["generation"] == 1 + sum(done)

    def test_a_file(self, open_store, tmp_path):
        pymilvus = pytest.importorskip("pymilvus", reason="needs the extra milvus")
        DataType, MilvusClient = pymilvus.DataType, pymilvus.MilvusClient

        db = MilvusClient(str(tmp_path / "items.db"))
        schema = db.create_schema(auto_id=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=16)
        index = db.prepare_index_params()
        index.add_index("vector", index_type="FLAT", metric_type="L2")
        db.create_collection("items", schema=schema, index_params=index)
        rows = vectors(30, 3)
        db.insert("items", [{"id": n, "vector": row} for n, row in enumerate(rows)])
        store = open_store(f"milvus://{tmp_path}/items.db#items")
        np.testing.assert_array_equal(store.read().vectors, rows)
        target = store.sibling(NEW, META)
        migrate(store, target, plain_map, tmp_path / "journal.jsonl")
        assert target.count() == 30 and store.metric == target.metric == "l2"
        db.close()


def test_tokens_tell_rows_apart():
    rows = vectors(50, 1)
    first = content_tokens(rows, [{"a": n, "b": "x"} for n in range(50)])
    again = content_tokens(rows, [{"b": "x", "a": n} for n in range(50)])
    np.testing.assert_array_equal(first, again)
    other = content_tokens(rows, [{"a": n, "b": "y"} for n in range(50)])
    nudged = content_tokens(np.nextafter(rows, 2), [{"a": n, "b": "x"} for n in range(50)])
    assert len({*first.tolist(), *other.tolist(), *nudged.tolist()}) == 150
    assert first.min() > 0


def test_names_of_triggers_stay_apart():
    """PostgreSQL would cut both names to the same 63 bytes."""
    from fct_jax.upgrade.stores.postgres_write import _short

    long = "fct_jax_" + "ü" * 40
    names = [_short(long + end) for end in ("a", "b")]
    assert names[0] != names[1]
    assert all(len(name.encode()) <= 63 for name in names)
    assert _short("fct_jax_items") == "fct_jax_items"
