"""What every store must do, tried on each: PostgreSQL, Qdrant, LanceDB and Milvus."""

import threading

import numpy as np
import pytest
import store_apps
from patience import LONG
from store_apps import COUNT, NEW, OLD, Writer, assert_agree, plain_map, stored, vectors

from fct_jax.errors import UserError
from fct_jax.upgrade.migration.journal import Journal
from fct_jax.upgrade.stores import NEW as REEMBEDDED
from fct_jax.upgrade.stores import TRANSLATED
from fct_jax.upgrade.stores.migrate import catch_up, copy, migrate
from fct_jax.upgrade.stores.recall import recall

META = {"fingerprint": "abc123"}


def all_rows(store, limit=400, **where):
    """Return every row of a store, as the store itself reads them."""
    ids, rows, tokens, after = [], [], [], None
    while len(batch := store.read(after, limit, **where)):
        assert len(batch) <= limit
        ids += batch.ids.tolist()
        rows.append(batch.vectors)
        tokens += batch.tokens.tolist()
        after = batch.last
    return ids, np.concatenate([np.zeros((0, store.dim), np.float32), *rows]), tokens


class TestReading:
    def test_what_is_known_at_once(self, app, open_store):
        store = open_store(app.uri)
        assert (store.count(), store.dim, store.metric) == (COUNT, OLD, "cosine")
        assert store.id_kind == (
            "text" if isinstance(app, store_apps.LanceApp) and app.kind == "uuid" else app.kind
        )
        assert store.normalises == isinstance(app, store_apps.QdrantApp)

    def test_reads_every_row_once_by_ascending_id(self, app, open_store):
        ids, rows, tokens = all_rows(open_store(app.uri))
        wanted = app.rows()
        assert len(set(ids)) == len(ids) == COUNT and set(ids) == set(wanted)
        if app.kind != "text":  # the database decides the order of texts
            assert ids == sorted(ids)
        np.testing.assert_array_equal(rows, [wanted[one] for one in ids])
        assert 0 not in tokens

    def test_goes_on_from_any_position(self, app, open_store):
        ids, rows, _ = all_rows(open_store(app.uri))
        for place in (0, 417, COUNT - 2):
            batch = open_store(app.uri).read(ids[place], 50)
            assert batch.ids.tolist() == ids[place + 1 : place + 51]
            np.testing.assert_array_equal(batch.vectors, rows[place + 1 : place + 51])
        assert not len(open_store(app.uri).read(ids[-1], 50))

    def test_gets_rows_by_id_in_the_order_asked_for(self, app, open_store):
        store, wanted = open_store(app.uri), app.rows()
        some = list(wanted)[:40:2]
        other = store_apps.ids(app.kind, COUNT + 5, COUNT + 6)
        asked = store.id_array([*some[:7], *other, *some[:6:-1]])
        there, found = store.get(asked)
        assert there.tolist() == [True] * 7 + [False] + [True] * 13
        np.testing.assert_array_equal(found, [wanted[one] for one in asked[there].tolist()])
        np.testing.assert_array_equal(store.has(asked), there)

    def test_a_changed_row_has_another_token(self, app, open_store):
        before = dict(zip(*all_rows(open_store(app.uri))[::2], strict=True))
        changed = store_apps.ids(app.kind, 10, 13)
        app.put(changed, vectors(3, 99))
        after = dict(zip(*all_rows(open_store(app.uri))[::2], strict=True))
        assert {one for one in before if before[one] != after[one]} == set(changed)

    def test_samples_are_drawn_by_seed(self, app, open_store):
        store, wanted = open_store(app.uri), app.rows()
        first, again, other = (open_store(app.uri).sample(200, seed) for seed in (1, 1, 2))
        assert len(set(first.ids.tolist())) == len(first) == 200
        np.testing.assert_array_equal(first.ids, again.ids)
        assert set(first.ids.tolist()) != set(other.ids.tolist())
        np.testing.assert_array_equal(first.vectors, [wanted[one] for one in first.ids.tolist()])
        assert len(store.sample(COUNT + 10, 0)) == COUNT


class TestWriting:
    def test_a_sibling_is_made_once(self, app, open_store):
        store = open_store(app.uri)
        made, found = store.sibling(NEW, META), store.sibling(NEW, META)
        assert str(made.uri) == str(found.uri) and made.dim == NEW
        assert made.metric == store.metric and made.id_kind == store.id_kind
        again = open_store(str(made.uri))
        assert again.meta["fingerprint"] == "abc123" and again.meta["source"] == app.uri
        with pytest.raises(UserError, match=f"{NEW} dimensions instead of 7"):
            store.sibling(7, META)

    def test_writing_is_idempotent(self, app, open_store):
        store = open_store(app.uri)
        target, batch = store.sibling(NEW, META), store.read(None, 100)
        for _ in range(2):
            done = target.write(
                batch.ids, plain_map(batch.vectors), TRANSLATED, batch.tokens, batch.extra
            )
            assert done.all()
        have = app.rows(target)
        assert sorted(map(str, have)) == sorted(map(str, batch.ids.tolist()))
        want = stored(app, plain_map(batch.vectors))
        np.testing.assert_allclose(
            [have[i] for i in batch.ids.tolist()], want, rtol=1e-6, atol=1e-6
        )
        versions = target.states(batch.ids)
        assert versions[batch.ids[0].item()] == (TRANSLATED, batch.tokens[0])

    def test_rows_of_the_application_stay(self, app, open_store):
        store = open_store(app.uri)
        target, batch = store.sibling(NEW, META), store.read(None, 60)
        own, mine = batch.ids[::20].tolist(), vectors(3, 5, NEW)
        app.put_new(target, own[:2], mine[:2])  # before our rows are there
        args = (batch.ids, plain_map(batch.vectors), TRANSLATED, batch.tokens, batch.extra)
        done = target.write(*args)
        assert batch.ids[~done].tolist() == own[:2]
        app.put_new(target, own[2:], mine[2:])  # and after they are
        assert batch.ids[~target.write(*args)].tolist() == own
        have = app.rows(target)
        np.testing.assert_allclose([have[one] for one in own], mine, rtol=1e-6, atol=1e-6)
        app.delete(own)
        assert target.orphans(store) == (pytest.approx([]), None) or not len(
            target.orphans(store)[0]
        )

    def test_a_reembedded_vector_is_not_replaced_by_a_translated_one(self, app, open_store):
        store = open_store(app.uri)
        target, batch = store.sibling(NEW, META), store.read(None, 50)
        new = vectors(50, 8, NEW)
        assert target.write(batch.ids, new, REEMBEDDED, batch.tokens, batch.extra).all()
        mapped = plain_map(batch.vectors)
        done = target.write(batch.ids, mapped, TRANSLATED, batch.tokens, batch.extra)
        assert not done.any()
        have = app.rows(target)
        np.testing.assert_allclose([have[i] for i in batch.ids.tolist()], new, rtol=1e-6, atol=1e-6)
        # But a row whose item has changed since is written.
        done = target.write(batch.ids, mapped, TRANSLATED, batch.tokens + 1, batch.extra)
        assert done.all()

    def test_only_what_is_missing_or_changed_is_read(self, app, tmp_path, open_store):
        store = open_store(app.uri)
        target = store.sibling(NEW, META)
        copy(store, target, plain_map, Journal(tmp_path / "journal.jsonl"))
        assert not len(store.read(missing_in=target))
        new, changed = (store_apps.ids(app.kind, *r) for r in ((COUNT, COUNT + 3), (40, 42)))
        app.put([*new, *changed], vectors(5, 12))
        gone = store_apps.ids(app.kind, 70, 74)
        app.delete(gone)
        store = open_store(app.uri)
        assert set(all_rows(store, missing_in=target)[0]) == {*new, *changed}
        assert set(target.orphans(store)[0].tolist()) == set(gone)


class TestSearching:
    @pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
    @pytest.mark.parametrize("store", ["postgres", "qdrant", "lance", "milvus"])
    def test_finds_the_nearest(self, make_app, store, metric, open_store):
        app = make_app(store, "int", metric)
        app.create()
        rows = vectors(800, 4) * np.linspace(0.5, 2, 800, dtype=np.float32)[:, None]
        app.put(store_apps.ids("int", 0, 800), rows)
        opened = open_store(app.uri)
        queries = vectors(20, 6)
        scores, ids = opened.search(queries, 10)
        have = app.rows()
        keys, matrix = np.array(list(have)), np.array(list(have.values()), np.float64)
        inner = queries.astype(np.float64) @ matrix.T
        want = {
            "ip": inner,
            "cosine": inner / np.linalg.norm(matrix, axis=1),
            "l2": -((queries[:, None] - matrix[None]) ** 2).sum(axis=2) / 2,
        }[metric]
        order = np.argsort(-want, axis=1)[:, :10]
        np.testing.assert_allclose(scores, np.take_along_axis(want, order, 1), rtol=1e-4, atol=1e-5)
        assert (ids == keys[order]).mean() > 0.99  # rows with equal scores may change places
        assert opened.metric == metric

    def test_of_one_version_only(self, app, open_store):
        store = open_store(app.uri)
        target, batch = store.sibling(NEW, META), store.read(None, 100)
        for version, half in ((TRANSLATED, slice(0, 50)), (REEMBEDDED, slice(50, 97))):
            extra = batch.take(np.isin(np.arange(100), np.arange(100)[half])).extra
            target.write(
                batch.ids[half], plain_map(batch.vectors[half]), version, batch.tokens[half], extra
            )
        target.build_index()
        scores, ids = target.search(vectors(2, 3, NEW), 60, only=REEMBEDDED)
        assert (np.sort(ids[:, :47], axis=1) == np.sort(batch.ids[50:97])).all()
        filler = -1 if app.kind == "int" else ""
        assert (ids[:, 47:] == filler).all() and np.isneginf(scores[:, 47:]).all()

    def test_recall_counts_what_the_index_finds(self, app, open_store):
        store, asked = open_store(app.uri), vectors(10, 31)
        assert recall(store, asked, 8) == 1
        whole = store.search

        def half(queries, k):
            found, ids = whole(queries, 2 * k)
            return found[:, ::2], ids[:, ::2]

        store.search = half
        assert recall(store, asked, 8) == 0.5


class TestPointer:
    def test_switch_and_undo(self, app, open_store):
        store = open_store(app.uri)
        target, pointer = store.sibling(NEW, META), store.pointer()
        assert pointer.current()["store"] == app.uri and pointer.current()["generation"] == 0
        to = {"store": str(target.uri), "fingerprint": "abc123", "calibration": "work/calibration"}
        pointer.switch(to, 0)
        now = open_store(app.uri).pointer().current()
        assert {name: now[name] for name in to} == to and now["generation"] == 1
        back = pointer.undo()
        assert back["store"] == app.uri and back["generation"] == 2
        assert pointer.undo()["store"] == str(target.uri)

    def test_whoever_looked_before_another_switch_is_refused(self, app, open_store):
        first, second = open_store(app.uri).pointer(), open_store(app.uri).pointer()
        with pytest.raises(UserError, match="never switched"):
            first.undo()
        first.switch({"store": "qdrant://a/b"}, 0)
        for expect in (0, 2):
            with pytest.raises(UserError, match=f"generation 1, not {expect}"):
                second.switch({"store": "qdrant://a/c"}, expect)
        assert not second.swap({**second.current(), "store": "qdrant://a/c"}, 0)
        assert first.current()["store"] == "qdrant://a/b"
        with pytest.raises(UserError, match="secret"):
            first.switch({"store": "qdrant://a/b?api_key=hunter2"}, 1)


class TestMigration:
    # Stores with integers as ids are tried by the commands.
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "app",
        [("postgres", "uuid"), ("qdrant", "uuid"), ("lance", "text"), ("milvus", "text")],
        indirect=True,
        ids="-".join,
    )
    def test_the_application_writes_meanwhile(self, app, tmp_path, open_store):
        store, writer = open_store(app.uri), Writer(app)
        target = store.sibling(NEW, META)

        def mapped(rows):
            writer.step()
            return plain_map(rows)

        now = migrate(store, target, mapped, tmp_path / "journal.jsonl", limit=128)
        assert not writer.steps
        assert now["store"] == str(target.uri) and now["generation"] == 1
        assert len(app.rows()) == COUNT + 500 - 100
        assert_agree(app, target)
        # Nothing is left to do, and the same call reports that.
        assert catch_up(store, target, plain_map).written == 0
        assert migrate(store, target, plain_map, tmp_path / "journal.jsonl") == now

    def test_other_columns_come_along(self, make_app, tmp_path, open_store):
        pytest.importorskip("qdrant_client")
        app = make_app("qdrant").filled()
        store = open_store(app.uri)
        target = store.sibling(NEW, META)
        migrate(store, target, plain_map, tmp_path / "journal.jsonl")
        app.db.set_payload("items", {"title": "changed"}, points=[5])
        assert catch_up(store, target, plain_map).written == 1
        titles = {p.id: p.payload["title"] for p in app.db.scroll(target.name, limit=9999)[0]}
        assert titles.pop(5) == "changed"
        assert titles == {one: f"t{one}" for one in app.rows() if one != 5}

    def test_a_journal_of_another_migration_is_refused(self, make_app, tmp_path, open_store):
        app = make_app("lance").filled()
        store = open_store(app.uri)
        target = store.sibling(NEW, META)
        migrate(store, target, plain_map, tmp_path / "journal.jsonl", switch=False)
        with pytest.raises(UserError, match="give another journal"):
            migrate(
                store,
                store.sibling(NEW, {"fingerprint": "other"}),
                plain_map,
                tmp_path / "journal.jsonl",
            )

    def test_a_failed_check_leaves_the_pointer(self, make_app, tmp_path, open_store):
        app = make_app("postgres").filled()
        store = open_store(app.uri)

        def check(source, target):
            raise UserError("recall is 0.3")

        with pytest.raises(UserError, match="recall is 0.3"):
            migrate(
                store, store.sibling(NEW, META), plain_map, tmp_path / "journal.jsonl", check=check
            )
        assert store.pointer().current()["generation"] == 0

    @pytest.mark.slow
    @pytest.mark.parametrize("store", ["postgres", "lance"])
    def test_the_application_writes_in_its_own_thread(self, make_app, store, tmp_path, open_store):
        app, other = make_app(store).filled(), make_app(store)
        opened, writer = open_store(app.uri), Writer(other)
        target = opened.sibling(NEW, META)

        def write():
            while writer.steps:
                writer.step()

        thread = threading.Thread(target=write)
        thread.start()
        migrate(opened, target, plain_map, tmp_path / "journal.jsonl", limit=32, switch=False)
        thread.join(LONG)
        assert not thread.is_alive()
        migrate(opened, target, plain_map, tmp_path / "journal.jsonl", limit=32)
        assert_agree(app, target)
