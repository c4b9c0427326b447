"""The share of the exact result that a store's index finds."""

import numpy as np

from fct_jax.upgrade.stores.base import Store
from fct_jax.upgrade.stores.half import scores


def recall_of(store: Store, queries, k: int = 10, only: int | None = None) -> float:
    """Return the share of the store's own exact k nearest that its index finds.

    Args:
      queries: (Q, D).
      only: a version; rows of other versions are ignored.

    A row as near as the k-th counts as found, whichever of the tied rows the exact list holds.
    """
    have, _ = store.search(queries, k, only=only)
    want, _ = store.search(queries, k, only=only, exact=True)
    return share_found(have, want)


def share_found(have: np.ndarray, want: np.ndarray) -> float:
    """Return the share of an exact search's scores ``want`` (Q, k) that ``have`` (Q, k) reaches."""
    there = np.isfinite(want)
    least = np.where(there, want, np.inf).min(axis=1, keepdims=True)
    near = (have >= least - 1e-5 * np.abs(least)) & np.isfinite(have)
    return float(near.sum() / max(there.sum(), 1))


def recall(store: Store, queries, k: int = 10) -> float:
    """Return the share of the exact k nearest that `Store.search` finds; reads every row once.

    Args:
      queries: (Q, D); about a hundred give the recall to within a few percent.

    A row as near as the k-th counts as found, whichever of the tied rows the exact list holds.
    """
    best, after = np.full((len(queries), 0), -np.inf), None
    while len(batch := store.read(after)):
        found = np.stack([scores(store.metric, query, batch.vectors) for query in queries])
        best = -np.sort(-np.hstack([best, found]), axis=1)[:, :k]
        after = batch.last
    _, ids = store.search(queries, k)
    near = 0
    for query, row, exact in zip(queries, ids, best, strict=True):
        _, vectors = store.get(np.unique(row))  # ids that fill short lists do not exist
        of_found = scores(store.metric, query, vectors)
        near += (of_found >= exact[-1] - 1e-6 * abs(exact[-1])).sum()
    return float(near / best.size)
