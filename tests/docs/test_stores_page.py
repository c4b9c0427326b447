"""docs/stores.md: its commands are run in each real store, and its service answers meanwhile."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import doc_blocks
import numpy as np
import pytest
import servers
from patience import LONG
from store_apps import APPS, COUNT, OLD, ids, plain_map, vectors

from fct_jax import upgrade
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade.migration.journal import Journal

PAGE = "docs/stores.md"
STORES = {"postgres": "PostgreSQL", "qdrant": "Qdrant", "lance": "LanceDB", "milvus": "Milvus"}
SERVED = ["postgres", "lance", "milvus"]  # usable by several processes, unlike local Qdrant
HELPERS = Path(__file__).parents[1] / "helpers"

# The models of the service: a text is an item's number, and its vectors are known.
MODELS = """
import sys
sys.path.insert(0, {helpers!r})
import time
import numpy as np
from store_apps import COUNT, ids, vectors
from fct_jax import load_map

OLD = dict(zip(ids("int", 0, COUNT), vectors(COUNT, 1)))
h = load_map({map!r})
NEW = dict(zip(OLD, h.transform(np.stack(list(OLD.values())))[0]))


def model(vectors):
    def embed(texts):
        time.sleep({seconds})  # otherwise the service would keep a core busy
        return np.stack([vectors[int(text)] for text in texts])

    return embed


MODELS = {{None: model(OLD), "old": model(OLD), "new": model(NEW)}}
QUERIES = [(str(one), one) for one in list(OLD)[::7]]
"""


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Make a current folder with a map, the service of the page and its models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    old = vectors(COUNT, 1)[:600]
    new = plain_map(old)
    new /= np.linalg.norm(new, axis=1, keepdims=True)
    sets = [
        EmbeddingSet.of(rows, ids("int", 0, 600), meta={"fingerprint": name})
        for name, rows in (("old", old), ("new", new.astype(np.float32)))
    ]
    upgrade.fit(*sets, method="ridge", metric="cosine", out="map")
    models = MODELS.format(helpers=str(HELPERS), map=str(tmp_path / "map"), seconds=0.03)
    Path("my_models.py").write_text(models)
    doc_blocks_of("A service that goes on answering")
    return tmp_path


def doc_blocks_of(heading):
    return doc_blocks.write_module(doc_blocks.section(PAGE, f"## {heading}"))


def commands(store, uri):
    """Return the commands of a store's section, with the gallery of the test."""
    found = doc_blocks.commands(doc_blocks.section(PAGE, f"### {STORES[store]}"))
    assert [words[0] for words in found] == [
        "doctor",
        "plan",
        "apply",
        "status",
        "switch",
        "switch",
    ]
    return [[uri if "://" in word else word for word in words] for words in found]


@contextlib.contextmanager
def running(store, folder):
    """Context of an application's store with COUNT rows."""
    with contextlib.ExitStack() as stack:
        place = {
            "postgres": lambda: stack.enter_context(servers.postgres()),
            "qdrant": lambda: "qdrant://:memory:",
            "lance": lambda: f"lancedb://{folder}/vectors",
            "milvus": lambda: "milvus://" + stack.enter_context(servers.milvus_lite(folder))[0],
        }[store]()
        app = APPS[store](place, "int").filled()
        yield app
        app.close()


def needs(store):
    clients = {"postgres": "psycopg", "qdrant": "qdrant_client", "lance": "lancedb"}
    name = clients.get(store, "pymilvus")
    pytest.importorskip(name, reason=f"{name} is not installed")


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("store", STORES)
def test_the_ten_minutes(store, world, monkeypatch):
    """Each store's commands end well; a service in this process answers at every step."""
    needs(store)
    with running(store, world) as app:
        import service

        served, append = service.Service(app.uri), Journal.append

        def answering(journal, kind, **values):
            for text, wanted in service.QUERIES[:3]:
                served.answer(text, wanted)
            return append(journal, kind, **values)

        monkeypatch.setattr(Journal, "append", answering)
        *there, back = commands(store, app.uri)
        for words in there:
            assert doc_blocks.run(words) in ((0, 2) if words[0] == "doctor" else (0,)), words
        for text, wanted in service.QUERIES[:20]:
            served.answer(text, wanted)
        assert served.now["generation"] == 1 and served.now["store"] != app.uri
        assert doc_blocks.run(back) == 0
        for text, wanted in service.QUERIES[:20]:
            served.answer(text, wanted)
        assert served.now["generation"] == 2 and served.now["store"] == app.uri
        assert served.failures == 0, served.reasons
        assert min(served.answers.values()) >= 20
        for opened in served.stores.values():
            opened.close()
    sys.modules.pop("service"), sys.modules.pop("my_models")


@pytest.mark.slow(minutes=1)
@pytest.mark.multiprocess
@pytest.mark.parametrize("store", SERVED)
def test_a_service_answers_while_apply_is_killed(store, world):
    """The service is a process of its own, and so is apply, which is killed twice and goes on."""
    needs(store)
    path = os.pathsep.join([str(doc_blocks.REPOSITORY), str(world)])
    settings = {"env": {**os.environ, "PYTHONPATH": path}, "cwd": world}

    def start(*words, **more):
        return subprocess.Popen([sys.executable, *map(str, words)], **settings, **more)

    with running(store, world) as app:
        _, plan, apply, _, there, back = commands(store, app.uri)
        said = world / "service.log"

        def waits_for(text):
            until = time.monotonic() + LONG
            while text not in said.read_text():
                assert service.poll() is None and time.monotonic() < until, said.read_text()
                time.sleep(0.1)

        with said.open("w") as log:
            service = start("service.py", app.uri, stdout=log, stderr=log)
        try:
            waits_for("generation 0")
            assert doc_blocks.run(plan) == 0
            for _ in range(2):
                process = start("-m", "fct_jax", *apply)
                journal, before = Path("upgrade/journal.jsonl"), time.monotonic()
                size = journal.stat().st_size if journal.exists() else 0
                while process.poll() is None and time.monotonic() - before < LONG:
                    if journal.exists() and journal.stat().st_size > size:
                        process.kill()
                    time.sleep(0.01)
                process.wait(timeout=LONG)
            for words in (apply, there):
                assert doc_blocks.run(words) == 0
            waits_for("generation 1")
            assert doc_blocks.run(back) == 0
            waits_for("generation 2")
        finally:
            service.terminate()
            service.wait(timeout=LONG)
        assert said.read_text().splitlines()[-1] == "failures 0", said.read_text()[-2000:]
        assert len(said.read_text().splitlines()) < 10  # no store's client fills a service's log


@pytest.mark.slow
def test_the_example_migrates_and_switches(tmp_path, monkeypatch, capsys):
    pytest.importorskip("lancedb", reason="lancedb is not installed (extra lance)")
    from fct_jax.upgrade.stores import open_store

    monkeypatch.chdir(tmp_path)
    app = APPS["lance"](f"lancedb://{tmp_path / 'vectors'}", "int").filled()
    old = vectors(400, 2)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(OLD, OLD)))[0]
    upgrade.fit(old, (old @ turn).astype(np.float32), method="procrustes", out="map")
    (block,) = doc_blocks.blocks(doc_blocks.section(PAGE, "## From Python"), "python")
    block = block.replace("lancedb:///data/vectors#items", app.uri)
    before = open_store(app.uri)
    exec(block, {})
    current = capsys.readouterr().out.splitlines()[-1]
    assert current != app.uri
    with open_store(current) as written:
        assert written.count() == before.count() and written.dim == OLD
        sample = before.sample(20)
        moved = written.fetch(sample.ids)
        found = np.stack([moved[id_] for id_ in sample.ids.tolist()])
        np.testing.assert_allclose(found, sample.vectors @ turn, atol=1e-3)
    assert Path("work/journal.jsonl").is_file()
