"""The commands on stores: plan, apply, status, switch and back, with real engines."""

import json

import numpy as np
import pytest
from store_apps import COUNT, NEW, OLD, ids, vectors

from fct_jax import cli
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade import fit
from fct_jax.upgrade.stores import NEW as REEMBEDDED

STORES = ["postgres", "qdrant", "lance", "milvus"]


def new_model(rows):
    """The new model's vectors of items by their old ones: (n, OLD) to (n, NEW) float32."""
    weights = np.random.default_rng(9).normal(size=(OLD, NEW)).astype(np.float32)
    rows = np.asarray(rows, np.float32)
    made = rows @ weights + 0.2 * np.tanh(3 * rows @ weights)
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="session")
def map_folder(tmp_path_factory):
    """A map of the tests' old model to the new one, fitted on items of the application's."""
    folder = tmp_path_factory.mktemp("map") / "map"
    old = vectors(COUNT, 1)[:600]
    some = [EmbeddingSet.of(rows, ids("int", 0, 600)) for rows in (old, new_model(old))]
    fit(*some, method="ridge", metric="cosine", out=folder)
    return folder


def run(*words) -> int:
    """The exit code of a command."""
    return cli.main([str(word) for word in words])


def told(capsys, *words):
    """What a command tells as JSON."""
    capsys.readouterr()
    assert run(*words, "--json") == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("store", STORES)
def test_the_way_there_and_back(store, make_app, open_store, map_folder, tmp_path, capsys):
    app, upgrade = make_app(store).filled(), tmp_path / "upgrade"
    new = tmp_path / "new"
    have = app.rows()
    keys = np.array(sorted(have))
    EmbeddingSet.of(new_model(np.stack([have[one] for one in keys.tolist()])), keys).write(new)
    made = told(capsys, "plan", upgrade, "--map", map_folder, "--gallery", app.uri,
                "--budget-items", 300)  # fmt: skip
    assert (made["items"], made["count"], made["gallery"]) == (300, COUNT, app.uri)
    assert run("apply", upgrade) == 0
    assert told(capsys, "status", upgrade)["state"] == "translated"
    assert run("apply", upgrade, "--reembed", new, "--batch-items", 128) == 0
    found = told(capsys, "status", upgrade)
    assert (found["state"], found["translated"], found["reembedded"]) == ("finished", COUNT, 300)
    assert found["readers"].startswith(app.uri) and found["recall"] > 0.9
    assert found["recall_half"] > 0.9
    now = told(capsys, "switch", upgrade)
    assert now["generation"] == 1 and now["previous"]["store"] == app.uri
    target = open_store(now["store"])
    states = target.states(keys)
    assert sum(version == REEMBEDDED for version, _ in states.values()) == 300
    assert told(capsys, "status", upgrade)["readers"].startswith(now["store"])
    assert told(capsys, "rollback", upgrade, "--to", 1)["reembedded"] == 128
    states = target.states(keys)
    assert sum(version == REEMBEDDED for version, _ in states.values()) == 128
    assert told(capsys, "switch", upgrade, "--back")["store"] == app.uri
    assert run("switch", upgrade, "--back") == 1
    assert "readers follow" in capsys.readouterr().err
