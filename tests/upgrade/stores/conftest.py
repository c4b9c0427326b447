"""Each kind of store with a running server, and an application that owns a collection in it."""

import contextlib

import pytest
import servers
from store_apps import APPS, COUNT, ids, new_model, vectors

from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade import fit, stores

KINDS = [
    ("postgres", "int"),
    ("postgres", "uuid"),
    ("postgres", "text"),
    ("qdrant", "int"),
    ("qdrant", "uuid"),
    ("lance", "int"),
    ("lance", "text"),
    ("milvus", "int"),
    pytest.param(("milvus", "text"), marks=pytest.mark.slow),
]


class Places:
    """The place of each kind of store; its server is started on first use."""

    def __init__(self, folder, stack):
        self._folder, self._stack, self._found = folder, stack, {}

    def __call__(self, kind: str) -> str:
        if kind not in self._found:
            self._found[kind] = getattr(self, f"_{kind}")()
        return self._found[kind]

    def _postgres(self):
        pytest.importorskip("psycopg", reason="PostgreSQL: pip install 'fct_jax[pgvector]'")
        return self._stack.enter_context(servers.postgres())

    def _qdrant(self):
        pytest.importorskip("qdrant_client", reason="Qdrant: pip install 'fct_jax[qdrant]'")
        return "qdrant://:memory:"

    def _lance(self):
        pytest.importorskip("lancedb", reason="LanceDB: pip install 'fct_jax[lance]'")
        folder = self._folder / "lance"
        folder.mkdir()
        return f"lancedb://{folder}"

    def _milvus(self):
        where, _ = self._stack.enter_context(servers.milvus_lite(self._folder))
        return f"milvus://{where}"


@pytest.fixture(scope="session")
def map_folder(tmp_path_factory):
    """Fit a map from the tests' old model to the new one on items of the application."""
    folder = tmp_path_factory.mktemp("map") / "map"
    old = vectors(COUNT, 1)[:600]
    some = [EmbeddingSet.of(rows, ids("int", 0, 600)) for rows in (old, new_model(old))]
    fit(*some, method="ridge", metric="cosine", out=folder)
    return folder


@pytest.fixture(scope="session")
def places(tmp_path_factory):
    """Return a mapping from kinds of store to the URIs of their places."""
    with contextlib.ExitStack() as stack:
        yield Places(tmp_path_factory.mktemp("stores"), stack)


@pytest.fixture(params=KINDS, ids="-".join)
def app(request, places):
    """Return an application with a filled store, for each kind of store and id."""
    store, kind = request.param
    found = APPS[store](places(store), kind).filled()
    yield found
    found.close()


@pytest.fixture
def make_app(places):
    """Return a function that makes an application from store, kind of ids and metric."""
    made = []

    def make(store: str, kind: str = "int", metric: str = "cosine"):
        made.append(APPS[store](places(store), kind, metric))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def open_store():
    """Return `stores.open_store`, and close its stores at the end of the test."""
    with contextlib.ExitStack() as stack:

        def opened(uri):
            store = stores.open_store(uri)
            if ":memory:" not in uri:
                stack.enter_context(store)
            return store

        yield opened
