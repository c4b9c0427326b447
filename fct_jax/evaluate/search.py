"""Exact search in galleries of any size through Faiss, and metrics of ranked results."""

from collections.abc import Callable, Sequence

import numpy as np

from fct_jax.errors import UserError
from fct_jax.evaluate.distances import (
    as_labels,
    as_vectors,
    check_metric,
    check_same_length,
    check_same_width,
    unit_rows,
)
from fct_jax.evaluate.metrics import PerQuery, check_ks
from fct_jax.evaluate.nearest import best, nearest

# The results' distances are computed again from this many values at a time.
GATHERED = 2**23


def knn(
    query,
    gallery,
    k: int,
    *,
    metric: str = "l2",
    exclude_self: bool = False,
    block: int = 2**17,
    progress: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k gallery items nearest to each query, by exhaustive search.

    query (Q, D); gallery (G, D), which may be memory-mapped: it is read ``block`` rows at a time.
    ``exclude_self``: query i is gallery item i and never among its own results.
    ``progress`` is called with the number of gallery rows done, block after block.

    Returns distances (Q, k) float32, ascending ("l2": Euclidean, in the unit of the vectors;
    "cosine": 1 − cosine), and ids (Q, k) int64, rows of the gallery. If the gallery has fewer
    than k items, −1 and infinite distances fill the results. Distances are computed from the
    vectors themselves, not from Faiss's matrix product, so equal vectors have equal distances and
    the lower row comes first; which of several equal items takes the last place is Faiss's choice.

    Raises UserError for empty sets, NaN or infinity, sizes that do not agree, k or block below 1.

    >>> distances, rows = knn([[0.0, 0.0]], [[3.0, 4.0], [0.0, 1.0]], 2)
    >>> distances.tolist(), rows.tolist()
    ([[1.0, 5.0]], [[1, 0]])
    """
    check_metric(metric)
    for name, value in (("k", k), ("block", block)):
        if int(value) != value or value < 1:
            raise UserError(f"{name} must be a whole number of at least 1, not {value}")
    query, gallery = as_vectors("query", query), np.asarray(gallery)
    if gallery.ndim != 2 or 0 in gallery.shape:
        as_vectors("gallery", gallery)  # raises: not (N, D), or empty
    check_same_width("query", query, "gallery", gallery)
    if exclude_self:
        check_same_length("query", query, "gallery", gallery)
    k, wanted = int(k), int(k) + bool(exclude_self)

    query = _rows(query, metric)

    def blocks():
        for start in range(0, len(gallery), block):
            part = as_vectors(f"gallery rows from {start}", gallery[start : start + block])
            yield np.arange(start, start + len(part)), _rows(part, metric)
            if progress is not None:
                progress(len(part))

    _, ids = nearest(query, blocks(), wanted, "l2" if metric == "l2" else "dot")
    distance = _distances_of(query, gallery, ids, metric)
    if exclude_self:
        # The query itself goes last, and is cut off as the surplus result.
        own = ids == np.arange(len(query))[:, None]
        distance[own], ids[own] = np.inf, -1
    scores, ids = best(-distance, ids, k)
    return -scores, ids


def ranked_metrics(
    ids,
    query_labels,
    gallery_labels,
    *,
    ks: Sequence[int] = (1, 5),
    map_at: int = 100,
    exclude_self: bool = False,
) -> dict[str, float]:
    """Return CMC@k and mAP@R of ranked results in the form of `knn`.

    ids (Q, K): gallery rows, nearest first, −1 for no result. query_labels (Q,),
    gallery_labels (G,). ``exclude_self``: query i is gallery item i and not a positive of itself
    (it must then not be among its own results).
    Returns ``{"cmc@1": …, "map@100": …}``. CMC@k is the share of queries with an item of their
    class among the first k. AP@R is the sum, over ranks r ≤ R that hold a positive, of
    (positives up to r) / r, divided by min(positives in the gallery, R); mAP@R is its mean over
    queries with a positive. If no query has one, all values are NaN. The order of the ids
    is kept: ties are not grouped.

    Raises UserError if K is smaller than R or a k (unless it covers the gallery), for ids outside
    the gallery, or for lengths that do not agree.

    >>> ranked_metrics([[1, 0]], [7], [7, 3], ks=(1, 2), map_at=2)
    {'cmc@1': 0.0, 'cmc@2': 1.0, 'map@2': 0.5}
    """
    results = ranked_results(
        ids, query_labels, gallery_labels, ks=ks, map_at=map_at, exclude_self=exclude_self
    )
    values = results.mean()
    values[f"map@{map_at}"] = values.pop("map")
    return values


def ranked_results(
    ids,
    query_labels,
    gallery_labels,
    *,
    ks: Sequence[int] = (1, 5),
    map_at: int = 100,
    exclude_self: bool = False,
) -> PerQuery:
    """Return each query's AP@R (NaN without a positive) and hits, before `ranked_metrics`' mean."""
    ids = np.asarray(ids)
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or 0 in ids.shape:
        raise UserError(f"ids must be integers (Q, K), not {ids.dtype} {ids.shape}")
    query_labels = as_labels("query_labels", query_labels, len(ids))
    gallery_labels = as_labels("gallery_labels", gallery_labels, np.size(gallery_labels))
    if ids.min() < -1 or ids.max() >= len(gallery_labels):
        raise UserError(f"ids must be −1 or rows of the gallery, 0 … {len(gallery_labels) - 1}")
    if exclude_self:
        check_same_length("query_labels", query_labels, "gallery_labels", gallery_labels)
    ks = check_ks(ks)
    if int(map_at) != map_at or map_at < 1:
        raise UserError(f"map_at must be a whole number of at least 1, not {map_at}")
    deepest = max(*ks, map_at)
    if ids.shape[1] < min(deepest, len(gallery_labels) - bool(exclude_self)):
        raise UserError(f"ids hold {ids.shape[1]} results per query, but {deepest} are needed")

    names, counts = np.unique(gallery_labels, return_counts=True)
    place = np.minimum(np.searchsorted(names, query_labels), len(names) - 1)
    positives = np.where(names[place] == query_labels, counts[place], 0) - bool(exclude_self)
    relevant = (gallery_labels[ids] == query_labels[:, None]) & (ids >= 0)
    hit = {k: relevant[:, :k].any(axis=1) for k in ks}
    top = relevant[:, :map_at]
    precision = np.cumsum(top, axis=1) / np.arange(1, top.shape[1] + 1)
    ap = np.full(len(ids), np.nan)
    np.divide(
        np.sum(precision * top, axis=1), np.minimum(positives, map_at), out=ap, where=positives > 0
    )
    return PerQuery(ap, hit)


def _rows(vectors: np.ndarray, metric: str) -> np.ndarray:
    """Return rows for Faiss: contiguous float32, of unit length for cosine."""
    rows = unit_rows(vectors) if metric == "cosine" else vectors
    return np.ascontiguousarray(rows, np.float32)


def _distances_of(query, gallery, ids, metric: str) -> np.ndarray:
    """Return distances (Q, K) of the results' own vectors; infinite if the id is −1."""
    distance = np.empty(ids.shape, np.float32)
    rows = max(1, GATHERED // (ids.shape[1] * query.shape[1]))
    for start in range(0, len(query), rows):
        part = slice(start, start + rows)
        found = _rows(np.asarray(gallery[ids[part].ravel()]), metric)
        found = found.reshape(*ids[part].shape, -1)
        if metric == "cosine":
            distance[part] = 1 - np.einsum("qd,qkd->qk", query[part], found)
        else:
            found -= query[part, None]
            distance[part] = np.sqrt(np.einsum("qkd,qkd->qk", found, found))
    distance[ids < 0] = np.inf
    return distance
