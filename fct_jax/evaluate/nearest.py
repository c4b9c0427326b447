"""The inner loop of every exhaustive search: Faiss on blocks of rows, and the best of all blocks.

A larger score is nearer. Of equal scores the lower row comes first, with any blocks; only which
of several equal items takes the last place inside a block is Faiss's choice.
"""

from collections.abc import Iterable

import faiss
import numpy as np


def nearest(
    queries: np.ndarray,
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    wanted: int,
    metric: str = "dot",
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best of rows that come in blocks: scores (Q, n) descending, and rows (Q, n).

    Args:
      queries: (Q, D) contiguous float32.
      blocks: (rows (m,), their vectors (m, D)); each row once, ascending or not.
      wanted: n, results per query. If there are fewer rows, −inf and −1 fill the results.
      metric: "dot", whose score is the inner product, or "l2", whose score is minus the squared
        distance.
    """
    measure = faiss.METRIC_INNER_PRODUCT if metric == "dot" else faiss.METRIC_L2
    scores = np.full((len(queries), 0), -np.inf, np.float32)
    found = np.full((len(queries), 0), -1, np.int64)
    for rows, vectors in blocks:
        block = np.ascontiguousarray(vectors, np.float32)
        score, place = faiss.knn(queries, block, min(wanted, len(block)), metric=measure)
        scores = np.hstack([scores, score if metric == "dot" else -score])
        found = np.hstack([found, np.where(place < 0, -1, rows[place])])
        if found.shape[1] > 4 * wanted:  # seldom, because sorting is slow
            scores, found = best(scores, found, wanted)
    return best(scores, found, wanted)


def best(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best of (Q, n) candidates, descending; the rest is −inf and row −1.

    >>> best(np.array([[1.0, 2.0, 2.0]]), np.array([[7, 9, 3]]), 2)[1].tolist()
    [[3, 9]]
    """
    missing = max(0, k - scores.shape[1])
    scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
    rows = np.pad(rows, ((0, 0), (0, missing)), constant_values=-1)
    rows = np.where(np.isneginf(scores), -1, rows)
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
