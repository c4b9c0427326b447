"""Lengths of float32 vectors, in one pass over them."""

import numpy as np

from fct_jax.evaluate.distances import unit_rows

# Squares of lengths in this range have neither lost digits nor overflowed in float32.
_SQUARES = 1e-24, 1e30


def squares(vectors: np.ndarray) -> np.ndarray:
    """Return the squared length of each vector (n, D) float32, (n,) float32.

    It is infinite or NaN exactly if a value is not finite or is far too large.
    """
    return np.einsum("nd,nd->n", vectors, vectors, dtype=np.float32)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return float32 vectors (n, D) with length 1; zero vectors stay zero.

    Lengths are right to float32's precision; `unit_rows` takes over where squares would overflow or
    vanish.

    >>> unit(np.array([[3, 4], [0, 0]], np.float32)).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    found = squares(vectors)
    usual = (found > _SQUARES[0]) & (found < _SQUARES[1])
    if not usual.all():
        return unit_rows(vectors).astype(np.float32)
    return vectors * (1 / np.sqrt(found))[:, None]
