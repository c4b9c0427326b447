"""Scores of queries and items as inner products, for every metric, as indexes compute them."""

import dataclasses

import faiss
import numpy as np

from fct_jax.evaluate.distances import check_metric, unit_rows
from fct_jax.evaluate.nearest import best, nearest
from fct_jax.storage import spilled
from fct_jax.upgrade.stores.affine import without_own

BLOCK = 1 << 16  # gallery rows read together
_IN_CACHE = 256  # rows whose float64 values stay in a core's cache
_NEIGHBOURS = 5  # nearest neighbours of an item in the crowd
_LOOKED_AT = 1000  # vectors whose length is measured
_UNIT = 5e-3  # tolerance of unit length, enough for float16


def chosen_metric(given: str | None, vectors, said: str | None = None) -> tuple[str, str]:
    """Return "l2" or "cosine", and the reason.

    given: the caller's metric, "" or None to choose. vectors (N, D): the first ones are measured.
    said: the metric in the vectors' meta.json, or None. Raises UserError for an unknown metric.
    """
    if given:
        check_metric(given)
        return given, "as given"
    if said:
        check_metric(said)
        return said, "as meta.json says"
    norms = np.linalg.norm(np.asarray(vectors[:_LOOKED_AT], np.float64), axis=1)
    if np.all(np.abs(norms - 1) < _UNIT):
        return "cosine", "the vectors have unit length"
    return "l2", "the vectors differ from unit length"


@dataclasses.dataclass(frozen=True)
class Space:
    """A model's space and its score; a larger score means nearer.

    metric: with "cosine" the score is the cosine; with "l2" it is q·g − |g|²/2, which ranks as the
      distance does.
    centre (D,): for "l2", subtracted from both sides, so that float32 keeps its digits.
    damping: share of an item's crowding (mean score with its five nearest items of the crowd) that
      is subtracted from its score, so that hubs, which are near to everything, do not come first
      everywhere. An index stores it as one more column. Source: Conneau et al., "Word
      translation without parallel data", ICLR 2018 (CSLS),
      https://arxiv.org/abs/1710.04087.
    crowd (M, E): plain prepared items, with damping only.
    """

    metric: str
    centre: np.ndarray
    damping: float = 0.0
    crowd: np.ndarray | None = None

    @classmethod
    def of(cls, sample, metric: str) -> "Space":
        """Return the space of a sample of vectors (N, D), without damping."""
        check_metric(metric)
        mean = np.asarray(sample[:BLOCK], np.float64).mean(axis=0)
        return cls(metric, mean.astype(np.float32) if metric == "l2" else 0 * mean)

    def damped(self, damping: float, crowd: np.ndarray) -> "Space":
        """Return the space with a damping by a crowd of vectors (M, D)."""
        if not damping:
            return dataclasses.replace(self, damping=0.0, crowd=None)
        return dataclasses.replace(self, damping=damping, crowd=self._plain_items(crowd))

    def items(self, vectors) -> np.ndarray:
        """Prepare vectors (N, D) for an inner-product index: (N, E) float32."""
        plain = self._plain_items(vectors)
        if not self.damping:
            return plain
        column = -self.damping * crowding(self, vectors)
        return np.concatenate([plain, column[:, None].astype(np.float32)], axis=1)

    def queries(self, vectors) -> np.ndarray:
        """Prepare queries (Q, D): (Q, E) float32, whose inner product with an item is the score."""
        plain = self._plain_queries(vectors)
        return np.pad(plain, ((0, 0), (0, 1)), constant_values=1) if self.damping else plain

    def _plain_items(self, vectors) -> np.ndarray:
        rows = np.asarray(vectors, np.float32)
        if self.metric == "cosine":
            unit = np.empty(rows.shape, np.float32)
            for part in spilled.blocks(len(rows), _IN_CACHE):
                unit[part] = unit_rows(rows[part])
            return unit
        rows = rows - self.centre
        half = np.einsum("nd,nd->n", rows, rows, dtype=np.float64) / 2
        return np.concatenate([rows, -half[:, None].astype(np.float32)], axis=1)

    def _plain_queries(self, vectors) -> np.ndarray:
        rows = np.asarray(vectors, np.float32)
        if self.metric == "cosine":
            return unit_rows(rows).astype(np.float32)
        return np.concatenate([rows - self.centre, np.ones((len(rows), 1), np.float32)], axis=1)


def crowding(space: Space, vectors) -> np.ndarray:
    """Return each vector's mean score (N,) with its five nearest items of the space's crowd.

    The score of two items is their cosine, or minus half their squared distance.
    """
    asked, itself = space._plain_queries(vectors), space._plain_items(vectors)
    near, _ = faiss.knn(asked, space.crowd, _NEIGHBOURS + 1, metric=faiss.METRIC_INNER_PRODUCT)
    near = without_own(near, np.einsum("ne,ne->n", asked, itself)).mean(axis=1)
    return near + itself[:, -1] if space.metric == "l2" else near


def top(queries: np.ndarray, items, rows: np.ndarray, k: int, own=None):
    """Return the k best of some gallery rows by inner product, read block by block.

    Args:
      queries: (Q, E) float32.
      items: function that returns the items (n, E) float32 of rows (n,).
      rows: (n,) the gallery rows to search, ascending.
      k: results per query.
      own: (Q,) the gallery row that is never a query's result, or None.

    Returns scores (Q, k) float32, descending, and rows (Q, k) int64, filled with −inf and −1. Of
    equal scores the lower row comes first.
    """
    parts = (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))
    blocks = ((part, items(part)) for part in parts)
    scores, found = nearest(queries, blocks, k + (own is not None))
    if own is not None:
        scores[found == own[:, None]] = -np.inf
    return best(scores, found, k)
