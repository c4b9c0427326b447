"""LanceDB in a bucket of a real S3 server: read, written beside, switched."""

import json

import numpy as np
import pytest
import servers
from store_apps import NEW, LanceApp, assert_agree, ids, new_model, plain_map, vectors

from fct_jax import cli
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade.stores.migrate import migrate

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]


def test_a_table_in_a_bucket(tmp_path, monkeypatch, open_store, capsys):
    pytest.importorskip("lancedb", reason="LanceDB: pip install 'fct_jax[lance]'")
    with servers.seaweedfs(tmp_path, "vectors") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        app = LanceApp("s3://vectors/db", "int")
        app.create()
        app.put(ids("int", 0, 400), vectors(400, 1))
        store = open_store(app.uri)
        target = store.sibling(NEW, {"fingerprint": "abc123"})
        now = migrate(store, target, plain_map, tmp_path / "journal.jsonl", limit=100)
        assert now["store"] == str(target.uri) == f"{app.uri.partition('#')[0]}#items__abc123"
        app.put(ids("int", 390, 410), vectors(20, 2))
        app.delete(ids("int", 3, 6))
        migrate(store, target, plain_map, tmp_path / "journal.jsonl", limit=100)
        assert_agree(app, target)
        assert open_store(now["store"]).count() == 407
        assert store.pointer().undo()["store"] == app.uri
        np.testing.assert_array_equal(
            store.sample(50, 3).ids, open_store(app.uri).sample(50, 3).ids
        )
        shown = repr(store) + (tmp_path / "journal.jsonl").read_text() + repr(now)
        assert environment["AWS_SECRET_ACCESS_KEY"] not in shown
        every_command(app, open_store, tmp_path, capsys)


def every_command(app, open_store, tmp_path, capsys):
    """Run every command on the table in the bucket: there, and back."""

    def told(*words):
        capsys.readouterr()
        assert cli.main([*map(str, words), "--json"]) in (cli.DONE, cli.LOOK), words
        return json.loads(capsys.readouterr().out)

    have = app.rows()
    keys = np.array(sorted(have))
    new = EmbeddingSet.of(new_model(np.stack([have[one] for one in keys.tolist()])), keys)
    new.write(tmp_path / "new")
    assert told("doctor", app.uri, "--sample", 100)["looked_at"] == 100
    words = (app.uri, tmp_path / "new", "--method", "ridge", "--sample", 300)
    made = told("fit", *words, "--out", tmp_path / "map")
    assert made["pairs"] + made["pairs_held_out"] == 300
    upgrade = tmp_path / "upgrade"
    words = ("--map", tmp_path / "map", "--gallery", app.uri, "--budget-items", 50)
    assert told("plan", upgrade, *words)["items"] == 50
    told("apply", upgrade, "--reembed", tmp_path / "new")
    found = told("status", upgrade)
    assert (found["state"], found["translated"]) == ("finished", len(have))
    now = told("switch", upgrade)
    assert open_store(now["store"]).count() == len(have)
    assert told("rollback", upgrade)["reembedded"] == 50
    assert open_store(app.uri).pointer().current()["store"] == app.uri
