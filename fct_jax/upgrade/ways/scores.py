"""The score of a query and an item as an inner product, whatever the metric: what indexes hold."""

import dataclasses

import faiss
import numpy as np

from fct_jax.evaluate.distances import check_metric, unit_rows
from fct_jax.upgrade.stores.affine import without_own

BLOCK = 1 << 16  # gallery rows read together
_NEIGHBOURS = 5  # of an item in the crowd
_LOOKED_AT = 1000  # vectors, for their length
_UNIT = 5e-3  # from length 1: what float16 leaves of it


def chosen_metric(given: str | None, vectors, said: str | None = None) -> tuple[str, str]:
    """Return "l2" or "cosine", and why.

    given: by the caller, "" or None to choose; vectors (N, D): of which the first are looked at;
    said: what the vectors' meta.json says, or None. Raises UserError for an unknown metric.
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
    """A model's space with its way of comparing vectors: more is nearer.

    metric: "cosine": the score is the cosine; "l2": q·g − |g|²/2, which orders as the distance.
    centre (D,): for "l2", subtracted from both sides, so that float32 keeps its digits.
    damping: share of an item's crowding (mean score of its five nearest of the crowd) that is
      taken off its score, so that items which are near to everything do not come first
      everywhere. It is one more column of what an index stores. Source: Conneau et al., "Word
      translation without parallel data", ICLR 2018 (CSLS).
    crowd (M, E): plain prepared items, where there is damping.
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
        """Return the same with a damping by a crowd of vectors (M, D)."""
        if not damping:
            return dataclasses.replace(self, damping=0.0, crowd=None)
        return dataclasses.replace(self, damping=damping, crowd=self._plain_items(crowd))

    def items(self, vectors) -> np.ndarray:
        """Return (N, E) float32 of vectors (N, D), as an inner-product index stores them."""
        plain = self._plain_items(vectors)
        if not self.damping:
            return plain
        column = -self.damping * crowding(self, vectors)
        return np.concatenate([plain, column[:, None].astype(np.float32)], axis=1)

    def queries(self, vectors) -> np.ndarray:
        """Return (Q, E) float32 of (Q, D), whose inner product with an item is the score."""
        plain = self._plain_queries(vectors)
        return np.pad(plain, ((0, 0), (0, 1)), constant_values=1) if self.damping else plain

    def _plain_items(self, vectors) -> np.ndarray:
        rows = np.asarray(vectors, np.float32)
        if self.metric == "cosine":
            return unit_rows(rows).astype(np.float32)
        rows = rows - self.centre
        half = np.einsum("nd,nd->n", rows, rows, dtype=np.float64) / 2
        return np.concatenate([rows, -half[:, None].astype(np.float32)], axis=1)

    def _plain_queries(self, vectors) -> np.ndarray:
        rows = np.asarray(vectors, np.float32)
        if self.metric == "cosine":
            return unit_rows(rows).astype(np.float32)
        return np.concatenate([rows - self.centre, np.ones((len(rows), 1), np.float32)], axis=1)


def crowding(space: Space, vectors) -> np.ndarray:
    """Return each vector's mean score (N,) with its five nearest of the space's crowd.

    The score of two items: their cosine, or minus half their squared distance.
    """
    asked, itself = space._plain_queries(vectors), space._plain_items(vectors)
    near, _ = faiss.knn(asked, space.crowd, _NEIGHBOURS + 1, metric=faiss.METRIC_INNER_PRODUCT)
    near = without_own(near, np.einsum("ne,ne->n", asked, itself)).mean(axis=1)
    return near + itself[:, -1] if space.metric == "l2" else near


def top(queries: np.ndarray, items, rows: np.ndarray, k: int, own=None):
    """Return the k best of some gallery rows by inner product, a block of rows at a time.

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
    """Return the k best of (Q, n) candidates, descending; the rest is −inf and row −1."""
    missing = max(0, k - scores.shape[1])
    scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
    rows = np.pad(rows, ((0, 0), (0, missing)), constant_values=-1)
    rows = np.where(np.isneginf(scores), -1, rows)
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
