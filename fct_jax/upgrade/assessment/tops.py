"""Scores of a batch of queries with items, for each pair of spaces, computed once for all points.

Where most of the items are results, they are sorted here; otherwise see `lists`.
"""

import numpy as np
from numba import njit

from fct_jax.upgrade.assessment.keys import decoded, key_of
from fct_jax.upgrade.ways import Mix

CHUNK = 2048  # items whose scores are computed together
FEW = 12  # items for each result, up to which all are sorted
_ZERO, _ONE = np.float32(0), np.float32(1)


class Scores:
    """Scores (q, M) of a batch of queries with M items, for each pair of spaces."""

    def __init__(self, by_pair: dict[str, np.ndarray]):
        self.by_pair = by_pair
        self._count = len(next(iter(by_pair.values())))

    def best(self, left: Mix, done: Mix, migrated, own, items: int, k: int):
        """Return the k best of the first ``items`` items, (q, k) scores float32 and rows int32.

        All of them are sorted, which is faster than a heap of the best for up to `FEW` times k.

        left, done: the mix of items that are not re-embedded, and of re-embedded ones.
        migrated: (items,) bool; own: (q,) rows that are not results, −1 for none.
        Scores descend; of equal scores the lower row comes first; −inf and −1 fill the end.
        """
        scores = np.empty((self._count, k), np.float32)
        rows = np.empty((self._count, k), np.int32)
        migrated = np.asarray(migrated, np.float32)  # 0 and 1: a factor
        terms = *self._terms(left), *self._terms(done), migrated, own, items
        keys = np.empty((self._count, items), np.int64)
        _keys(*terms, keys)
        return _sorted(keys, scores, rows)

    def largest(self, mix: Mix, columns: np.ndarray, count: int) -> np.ndarray:
        """Return the ``count`` largest scores among some items (R,), (q, count), descending."""
        found = np.empty((self._count, count), np.float32)
        first, by, second, times, _ = self._terms(mix)
        _largest(first, by, second, times, columns, found)
        return found

    def at(self, mix: Mix, rows: np.ndarray) -> np.ndarray:
        """Return the scores of each query with its own items (q, K); −inf for a row of −1."""
        total = self._whole(mix.shift)[:, None].astype(np.float32)
        for name, factor in mix.factors.items():
            near = np.take_along_axis(self.by_pair[name], np.maximum(rows, 0), axis=1)
            total = total + self._whole(factor)[:, None] * near
        return np.where(rows >= 0, total, -np.inf)

    def _whole(self, factor) -> np.ndarray:
        return np.ascontiguousarray(np.broadcast_to(np.asarray(factor, np.float32), self._count))

    def _terms(self, mix: Mix):
        """Return two scores with factors, and the shift; a longer sum is reduced to one score."""
        names, factors = list(mix.factors), [self._whole(f) for f in mix.factors.values()]
        parts = [self.by_pair[name] for name in names]
        if len(parts) > 2:
            parts = [sum(f[:, None] * p for f, p in zip(factors, parts, strict=True))]
            factors = [np.ones(self._count, np.float32)]
        if len(parts) == 1:
            parts, factors = [parts[0], parts[0][:, :0]], [factors[0], factors[0]]
        return parts[0], factors[0], parts[1], factors[1], self._whole(mix.shift)


@njit(nogil=True, cache=True)
def _fill(chunk, migrated, left, done, by, shift, by_done, shift_done):
    for j in range(len(left)):
        chunk[j] = (_ONE - migrated[j]) * (by * left[j] + shift) + migrated[j] * (
            by_done * done[j] + shift_done
        )


@njit(nogil=True, cache=True)
def _add(chunk, which, values, factor):
    for j in range(len(values)):
        chunk[j] += which[j] * (factor * values[j])


@njit(nogil=True, cache=True)
def _scored(
    q, start, stop, first, by, second, times, shift,
    first_done, by_done, second_done, times_done, shift_done, migrated, chunk,
):  # fmt: skip
    """Fill the scores of query q with the items from start to stop.

    Without branches, so that it is vectorised.
    """
    here = migrated[start:stop]
    _fill(chunk, here, first[q, start:stop], first_done[q, start:stop],
          by[q], shift[q], by_done[q], shift_done[q])  # fmt: skip
    if second.shape[1] > 0:
        _add(chunk, _ONE - here, second[q, start:stop], times[q])
    if second_done.shape[1] > 0:
        _add(chunk, here, second_done[q, start:stop], times_done[q])


@njit(nogil=True, cache=True)
def _keys(
    first, by, second, times, shift,
    first_done, by_done, second_done, times_done, shift_done,
    migrated, own, items, keys,
):  # fmt: skip
    """Fill the key (q, items) of each item with its score."""
    chunk = np.empty(CHUNK, np.float32)
    bits = chunk.view(np.int32)
    for q in range(len(keys)):
        for start in range(0, items, CHUNK):
            stop = min(start + CHUNK, items)
            _scored(
                q, start, stop, first, by, second, times, shift,
                first_done, by_done, second_done, times_done, shift_done, migrated, chunk,
            )  # fmt: skip
            if start <= own[q] < stop:
                chunk[own[q] - start] = -np.inf
            for j in range(stop - start):
                chunk[j] += _ZERO  # -0.0 is 0.0
                keys[q, start + j] = key_of(bits[j], start + j)


def _sorted(keys: np.ndarray, scores: np.ndarray, rows: np.ndarray):
    """Return the scores and rows, filled from keys as `_keys` makes them."""
    k = min(scores.shape[1], keys.shape[1])
    if k < keys.shape[1]:
        keys = np.partition(keys, k - 1, axis=1)[:, :k]
    scores[:, :k], rows[:, :k] = decoded(np.sort(keys, axis=1))
    scores[:, k:], rows[:, k:] = -np.inf, -1
    return scores, rows


@njit(nogil=True, cache=True)
def _largest(first, by, second, times, columns, found):
    """Fill the largest scores among some columns, in descending order; see `Scores.largest`."""
    count = found.shape[1]
    two = second.shape[1] > 0
    for q in range(len(found)):
        kept = found[q]
        kept[:] = -np.inf
        for column in columns:
            score = by[q] * first[q, column]
            if two:
                score += times[q] * second[q, column]
            if score > kept[count - 1]:
                place = count - 1
                while place > 0 and kept[place - 1] < score:
                    kept[place] = kept[place - 1]
                    place -= 1
                kept[place] = score
