"""The neighbours that are lost when vectors are stored in fewer bits."""

import dataclasses
from collections.abc import Callable

import numpy as np

from fct_jax.evaluate.search import knn

_ITEMS, _QUERIES, _NEAREST = 20_000, 500, 10  # the most that are looked at


def _float16(vectors: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return vectors.astype(np.float16).astype(np.float32)


def _int8(vectors: np.ndarray) -> np.ndarray:
    """Round each dimension to 255 even steps between its smallest and its largest value."""
    low, high = vectors.min(axis=0), vectors.max(axis=0)
    step = np.where(high > low, (high - low) / 254, 1).astype(np.float32)
    return np.rint((vectors - low) / step) * step + low


def _binary(vectors: np.ndarray) -> np.ndarray:
    """Keep the sign of each value, as the embedding services' binary types do."""
    return np.where(vectors > 0, np.float32(1), np.float32(-1))


@dataclasses.dataclass(frozen=True)
class Stored:
    """A type in which vectors are stored.

    Attributes:
      after: function that returns vectors (n, D) as they are after storing.
      width: bytes of a dimension.
      metric: the only metric of the type; None for the gallery's own.
    """

    after: Callable[[np.ndarray], np.ndarray]
    width: float
    metric: str | None = None


STORED = {
    "float16": Stored(_float16, 2),
    "int8": Stored(_int8, 1),
    "binary": Stored(_binary, 1 / 8, "cosine"),
}


def recall_by_type(
    vectors, queries: np.ndarray, metric: str, own: np.ndarray | None = None
) -> dict[str, float]:
    """Return the recall@10 of float32's neighbours for each type of stored vectors.

    Queries stay float32. For "binary" nearness is the product with the signs, whatever the metric.
    A type that cannot hold the values is left out.

    Args:
      vectors: (N, D) gallery vectors; at most 20,000 evenly spread ones are looked at.
      queries: (Q, D) float32; at most 500.
      metric: "l2" or "cosine".
      own: (Q,) rows of the gallery that are not results of their queries, or None.
    """
    rows = np.unique(np.linspace(0, len(vectors) - 1, min(len(vectors), _ITEMS)).astype(np.int64))
    items = np.asarray(vectors[rows], np.float32)
    queries = np.asarray(queries[:_QUERIES], np.float32)
    own = None if own is None else own[: len(queries)]
    expected = _nearest(queries, items, metric, rows, own)
    recalls = {}
    for name, stored in STORED.items():
        after = stored.after(items)
        if np.isfinite(after).all() and expected.size:
            found = _nearest(queries, after, stored.metric or metric, rows, own)
            hits = (found[:, :, None] == expected[:, None, :]).any(axis=2)
            recalls[name] = float(hits.mean())
    return recalls


def _nearest(queries, items, metric: str, rows: np.ndarray, own: np.ndarray | None) -> np.ndarray:
    """Return the gallery's ``rows`` (Q, K) of the items nearest to each query but its own one."""
    if own is None:
        return rows[knn(queries, items, min(_NEAREST, len(items)), metric=metric)[1]]
    count = min(_NEAREST + 1, len(items))
    found = rows[knn(queries, items, count, metric=metric)[1]]
    last = np.argsort(found == own[:, None], axis=1, kind="stable")  # the own row comes last
    return np.take_along_axis(found, last, axis=1)[:, : count - 1]
