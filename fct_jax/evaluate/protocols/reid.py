"""Person re-identification: CMC and mAP of Market-1501, and k-reciprocal re-ranking."""

import numpy as np
from scipy import sparse

from fct_jax.errors import UserError
from fct_jax.evaluate.distances import unit_rows

BLOCK = 512  # rows worked on at a time
PAIRS = 16384  # pairs of rows compared at a time


def market1501(
    distances,
    query_ids,
    gallery_ids,
    query_cameras,
    gallery_cameras,
    *,
    max_rank: int = 50,
    block: int = BLOCK,
) -> dict[str, np.ndarray | float]:
    """Return CMC and mAP of the Market-1501 protocol (Zheng et al., ICCV 2015).

    Gallery items of the query's identity seen by the query's camera are removed. A query without
    any match left is not counted. Equal distances rank the lower gallery row first.

    Args:
      distances: (Q, G), smaller is nearer.
      query_ids, query_cameras: (Q,);  gallery_ids, gallery_cameras: (G,).
      max_rank: length of the CMC.
      block: queries worked on at a time.

    Returns:
      ``{"cmc": (R,) float, "map": float}`` with R = min(max_rank, G), as fractions; ``cmc[k - 1]``
      is the share of queries with a match among the k nearest.

    Raises:
      UserError: shapes that do not fit, distances that are not finite, no query with a match.

    >>> found = market1501([[0.1, 0.2, 0.3]], [7], [7, 5, 7], [1], [1, 2, 2], max_rank=2)
    >>> found["cmc"].tolist(), found["map"]  # the first item is of the query's camera
    ([0.0, 1.0], 0.5)
    """
    aps, ranks = market1501_per_query(
        distances, query_ids, gallery_ids, query_cameras, gallery_cameras, block=block
    )
    valid = ranks > 0
    # A gallery shorter than max_rank gives a shorter CMC (the published code fails there).
    length = min(max_rank, len(gallery_ids))
    cmc = (ranks[valid, None] <= np.arange(1, length + 1)).mean(axis=0)
    return {"cmc": cmc, "map": float(aps[valid].mean())}


def market1501_per_query(
    distances, query_ids, gallery_ids, query_cameras, gallery_cameras, *, block: int = BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """Return the results of each query that `market1501` averages, with its arguments and errors.

    Returns:
      average precision (Q,) float and rank of the first match (Q,), 1 for the nearest. A query
      without any match has NaN and 0: it does not count.
    """
    distances = np.asarray(distances)
    query_ids, query_cameras = np.asarray(query_ids), np.asarray(query_cameras)
    gallery_ids, gallery_cameras = np.asarray(gallery_ids), np.asarray(gallery_cameras)
    wanted = (len(query_ids), len(gallery_ids))
    if distances.shape != wanted:
        raise UserError(f"distances must be (queries, gallery) = {wanted}, not {distances.shape}")
    if query_cameras.shape != query_ids.shape or gallery_cameras.shape != gallery_ids.shape:
        raise UserError("every query and gallery item needs an identity and a camera")
    if not np.isfinite(distances).all():
        raise UserError("distances hold NaN or infinite values")

    aps, ranks = np.full(len(query_ids), np.nan), np.zeros(len(query_ids), np.int64)
    for start in range(0, len(query_ids), block):
        rows = slice(start, start + block)
        order = np.argsort(distances[rows], axis=1, kind="stable")
        same = gallery_ids[order] == query_ids[rows, None]
        keep = ~(same & (gallery_cameras[order] == query_cameras[rows, None]))
        hit = same & keep
        rank = np.cumsum(keep, axis=1)  # 1-based among the items that stay
        matches = hit.sum(axis=1)
        valid = matches > 0
        precision = np.cumsum(hit, axis=1) / np.maximum(rank, 1)
        total = (precision * hit).sum(axis=1)
        aps[rows] = np.where(valid, total / np.maximum(matches, 1), np.nan)
        beyond = len(gallery_ids) + 1
        first = np.where(hit, rank, beyond).min(axis=1, initial=beyond)
        ranks[rows] = np.where(valid, first, 0)
    if not ranks.any():
        raise UserError(
            "no query has a match: its identity must be in the gallery, seen by another camera"
        )
    return aps, ranks


def k_reciprocal_rerank(
    query,
    gallery,
    k1: int = 20,
    k2: int = 6,
    weight: float = 0.3,
    *,
    dtype=np.float16,
    block: int = BLOCK,
    pairs: int = PAIRS,
) -> np.ndarray:
    """Return distances re-ranked with k-reciprocal encoding (Zhong et al., CVPR 2017).

    Source: https://arxiv.org/abs/1701.08398.

    ``weight`` times the original distance plus ``1 - weight`` times the Jaccard distance of the
    encodings. The original distance is the squared Euclidean one of L2-normalised vectors,
    divided by the largest in its row. Memory grows with Q·G and (Q+G)·k1², not (Q+G)².

    Args:
      query: (Q, D);  gallery: (G, D). They are L2-normalised here.
      k1: neighbours that must be mutual.  k2: neighbours averaged for query expansion.
      weight: share of the original distance, in [0, 1].
      dtype: type of the encodings and their sums. float16 rounds where the published code does, so
        that numbers compare; with float32 they are exact, up to 4e-3 away from those.
      block, pairs: rows, and pairs of rows, worked on at a time.

    Returns:
      (Q, G) float32, smaller is nearer.

    Raises:
      UserError: shapes, k1, k2 or weight out of range, or values that are not finite.

    >>> gallery = [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]
    >>> found = k_reciprocal_rerank([[1.0, 0.05]], gallery, k1=2, k2=1)
    >>> found.argsort(axis=1).tolist()
    [[0, 1, 2]]
    """
    query, gallery = np.asarray(query, np.float32), np.asarray(gallery, np.float32)
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise UserError(f"query {query.shape} and gallery {gallery.shape} must be (n, D) alike")
    if len(query) == 0 or len(gallery) == 0:
        raise UserError("re-ranking needs at least one query and one gallery item")
    if k1 < 1 or k2 < 1 or not 0 <= weight <= 1:
        raise UserError(f"re-ranking needs k1 ≥ 1, k2 ≥ 1, weight in [0, 1]: {k1}, {k2}, {weight}")
    everything = np.concatenate([query, gallery])
    if not np.isfinite(everything).all():
        raise UserError("query or gallery vectors hold NaN or infinite values")
    everything = unit_rows(everything).astype(everything.dtype)

    neighbours, largest = _neighbours(everything, max(k1 + 1, k2), block)
    encoding = _rounded(_encode(everything, neighbours, largest, k1, pairs), dtype)
    if k2 > 1:
        encoding = _rounded(_average(neighbours[:, :k2], encoding), dtype)

    queries = len(query)
    original = _squared_distances(everything[:queries], everything[queries:])
    original /= largest[:queries, None]
    jaccard = _jaccard(encoding[:queries], encoding[queries:], dtype)
    return (weight * original + (1 - weight) * jaccard).astype(np.float32)


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum(2 - 2 * (a @ b.T), 0)


def _neighbours(vectors: np.ndarray, count: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's nearest ``count`` rows, itself first, and its largest squared distance."""
    count = min(count, len(vectors))
    nearest = np.empty((len(vectors), count), np.int64)
    largest = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), block):
        distance = _squared_distances(vectors[start : start + block], vectors)
        rows = np.arange(len(distance))
        # If all vectors are equal, every distance is 0, and so is its share of the largest.
        largest[start : start + block] = np.maximum(distance.max(axis=1), 1e-12)
        distance[rows, start + rows] = -1  # itself first, also among duplicates
        nearest[start : start + block] = np.argsort(distance, axis=1, kind="stable")[:, :count]
    return nearest, largest


def _reciprocal(neighbours: np.ndarray) -> sparse.csr_array:
    """Return a binary (N, N): j is a neighbour of i and i one of j."""
    total = len(neighbours)
    forward = _pattern(np.repeat(np.arange(total), neighbours.shape[1]), neighbours.ravel(), total)
    return sparse.csr_array(forward.multiply(forward.T))


def _pattern(rows: np.ndarray, columns: np.ndarray, total: int) -> sparse.csr_array:
    ones = np.ones(len(rows), np.int32)
    return sparse.csr_array((ones, (rows, columns)), shape=(total, total))


def _encode(vectors, neighbours, largest, k1: int, pairs: int) -> sparse.csr_array:
    """Return weights over each item's expanded k-reciprocal neighbours; each row sums to 1."""
    full = _reciprocal(neighbours[:, : k1 + 1])
    half = _reciprocal(neighbours[:, : int(np.around(k1 / 2)) + 1])
    # A neighbour brings its own half-size set when more than 2/3 of that set is already there.
    common = sparse.coo_array((full @ half.T).multiply(full))
    sizes = np.asarray(half.sum(axis=1)).ravel()
    accepted = 3 * common.data > 2 * sizes[common.col]
    accepted = _pattern(common.row[accepted], common.col[accepted], len(vectors))
    expanded = sparse.coo_array(full + accepted @ half)

    rows, columns = expanded.row, expanded.col
    weights = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), pairs):
        r, c = rows[start : start + pairs], columns[start : start + pairs]
        distance = np.square(vectors[r] - vectors[c]).sum(axis=1)
        weights[start : start + pairs] = np.exp(-distance / largest[r])
    weights /= np.bincount(rows, weights, minlength=len(vectors))[rows]
    return sparse.csr_array((weights, (rows, columns)), shape=full.shape)


def _average(neighbours: np.ndarray, encoding: sparse.csr_array) -> sparse.csr_array:
    """Return the mean encoding of the nearest items, itself included: local query expansion."""
    total, count = neighbours.shape
    chosen = _pattern(np.repeat(np.arange(total), count), neighbours.ravel(), total)
    mean = sparse.csr_array(chosen @ encoding)
    mean.data /= count  # mean / count multiplies by a rounded reciprocal
    return mean


def _rounded(encoding: sparse.csr_array, dtype) -> sparse.csr_array:
    """Return the values rounded to dtype, kept in float32 (sparse arrays have no float16)."""
    encoding.sort_indices()
    encoding.data = encoding.data.astype(dtype).astype(np.float32)
    return encoding


def _jaccard(query: sparse.csr_array, gallery: sparse.csr_array, dtype) -> np.ndarray:
    """Return (Q, G) values of 1 − sum of minima / sum of maxima; every row sums to 1."""
    columns = sparse.csc_array(gallery)
    distance = np.empty((query.shape[0], gallery.shape[0]), np.float32)
    weights, column_weights = query.data.astype(dtype), columns.data.astype(dtype)
    for i in range(query.shape[0]):
        minima = np.zeros(gallery.shape[0], dtype)
        # Only columns that are not zero on both sides add to the minima.
        for at in range(query.indptr[i], query.indptr[i + 1]):
            column = query.indices[at]
            part = slice(columns.indptr[column], columns.indptr[column + 1])
            minima[columns.indices[part]] += np.minimum(weights[at], column_weights[part])
        distance[i] = 1 - minima / (2 - minima)
    return distance
