"""Exact ranks of each query's positives, for a gallery whose items switch vectors.

A gallery item has an *old* key and, if the gallery is being backfilled, a *new* one that
counts from its *stage* on (stage s: from point s + 1). Nothing is sorted per point. For one
query with p positives, the keys of these positives are the only thresholds that average
precision asks about. They are sorted once, through equal bins; the bins then lead every item to its
bucket between two thresholds. From one point to the next the items of a stage move from
their old bucket to their new one, and one running sum over the buckets gives every rank.

For n items and P points that is O(n + p·log p) a query, as long as keys spread over the bins, and
P·p additions and divisions without a branch, each about as long as reading a key.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
from numba import njit
from threadpoolctl import ThreadpoolController

from fct_jax.evaluate.distances import Keys

# Bytes of keys that all threads hold together, and queries in one block.
BLOCK_BYTES = 2**28
BLOCK_ROWS = 256
# Values that share a bin are sorted by insertion up to this many.
FEW_IN_A_BIN = 16
# Infinities behind the thresholds: so many of them are compared without asking where a bin ends.
PADDING = 3
# A bucket counts its items in the low half of a number, and its positives in the high half.
POSITIVE = 1 << 32
LOW = POSITIVE - 1


@njit(nogil=True, error_model="numpy", cache=True)
def _bin_scale(lowest, highest, bins):
    """Return the bins per unit of a range of values."""
    scale = bins / (highest - lowest)
    # There is one value, or they are too close for bins.
    return scale if np.isfinite(scale) else 1.0


@njit(nogil=True, error_model="numpy", cache=True)
def _sort_into_bins(values, table, ordered):
    """Sort values into ``ordered``, and set table[b] to how many of them lie in front of bin b.

    The bins are equal parts of the range of the values; two more stay empty at the end.
    """
    lowest, highest = values.min(), values.max()
    scale = _bin_scale(lowest, highest, len(table) - 3)
    table[:] = 0
    for value in values:
        table[np.uint32((value - lowest) * scale)] += 1
    total = np.int32(0)
    crowded = False
    for b in range(len(table)):
        crowded |= table[b] > FEW_IN_A_BIN
        total += table[b]
        table[b] = total
    for value in values:  # from the end of its bin down: the table then holds the bin's start
        b = np.uint32((value - lowest) * scale)
        table[b] -= 1
        ordered[table[b]] = value
    if crowded:
        for b in range(len(table) - 1):
            if table[b + 1] - table[b] > FEW_IN_A_BIN:
                ordered[table[b] : table[b + 1]].sort()
    for i in range(1, len(ordered)):  # nothing moves further than within its bin
        value = ordered[i]
        j = i
        while j > 0 and ordered[j - 1] > value:
            ordered[j] = ordered[j - 1]
            j -= 1
        ordered[j] = value


@njit(nogil=True, error_model="numpy", cache=True)
def _find_buckets(thresholds, keys, table, buckets):
    """Set buckets[j] to the number of thresholds below keys[j].

    thresholds: ascending, then PADDING infinities; table: as `_sort_into_bins` leaves it. Most keys
    are settled without a branch, by comparison with the first thresholds of their bin; a search
    is left only where all of these are smaller.
    """
    lowest, highest = thresholds[0], thresholds[len(thresholds) - PADDING - 1]
    bins = len(table) - 3
    scale = _bin_scale(lowest, highest, bins)
    beyond = np.float64(bins + 1)
    for j in range(len(keys)):
        key = keys[j]
        b = np.uint32(min(max((key - lowest) * scale, 0.0), beyond))
        low = table[b]
        bucket = low + (thresholds[low] < key) + (thresholds[low + 1] < key)
        if thresholds[low + 2] < key:
            bucket = low + 3
            high = table[b + 1]
            while bucket < high:
                middle = (bucket + high) >> 1
                if thresholds[middle] < key:
                    bucket = middle + 1
                else:
                    high = middle
        buckets[j] = bucket


@njit(nogil=True, error_model="numpy", fastmath={"reassoc"}, cache=True)
def _average_precision(count, up_to):
    """Return Σ over thresholds of recall gained · precision; ``count`` holds items per bucket.

    A bucket has its items in the low half of a number, its positives in the high half: one
    running sum serves both.
    """
    running = np.int64(0)
    for b in range(len(count)):
        running += count[b]
        up_to[b] = running
    total = 0.0
    for b in range(len(count)):  # a loop of its own, so that the divisions are vectorised
        gained = np.float64(np.int32(count[b] >> 32))
        found = np.float64(np.int32(up_to[b] >> 32))
        seen = np.float64(max(np.int32(up_to[b] & LOW), np.int32(1)))
        total += gained * found / seen
    return total / (running >> 32)


@njit(nogil=True, error_model="numpy", cache=True)
def _rank_block(
    keys, own, query_class, gallery_class, class_start, class_items,
    stage, by_stage, stage_start, position, ap, first,
):  # fmt: skip
    """Fill ap and first (rows, orders, points) for a block of queries; see `rank_positives`."""
    rows = keys.shape[0]
    orders, points = ap.shape[1], ap.shape[2]
    n = stage.shape[1]
    backfilled = keys.shape[1] > n
    stages = stage_start.shape[1] - 1
    bucket_old = np.empty(n, np.int32)
    bucket_new = np.empty(n, np.int32)
    best = np.empty(points, np.int64)
    best_old = np.empty(stages, np.int64)
    best_new = np.empty(stages, np.int64)
    ahead = np.empty(points, np.int64)
    for q in range(rows):
        old = keys[q, :n]
        new = keys[q, n:] if backfilled else old
        group = query_class[q]
        members = class_items[class_start[group] : class_start[group + 1]]
        if own[q] >= 0:  # the own item is no positive, and behind everything
            members = members[members != own[q]]
            old[own[q]] = np.inf
            new[own[q]] = np.inf
        p = len(members)
        if p == 0:
            ap[q] = np.nan
            first[q] = n
            continue

        width = 2 * p if backfilled else p
        values = np.empty(width, old.dtype)
        for m in range(p):
            values[m] = old[members[m]]
            if backfilled:
                values[p + m] = new[members[m]]
        thresholds = np.full(width + PADDING, np.inf, old.dtype)
        # Fine bins save time in the search, coarse ones in building the table.
        table = np.empty(max(4 * width, min(32 * width, n)) + 3, np.int32)
        _sort_into_bins(values, table, thresholds[:width])
        _find_buckets(thresholds, old, table, bucket_old)
        if backfilled:
            _find_buckets(thresholds, new, table, bucket_new)
        else:
            bucket_new[:] = bucket_old

        # Count items and positives per bucket at point 0; the last one is beyond all thresholds.
        start = np.zeros(width + 1, np.int64)
        for j in range(n):
            start[bucket_old[j]] += 1
        for item in members:
            start[bucket_old[item]] += POSITIVE
        count = np.empty(width + 1, np.int64)
        up_to = np.empty(width, np.int64)
        for o in range(orders):
            # A place sorts as (key, position) does: bucket · (n + 1), plus 1 + position where
            # the key equals the bucket's threshold (a key inside the bucket is nearer).
            best_old[:] = width * (n + 1)
            best_new[:] = width * (n + 1)
            for item in members:
                s = stage[o, item]
                behind = 1 + position[o, item]
                best_old[s] = min(best_old[s], bucket_old[item] * (n + 1) + behind)
                best_new[s] = min(best_new[s], bucket_new[item] * (n + 1) + behind)
            # At point i the stages from i on have their old vectors, those before their new ones.
            nearest = np.int64(width * (n + 1))
            best[:] = nearest
            for s in range(stages - 1, -1, -1):
                nearest = min(nearest, best_old[s])
                best[s] = nearest
            nearest = np.int64(width * (n + 1))
            for i in range(1, points):
                nearest = min(nearest, best_new[i - 1])
                best[i] = min(best[i], nearest)
            reach = best.max() // (n + 1)

            ahead[:] = 0
            for j in range(n):
                b_old = bucket_old[j]
                b_new = bucket_new[j]
                if b_old <= reach or b_new <= reach:  # few items: nearer than some best positive
                    s = stage[o, j]
                    place_old = b_old * (n + 1)
                    if b_old < width and old[j] == thresholds[b_old]:
                        place_old += 1 + position[o, j]
                    place_new = b_new * (n + 1)
                    if b_new < width and new[j] == thresholds[b_new]:
                        place_new += 1 + position[o, j]
                    for i in range(points):
                        ahead[i] += (place_old if i <= s else place_new) < best[i]
            first[q, o] = ahead

            count[:] = start
            for i in range(points):
                if i > 0:
                    for k in range(stage_start[o, i - 1], stage_start[o, i]):
                        item = by_stage[o, k]
                        positive = gallery_class[item] == group and item != own[q]
                        moved = 1 + (POSITIVE if positive else 0)
                        count[bucket_old[item]] -= moved
                        count[bucket_new[item]] += moved
                ap[q, o, i] = _average_precision(count[:width], up_to)


@functools.cache
def _blas() -> ThreadpoolController:
    """Return this process's BLAS libraries. The search takes milliseconds, so it is done once."""
    return ThreadpoolController().select(user_api="blas")


def rank_positives(
    keys: Keys,
    query_labels: np.ndarray,
    gallery_labels: np.ndarray,
    *,
    leave_one_out: bool,
    stage: np.ndarray | None = None,
    position: np.ndarray | None = None,
    points: int = 1,
    progress: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return average precision and rank of the first positive, per query, order and point.

    ``keys`` are those of Q queries × n gallery items, or × 2n: old vectors, then new ones of the
    same items. ``leave_one_out``: query i is item i, which then never counts. ``stage``
    (orders, n): the item uses its new vector from point stage + 1 on; ``position`` (orders, n):
    among equal keys the lower position ranks first (default: gallery row).
    ``progress`` is called with the number of queries done, block after block.

    Returns ap (Q, orders, points) float64, NaN for a query without positives, equal keys
    forming one threshold; and first (Q, orders, points) int64, the number of items ranked before
    the nearest positive, n without positives: CMC@k counts ``first < k``.
    """
    queries, n = len(query_labels), len(gallery_labels)
    if stage is None:
        stage = np.zeros((1, n), np.int32)
    if position is None:
        position = np.arange(n, dtype=np.int32)[None]
    names, gallery_class = np.unique(gallery_labels, return_inverse=True)
    class_items = np.argsort(gallery_class, kind="stable")
    # The class after the last is empty: it stands for labels that the gallery does not hold.
    class_start = np.searchsorted(gallery_class[class_items], np.arange(len(names) + 2))
    query_class = np.minimum(np.searchsorted(names, query_labels), len(names) - 1)
    query_class[names[query_class] != query_labels] = len(names)
    own = np.arange(queries) if leave_one_out else np.full(queries, -1)
    stages = max(points - 1, 1)
    by_stage = np.argsort(stage, axis=1, kind="stable").astype(np.int32)
    stage_start = np.stack(
        [
            np.searchsorted(row[order], np.arange(stages + 1))
            for row, order in zip(stage, by_stage, strict=True)
        ]
    )

    ap = np.empty((queries, len(stage), points))
    first = np.empty((queries, len(stage), points), np.int64)
    threads = numba.config.NUMBA_NUM_THREADS
    fitting = BLOCK_BYTES // (threads * keys.shape[1] * keys.dtype.itemsize)
    rows = int(np.clip(fitting, 16, min(BLOCK_ROWS, max(16, queries // threads))))
    buffers = [np.empty((rows, keys.shape[1]), keys.dtype) for _ in range(threads)]

    def work(start: int) -> int:
        stop = min(start + rows, queries)
        buffer = buffers.pop()
        part = slice(start, stop)
        block = keys.fill(start, stop, buffer)
        _rank_block(
            block,
            own[part],
            query_class[part],
            gallery_class,
            class_start,
            class_items,
            stage,
            by_stage,
            stage_start,
            position,
            ap[part],
            first[part],
        )
        buffers.append(buffer)
        return stop - start

    # A block has one thread, also for its matrix product: BLAS's threads would wait for each other.
    with _blas().limit(limits=1), ThreadPoolExecutor(threads) as pool:
        for done in pool.map(work, range(0, queries, rows)):
            if progress is not None:
                progress(done)
    return ap, first
