"""Samples from stores that cannot draw them themselves."""

import uuid

import numpy as np

from fct_jax.upgrade.stores.base import Batch, Store

_RUN = 8  # rows read at each random position
_TRIES = 4  # factor on the number of positions that should be enough


def sample(store: Store, n: int, seed: int) -> Batch:
    """Return n rows of a store, or all, by ascending id; the same for the same seed and rows.

    For integer ids and UUIDs a few neighbouring rows are read at random positions in the range of
    ids, so only about n rows are read. (A row after a wide gap of ids is drawn more often.) For
    text ids, a small store, or very unevenly spread ids, all ids are read, but only n vectors.
    """
    rng, total = np.random.default_rng(seed), store.count()
    found = {}
    if store.id_kind != "text" and total > 4 * n:
        low, high = _range(store)
        for _ in range(_TRIES * n // _RUN + 1):
            at = low + int(rng.random() * (high - low))
            batch = store.page(_position(store, at), _RUN)
            found |= zip(batch.ids.tolist(), batch.vectors, strict=True)
            if len(found) >= n:
                ids = sorted(found)
                ids = [ids[place] for place in np.sort(rng.permutation(len(ids))[:n])]
                vectors = np.stack([found[one] for one in ids])
                return Batch(store.id_array(ids), vectors, np.zeros(n, np.int64), None)
    return store.drawn(_drawn(store, n, rng))


def _drawn(store: Store, n: int, rng) -> np.ndarray:
    """Draw n ids in one pass with n in memory, as those with the smallest random numbers."""
    ids, keys, after = store.no_ids(), np.zeros(0), None
    while len(batch := store.page(after, store.batch_rows, vectors=False)):
        ids = np.concatenate([ids, batch.ids])
        keys = np.concatenate([keys, rng.random(len(batch))])
        least = np.sort(np.argsort(keys)[:n])
        ids, keys, after = ids[least], keys[least], batch.last
    return ids


def _range(store: Store) -> tuple[int, int]:
    """Return bounds of all ids; the highest integer is found by steps that double."""
    if store.id_kind == "uuid":
        return 0, 1 << 128
    low = int(store.page(None, 1, vectors=False).ids[0])
    high = low
    step = 1
    while len(batch := store.page(high, 1, vectors=False)):  # until no id is higher
        high = max(int(batch.ids[0]), min(high + step, (1 << 63) - 2))
        step *= 2
    return low, high


def _position(store: Store, at: int):
    """Return the position after which a row with the number ``at`` would follow."""
    if store.id_kind == "uuid":
        return str(uuid.UUID(int=min(at, (1 << 128) - 2)))
    return at - 1
