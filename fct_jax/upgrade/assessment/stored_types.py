"""The neighbours that are lost when vectors are stored in fewer bits."""

import numpy as np

from fct_jax.errors import UserError
from fct_jax.evaluate.search import knn
from fct_jax.upgrade.galleries.stored import SAMPLE, TYPES, Coding

_QUERIES, _NEAREST = 500, 10  # the most that are looked at


STORED = ("float16", "int8", "binary")  # types that cost recall


def recall_by_type(
    vectors,
    queries: np.ndarray,
    metric: str,
    own: np.ndarray | None = None,
    known: np.ndarray | None = None,
) -> dict[str, float]:
    """Return the recall@10 of float32's neighbours for each type of stored vectors.

    Queries stay float32. For "binary" nearness is the product with the signs, whatever the metric.
    A type that cannot hold the values, or vectors of this size, is left out.

    Args:
      vectors: (N, D) gallery vectors; at most 20,000 evenly spread ones are looked at.
      queries: (Q, D) float32; at most 500.
      metric: "l2" or "cosine".
      own: (Q,) rows of the gallery that are not results of their queries, or None.
      known: (P, D) new vectors that the map knows, as in `Translator.learn`; None for none.
    """
    rows = np.unique(np.linspace(0, len(vectors) - 1, min(len(vectors), SAMPLE)).astype(np.int64))
    items = np.asarray(vectors[rows], np.float32)
    queries = np.asarray(queries[:_QUERIES], np.float32)
    own = None if own is None else own[: len(queries)]
    expected = _nearest(queries, items, metric, rows, own)
    recalls = {}
    for name in STORED if expected.size else ():
        coding = Coding(TYPES[name])
        coding.learn(items, known)
        try:
            coding.type.values(items.shape[1])
            after = coding.decode(coding.encode(items))
        except (FloatingPointError, UserError):
            continue
        found = _nearest(queries, after, coding.type.metric or metric, rows, own)
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
