"""Detection of two models' vectors in one file, which makes many comparisons meaningless."""

from __future__ import annotations

import numpy as np

from fct_jax.evaluate.distances import unit_rows

_DIRECTIONS = 16  # principal directions of a part that are compared
_FEWEST_DIMENSIONS = 64  # in fewer dimensions random directions are too similar
_FEWEST = 200  # vectors in a part
_PASSES = 30
_UNRELATED = 1.5  # times the overlap of random directions


def mixed_spaces(vectors: np.ndarray) -> float | None:
    """Return the share of the smaller of two unrelated parts, or None if one space is plausible.

    The vectors are split in two, by 2-means and in the middle of the file. Parts of one model's
    space share principal directions, whatever their content; those of two models share no more
    than random directions do. A mixture that neither split separates (two similar image models,
    in random order) is not detected, nor is a part of less than a tenth.

    Args:
      vectors: (N, D) a sample in the order of the file, float32.
    """
    # Copies of one vector form a cluster that says nothing about another model.
    _, first = np.unique(vectors, axis=0, return_index=True)
    vectors = vectors[np.sort(first)]
    count, dim = vectors.shape
    if dim < _FEWEST_DIMENSIONS or count < 2 * _FEWEST:
        return None
    rows = unit_rows(vectors).astype(np.float32)
    directions = min(_DIRECTIONS, dim // 8)
    middle = np.arange(count) >= count // 2
    for second in (_two_means(rows), middle):
        smaller = min(second.sum(), count - second.sum())
        if smaller < max(_FEWEST, 0.1 * count):
            continue
        shared = _overlap(rows[second], rows[~second], directions)
        if shared < _UNRELATED * directions / dim:
            return float(smaller / count)
    return None


def _two_means(rows: np.ndarray) -> np.ndarray:
    """Return (N,) bool: the second of two clusters, started from the first principal direction."""
    centred = rows - rows.mean(axis=0)
    first = np.linalg.svd(centred[:: max(1, len(rows) // 1000)], full_matrices=False)[2][0]
    second = centred @ first > 0
    for _ in range(_PASSES):
        if second.all() or not second.any():
            break
        apart = rows[second].mean(axis=0) - rows[~second].mean(axis=0)
        between = (rows[second].mean(axis=0) + rows[~second].mean(axis=0)) / 2
        moved = (rows - between) @ apart > 0
        if (moved == second).all():
            break
        second = moved
    return second


def _overlap(left: np.ndarray, right: np.ndarray, directions: int) -> float:
    """Return the overlap of the leading directions: 1 if equal, directions / D by chance."""

    def leading(rows):
        rows = rows[:: max(1, len(rows) // 1500)]
        return np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)[2][:directions]

    return float(np.square(leading(left) @ leading(right).T).sum() / directions)
