"""Vector databases ("stores"), which are named by URI, read by id, and copied into a sibling.

    postgresql://user@host/db?table=items&id=id&vector=embedding
    qdrant://host:6333/items        qdrant:///folder#items        qdrant://:memory:/items
    lancedb:///folder#items         s3://bucket/folder#items
    milvus://host:19530/items       milvus:///file.db#items

Passwords and keys come from the environment or the usual files (PGPASSWORD, ~/.pgpass,
QDRANT_API_KEY, MILVUS_TOKEN, AWS_*), never from a URI. For example:

    store = open_store("qdrant://localhost:6333/items")
    store.count(), store.dim, store.metric
"""

import dataclasses

from fct_jax.errors import unknown
from fct_jax.runtime.plugins import imported, is_import_name
from fct_jax.upgrade.stores.base import NEW, TRANSLATED, Batch, Store
from fct_jax.upgrade.stores.pointer import Pointer
from fct_jax.upgrade.stores.uri import parse

__all__ = ["NEW", "STORES", "TRANSLATED", "Batch", "Pointer", "Store", "is_store", "open_store"]


@dataclasses.dataclass(frozen=True)
class StoreKind:
    """A row of `STORES`.

    Attributes:
      opener: ``module:name`` of the class that takes the parsed URI.
      named: whether a URI of this scheme names a store only if it has a ``#name``: without one,
        ``s3://bucket/folder`` is a folder of Parquet files.
    """

    opener: str
    named: bool = False


_HERE = "fct_jax.upgrade.stores"

# scheme -> kind of store
STORES = {
    "postgresql": StoreKind(f"{_HERE}.postgres:PostgresStore"),
    "postgres": StoreKind(f"{_HERE}.postgres:PostgresStore"),
    "qdrant": StoreKind(f"{_HERE}.qdrant:QdrantStore"),
    "lancedb": StoreKind(f"{_HERE}.lance:LanceStore"),
    "s3": StoreKind(f"{_HERE}.lance:LanceStore", named=True),
    "milvus": StoreKind(f"{_HERE}.milvus:MilvusStore"),
}


def is_store(text) -> bool:
    """Return whether a text is the URI of a store rather than of a file or folder.

    >>> is_store("s3://bucket/folder#table"), is_store("s3://bucket/folder")
    (True, False)
    """
    scheme, mark, rest = str(text).partition("://")
    if not mark or is_import_name(scheme):
        return bool(mark)
    kind = STORES.get(scheme)
    return kind is not None and (not kind.named or bool(rest.partition("#")[2]))


def open_store(uri) -> Store:
    """Open the store that a URI names; a `Store` is returned unchanged.

    The scheme is one of `STORES`, or ``module:name`` of a class or function of your own that
    takes the parsed URI: ``mycompany.stores:Elastic://host/items``.

    Raises UserError if the scheme is unknown, the URI carries a secret, the client library is
    missing, the server does not answer, or there is no store of that name.

    Example::

        store = open_store("qdrant://localhost:6333/items")
    """
    if isinstance(uri, Store):
        return uri
    parsed = parse(uri)
    if is_import_name(parsed.scheme):
        return imported(parsed.scheme, "store")(parsed)
    if parsed.scheme not in STORES:
        raise unknown("kind of store", parsed.scheme, STORES)
    return imported(STORES[parsed.scheme].opener, "store")(parsed)
