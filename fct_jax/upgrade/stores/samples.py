"""Bounded samples drawn in stores, for steps that read whole galleries if they are files."""

import contextlib
import re

import numpy as np

from fct_jax.runtime.progress import console
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.storage.named import vectors_of
from fct_jax.upgrade.checks.guards import sound
from fct_jax.upgrade.galleries.base import Gallery, Options
from fct_jax.upgrade.galleries.embedding_set import SetTarget
from fct_jax.upgrade.inputs import paired
from fct_jax.upgrade.stores import Store, is_store, open_store
from fct_jax.upgrade.stores.migrate import one_line

SAMPLE = 20_000  # default number of items for assessing a store or fitting a map to it
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_METRICS = ("cosine", "l2")  # metrics that an EmbeddingSet's meta.json may name


class Drawn(Gallery):
    """Rows of a store in memory: a sample, and the rows of some further ids.

    Attributes:
      store: the store that the rows are from.
    """

    writer = SetTarget
    form = "store"

    def __init__(self, store: Store, n: int = SAMPLE, seed: int = 0, also=()):
        """Draw n rows, or all, and take the existing rows of the arrays of ids in ``also``."""
        drawn = store.sample(n, seed)
        wanted = [possible(store, np.asarray(ids)) for ids in also]
        wanted = [ids for ids in wanted if len(ids)]
        ids, vectors = drawn.ids, drawn.vectors
        if wanted:
            more = np.setdiff1d(np.concatenate(wanted), ids)
            there, found = store.get(store.id_array(more.tolist()))
            ids = np.concatenate([ids, store.id_array(more[there].tolist())])
            vectors = np.concatenate([vectors, found])
        order = np.argsort(ids, kind="stable")
        super().__init__("", ids[order], store.dim, space_of(store))
        self.options = Options(on_bad="quarantine")
        self.store, self._vectors = store, np.asarray(vectors, np.float32)[order]

    @property
    def name(self) -> str:
        return str(self.store.uri)

    def read_stored(self, start, stop):
        return self._vectors[start:stop]

    def rows(self, rows):
        return self._vectors[rows] if not len(self._gone) else super().rows(rows)

    def place(self, row):
        return f"id {self.ids[self.served(row)]}"


def space_of(store: Store) -> dict:
    """Return the known facts about a store's vectors, under the keys of ``meta.json``."""
    known = {k: store.meta[k] for k in ("fingerprint", "model", "prefix") if store.meta.get(k)}
    if store.metric in _METRICS:
        known["metric"] = store.metric
    return {**known, "normalized": True} if store.normalises else known


@contextlib.contextmanager
def opened(where):
    """Open a store in a context, which closes it unless it was already open."""
    store = open_store(where)
    try:
        with one_line(store):
            yield store
    finally:
        if store is not where:
            store.close()


def possible(store: Store, ids: np.ndarray) -> np.ndarray:
    """Return the ids of the store's kind; others cannot even be requested."""
    if (ids.dtype.kind == "U") != (store.id_kind != "int"):
        return ids[:0]
    if store.id_kind != "uuid":
        return ids
    return ids[[bool(_UUID.fullmatch(one)) for one in ids.tolist()]]


def sample_of(where, n: int = SAMPLE, seed: int = 0, ids=None) -> EmbeddingSet:
    """Return n rows of a store, or the rows of at most n of ``ids``, without unusable vectors."""
    with opened(where) as store:
        return _sample_of(store, n, seed, ids)


def _sample_of(store: Store, n: int, seed: int, ids) -> EmbeddingSet:
    if ids is None:
        drawn = store.sample(n, seed)
        ids, vectors, many = drawn.ids, drawn.vectors, store.count()
    else:
        wanted, many = np.asarray(ids), len(ids)
        if len(wanted) > n:
            wanted = wanted[np.sort(np.random.default_rng(seed).permutation(len(wanted))[:n])]
        wanted = possible(store, wanted)
        there, vectors = store.get(wanted)
        ids = store.id_array(wanted[there].tolist())
    good = sound(vectors)
    bad = f", {int((~good).sum()):,} without a usable vector left out" if not good.all() else ""
    console.print(
        f"{store.uri}: {len(ids):,} of {many:,} rows are taken{bad}", markup=False, soft_wrap=True
    )
    meta, vectors = space_of(store), np.asarray(vectors, np.float32)[good]
    return EmbeddingSet(vectors, ids[good], meta=meta, name=str(store.uri))


def open_asked(old, new, n: int = SAMPLE, seed: int = 0):
    """Return the same queries by two models, of which either may be a store, or be missing.

    Everything but a store is returned as it is given; with a store, queries are paired by their
    ids, in its order.
    """
    stores = [is_store(w) or isinstance(w, Store) for w in (old, new)]
    if not any(stores):
        return old, new
    given = [not (w is None or (isinstance(w, str) and not w)) for w in (old, new)]
    if all(given):
        return paired(*open_pair(old, new, n, seed))
    return (sample_of(old, n, seed), None) if given[0] else (None, sample_of(new, n, seed))


def open_pair(old, new, n: int = SAMPLE, seed: int = 0) -> tuple[EmbeddingSet, EmbeddingSet]:
    """Open vectors of the same items by two models, of which either may be a store.

    From a store, at most n rows are taken, those whose ids the other side has; if both are stores,
    a sample is drawn in the old one. Everything else is opened by ``vectors_of``.
    """
    old_is, new_is = (is_store(w) or isinstance(w, Store) for w in (old, new))
    opened_old = None if old_is else vectors_of(old, "old")
    opened_new = None if new_is else vectors_of(new, "new")
    if old_is:
        opened_old = sample_of(old, n, seed, None if opened_new is None else opened_new.ids)
    if new_is:
        opened_new = sample_of(new, n, seed, opened_old.ids)
    return opened_old, opened_new
