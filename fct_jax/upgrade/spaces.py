"""The score of a query and an item as an inner product, whatever the metric: what indexes hold."""

import dataclasses

import faiss
import numpy as np

from fct_jax.evaluate.distances import check_metric

BLOCK = 1 << 16  # gallery rows read together
_FLOOR = 1e-12


@dataclasses.dataclass(frozen=True)
class Space:
    """How vectors of one model are compared: more is nearer.

    metric: "cosine": the score is the cosine; "l2": q·g − |g|²/2, which orders as the distance.
    centre (D,): for "l2", subtracted from both sides, so that float32 keeps its digits.
    """

    metric: str
    centre: np.ndarray

    @classmethod
    def of(cls, sample, metric: str) -> "Space":
        """The space of a sample of vectors (N, D)."""
        check_metric(metric)
        mean = np.asarray(sample[:BLOCK], np.float64).mean(axis=0)
        return cls(metric, mean.astype(np.float32) if metric == "l2" else 0 * mean)

    def items(self, vectors) -> np.ndarray:
        """(N, D) → (N, D) or (N, D + 1) float32, as an inner-product index stores them."""
        rows = np.asarray(vectors, np.float32)
        if self.metric == "cosine":
            return _unit(rows)
        rows = rows - self.centre
        half = np.einsum("nd,nd->n", rows, rows, dtype=np.float64) / 2
        return np.concatenate([rows, -half[:, None].astype(np.float32)], axis=1)

    def queries(self, vectors) -> np.ndarray:
        """(Q, D) → (Q, D) or (Q, D + 1) float32, whose inner product with an item is the score."""
        rows = np.asarray(vectors, np.float32)
        if self.metric == "cosine":
            return _unit(rows)
        return np.concatenate([rows - self.centre, np.ones((len(rows), 1), np.float32)], axis=1)


def _unit(rows: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return (rows / np.maximum(norm, _FLOOR)).astype(np.float32)


def top(queries: np.ndarray, items, rows: np.ndarray, k: int, own=None):
    """The k best of some gallery rows by inner product, a block of rows at a time.

    Args:
      queries: (Q, E) float32.
      items: rows (n,) → (n, E) float32, of the rows asked for.
      rows: (n,) the gallery rows to search, ascending.
      k: results a query.
      own: (Q,) the gallery row that is never a query's result, or None.

    Returns scores (Q, k) float32, descending, −inf where there are fewer, and rows (Q, k) int64,
    −1 there. Of equal scores the lower row comes first.
    """
    wanted = k + (own is not None)
    scores = np.full((len(queries), 0), -np.inf, np.float32)
    found = np.full((len(queries), 0), -1, np.int64)
    for start in range(0, len(rows), BLOCK):
        part = rows[start : start + BLOCK]
        block = np.ascontiguousarray(items(part), np.float32)
        score, place = faiss.knn(
            queries, block, min(wanted, len(part)), metric=faiss.METRIC_INNER_PRODUCT
        )
        scores, found = np.hstack([scores, score]), np.hstack([found, part[place]])
        if found.shape[1] > 4 * wanted:
            scores, found = best(scores, found, wanted)
    if own is not None:
        scores[found == own[:, None]] = -np.inf
    return best(scores, found, k)


def best(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of (Q, n) candidates, descending; fewer are filled with −inf and row −1."""
    missing = max(0, k - scores.shape[1])
    scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
    rows = np.pad(rows, ((0, 0), (0, missing)), constant_values=-1)
    rows = np.where(np.isneginf(scores), -1, rows)
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
