"""Upgrades in place: a second vector in the same rows, on the real engines."""

import numpy as np
import pytest
from store_apps import (
    COUNT,
    NEW,
    OLD,
    QdrantApp,
    Writer,
    ids,
    new_model,
    plain_map,
    stored,
    vectors,
)

from fct_jax import cli, load_map
from fct_jax.errors import UserError
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade.migration.journal import Journal
from fct_jax.upgrade.stores import NEW as REEMBEDDED
from fct_jax.upgrade.stores import TRANSLATED
from fct_jax.upgrade.stores.migrate import catch_up, migrate

META = {"fingerprint": "abc123", "in_place": True}
STORES = ["postgres", *(pytest.param(one, marks=pytest.mark.slow) for one in ("qdrant", "lance"))]


def run(*words) -> int:
    """Run a command; return its exit code."""
    return cli.main([str(word) for word in words])


class NamedApp(QdrantApp):
    """An application whose points have one named vector."""

    def __init__(self, *settings):
        super().__init__(*settings)
        self.uri += "?vector=text"

    def create(self, dim=OLD):
        from qdrant_client import models

        super().create()
        self.db.delete_collection("items")
        params = models.VectorParams(size=dim, distance=models.Distance.COSINE)
        self.db.create_collection("items", vectors_config={"text": params})

    def put(self, ids, rows, more=None):
        from qdrant_client import models

        points = []
        for one, row in zip(ids, rows, strict=True):
            vector = {"text": row.tolist(), **(more[one] if more else {})}
            points.append(models.PointStruct(id=one, vector=vector, payload={"title": f"t{one}"}))
        self.db.upsert("items", points)

    def put_second(self, target, ids, rows):
        have = self.rows()
        second = {one: {target.vector: row.tolist()} for one, row in zip(ids, rows, strict=True)}
        self.put(ids, [have[one] for one in ids], second)

    def rows(self):
        found, _ = self.db.scroll("items", limit=10**6, with_vectors=["text"])
        return {point.id: np.array(point.vector["text"], np.float32) for point in found}


@pytest.fixture(params=STORES)
def app(request, make_app, places):
    """Return an application with a filled store that can hold a second vector."""
    if request.param == "qdrant":
        return NamedApp(places("qdrant"), "int").filled()
    return make_app(request.param).filled()


def agree(app, target, mapped=plain_map):
    """Assert that each row's second vector belongs to its first."""
    rows = app.rows()
    keys = target.id_array(sorted(rows))
    there, have = target.get(keys)
    assert there.all() and target.count() == len(rows)
    want = stored(app, mapped(np.stack([rows[one] for one in keys.tolist()])))
    np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-5)


def test_the_application_writes_meanwhile(app, open_store, tmp_path):
    store, writer = open_store(app.uri), Writer(app)
    target = store.sibling(NEW, META)
    assert target.in_place and str(target.uri) == str(store.sibling(NEW, META).uri)
    assert (target.dim, target.metric, target.count()) == (NEW, store.metric, 0)
    with pytest.raises(UserError, match=f"{NEW} dimensions instead of 7"):
        store.sibling(7, META)

    def mapped(rows):
        writer.step()
        return plain_map(rows)

    now = migrate(store, target, mapped, tmp_path / "journal.jsonl", limit=200)
    while writer.steps:
        writer.step()
    migrate(store, target, plain_map, tmp_path / "journal.jsonl")
    assert len(app.rows()) == COUNT + 400 and now["store"] == str(target.uri)
    agree(app, target)
    assert catch_up(store, target, plain_map).written == 0
    again = open_store(now["store"])
    assert again.in_place and again.meta["fingerprint"] == "abc123"
    # The old vectors are as they were, and are searched as before.
    batch, have = store.read(None, 10), app.rows()
    np.testing.assert_array_equal(batch.vectors, [have[one] for one in batch.ids.tolist()])
    asked, place = batch.vectors[3:4], batch.ids[3]
    assert store.search(asked, 1)[1][0, 0] == place
    assert again.search(plain_map(asked), 1)[1][0, 0] == place


def test_writes_are_guarded(app, open_store):
    store = open_store(app.uri)
    target = store.sibling(NEW, META)
    batch = store.read(None, 60)
    new, mapped = vectors(60, 8, NEW), plain_map(batch.vectors)
    for _ in range(2):
        assert target.write(batch.ids, new, REEMBEDDED, batch.tokens, batch.extra).all()
    assert not target.write(batch.ids, mapped, TRANSLATED, batch.tokens, batch.extra).any()
    args = (batch.ids, mapped, TRANSLATED, batch.tokens, batch.extra)
    assert target.write(*args, over=True).all()
    # The application's own second vectors stay.
    own = batch.ids[:3].tolist()
    app.put_second(target, own, vectors(3, 9, NEW))
    assert sorted(target.of_app().tolist()) == sorted(own)
    assert batch.ids[~target.write(*args, over=True)].tolist() == own
    _, have = target.get(batch.ids[:3])
    np.testing.assert_allclose(have, vectors(3, 9, NEW), rtol=1e-5, atol=1e-6)
    # Deleting removes the second vectors only, and a deleted row stays away.
    target.delete(batch.ids[5:8].tolist())
    assert store.has(batch.ids).all() and target.count() == 57
    gone = batch.ids[20:22].tolist()
    app.delete(gone)
    target.write(*args)
    assert not store.has(np.array(gone)).any() and target.count() == 58


def test_a_vector_that_changes_before_it_is_written(make_app, open_store):
    """PostgreSQL compares the old vector in the statement that writes the new one."""
    app = make_app("postgres").filled()
    store = open_store(app.uri)
    target = store.sibling(NEW, META)
    batch = store.read(None, 20)
    app.put(batch.ids[4:6].tolist(), vectors(2, 50))
    args = (batch.ids, plain_map(batch.vectors), TRANSLATED, batch.tokens)
    assert (~target.write(*args)).nonzero()[0].tolist() == [4, 5]
    assert target.count() == 18


def test_the_commands(app, open_store, map_folder, tmp_path, monkeypatch):
    upgrade, have = tmp_path / "upgrade", app.rows()
    keys = np.array(sorted(have))
    new = new_model(np.stack([have[one] for one in keys.tolist()]))
    EmbeddingSet.of(new, keys).write(tmp_path / "new")
    words = ("--map", map_folder, "--gallery", app.uri)
    assert run("plan", upgrade, *words, "--budget-items", 300, "--in-place") == 0
    assert run("apply", upgrade, "--reembed", tmp_path / "new", "--batch-items", 128) == 0
    assert run("switch", upgrade) == 0
    pointer = open_store(app.uri).pointer()
    target = open_store(pointer.current()["store"])
    assert target.in_place and target.count() == COUNT
    states = target.states(keys)
    assert sum(version == REEMBEDDED for version, _ in states.values()) == 300
    assert run("status", upgrade) == 0
    app.put(ids("int", 30, 33), vectors(3, 4))
    assert run("rollback", upgrade, "--to", 0) == 0
    assert run("apply", upgrade) == 0
    h = load_map(map_folder)
    agree(app, target, lambda rows: h.transform(rows)[0])
    assert run("switch", upgrade, "--back") == 0
    assert pointer.current()["store"] == app.uri


def test_killed_in_between(app, open_store, tmp_path, monkeypatch):
    """A write that is cut off anywhere is repeated by the next run."""
    store = open_store(app.uri)
    target, left = store.sibling(NEW, META), [4]
    append = Journal.append

    def dying(journal, kind, **values):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return append(journal, kind, **values)

    monkeypatch.setattr(Journal, "append", dying)
    journal = tmp_path / "journal.jsonl"
    with pytest.raises(KeyboardInterrupt):
        migrate(store, target, plain_map, journal, limit=200)
    assert 0 < target.count() < COUNT
    app.put(ids("int", 0, 5), vectors(5, 2))
    migrate(open_store(app.uri), open_store(str(target.uri)), plain_map, journal, limit=200)
    agree(app, target)


def test_where_there_is_no_second_vector(make_app, open_store):
    app = make_app("milvus").filled()
    with pytest.raises(UserError, match="not supported in Milvus"):
        open_store(app.uri).sibling(NEW, META)
    app = make_app("qdrant").filled()
    with pytest.raises(UserError, match="its vector has no name"):
        open_store(app.uri).sibling(NEW, META)


def test_long_transactions_do_not_block_everybody(make_app, open_store, monkeypatch):
    monkeypatch.setattr("fct_jax.upgrade.stores.postgres_write._LOCK", 1)
    app, other = make_app("postgres").filled(), make_app("postgres")
    store = open_store(app.uri)
    with other.db.transaction():
        other.db.execute("select count(*) from items")
        with pytest.raises(store.errors, match="lock timeout"):
            store.sibling(NEW, META)
    assert store.sibling(NEW, META).dim == NEW and store.dim == OLD
