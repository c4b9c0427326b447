"""Stores: databases that hold vectors, named by URI, read by id and written beside.

    postgresql://user@host/db?table=items&id=id&vector=embedding
    qdrant://host:6333/items        qdrant:///folder#items        qdrant://:memory:/items
    lancedb:///folder#items         s3://bucket/folder#items
    milvus://host:19530/items       milvus:///file.db#items

Passwords and keys come from the environment or the usual files (PGPASSWORD, ~/.pgpass,
QDRANT_API_KEY, MILVUS_TOKEN, AWS_*), never from a URI.

    store = open_store("qdrant://localhost:6333/items")
    store.count(), store.dim, store.metric
"""

import importlib

from fct_jax.errors import UserError, unknown
from fct_jax.upgrade.stores.base import NEW, TRANSLATED, Batch, Store
from fct_jax.upgrade.stores.pointer import Pointer
from fct_jax.upgrade.stores.uri import is_store, parse

__all__ = ["NEW", "STORES", "TRANSLATED", "Batch", "Pointer", "Store", "is_store", "open_store"]

# scheme -> the class that takes the parsed URI, as module:name
STORES = {
    "postgresql": "fct_jax.upgrade.stores.postgres:PostgresStore",
    "qdrant": "fct_jax.upgrade.stores.qdrant:QdrantStore",
    "lancedb": "fct_jax.upgrade.stores.lance:LanceStore",
    "s3": "fct_jax.upgrade.stores.lance:LanceStore",
    "milvus": "fct_jax.upgrade.stores.milvus:MilvusStore",
}


def open_store(uri: str) -> Store:
    """Open the store that a URI names.

    The scheme is one of `STORES`, or ``module:name`` of a class or function of your own that
    takes the parsed URI: ``mycompany.stores:Elastic://host/items``.

    Raises UserError if the scheme is unknown, the URI carries a secret, the client library is
    missing, the server does not answer, or nothing of that name is there.
    """
    parsed = parse(uri)
    target = STORES.get(parsed.scheme, parsed.scheme)
    module, mark, name = target.partition(":")
    if not mark:
        raise unknown("kind of store", parsed.scheme, STORES)
    try:
        made = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{parsed}: cannot import {target}: {error}") from None
    return made(parsed)
