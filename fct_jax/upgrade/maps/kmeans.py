"""Reproducible k-means: its result depends only on the vectors and the seed.

scikit-learn's version adds up its threads' sums in the order in which they end, so two runs may
differ in the last digit; here one matrix product computes the sums.
"""

import dataclasses

import numpy as np
import scipy.sparse

from fct_jax.errors import UserError
from fct_jax.evaluate.distances import as_vectors

_BLOCK = 1 << 22  # distances held at a time


@dataclasses.dataclass(frozen=True)
class Cells:
    """A division of vectors into cells.

    Attributes:
      centres: (K, D) float64, the means of the cells.
      assigned: (N,) the cell of each vector: the nearest centre, the first of equally near ones.
    """

    centres: np.ndarray
    assigned: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Return the number of vectors in each cell (K,)."""
        return np.bincount(self.assigned, minlength=len(self.centres))


def kmeans(vectors, count: int, *, seed: int = 0, start=None, iterations: int = 100) -> Cells:
    """Divide vectors into ``count`` cells by Lloyd's iterations from a k-means++ start.

    A cell that becomes empty starts again at the vector furthest from its own centre. If there are
    fewer *different* vectors than ``count``, there are fewer cells. The same seed gives the same
    cells.

    Args:
      vectors: (N, D).
      count: K, at least 1.
      start: (K, D) centres to start from; ``count`` must then be K.
      iterations: largest number of iterations; they end earlier if no vector changes its cell.

    Raises UserError for no vectors, NaN or infinity, or a count below 1.

    Example: ``kmeans(vectors, 10).centres``.

    Source: Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007.
    """
    vectors = as_vectors("vectors", vectors)
    if count < 1:
        raise UserError(f"the number of cells must be at least 1, not {count}")
    if start is not None and np.shape(start) != (count, vectors.shape[1]):
        raise UserError(
            f"the start must hold {count} centres of {vectors.shape[1]} numbers, "
            f"not {np.shape(start)}"
        )
    middle = vectors.mean(axis=0, dtype=np.float64)
    rows = vectors - middle.astype(vectors.dtype)  # float32 keeps its digits near 0
    if start is None:
        centres = _spread_out(rows, count, np.random.default_rng(seed))
    else:
        centres = np.asarray(start, np.float64) - middle
    assigned, far = nearest_centre(rows, centres)
    for _ in range(iterations):
        centres = _means(rows, assigned, far, len(centres))
        before = assigned
        assigned, far = nearest_centre(rows, centres)
        if np.array_equal(assigned, before):
            break
    return Cells(centres + middle, assigned)


def nearest_centre(vectors, centres) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest centre (N,) of each vector (N, D) and the squared distance (N,) to it.

    The first of equally near centres (K, D) is taken.
    """
    assigned, squared = np.empty(len(vectors), np.int64), np.empty(len(vectors))
    for rows in _blocks(len(vectors), len(centres)):
        block = squared_distances(vectors[rows], centres)
        assigned[rows] = block.argmin(axis=1)
        squared[rows] = np.take_along_axis(block, assigned[rows, None], axis=1)[:, 0]
    return assigned, squared


def squared_distances(vectors, centres) -> np.ndarray:
    """Return the squared Euclidean distances (N, K) of vectors (N, D) and centres (K, D)."""
    vectors = np.asarray(vectors)
    centres = np.asarray(centres, vectors.dtype)
    own = np.einsum("nd,nd->n", vectors, vectors)[:, None]
    own = own + np.einsum("kd,kd->k", centres, centres)
    return np.maximum(own - 2 * (vectors @ centres.T), 0)


def _blocks(count: int, columns: int) -> list[slice]:
    size = max(1, _BLOCK // max(columns, 1))
    return [slice(start, start + size) for start in range(0, count, size)]


def _spread_out(rows, count: int, rng) -> np.ndarray:
    """Draw centres, each with a probability proportional to its squared distance to the others."""
    chosen = [int(rng.integers(len(rows)))]
    squared = _from_one(rows, chosen[0])
    while len(chosen) < count and squared.max() > 0:
        reach = np.cumsum(squared)
        drawn = int(np.searchsorted(reach, rng.random() * reach[-1], side="right"))
        chosen.append(min(drawn, len(rows) - 1))
        squared = np.minimum(squared, _from_one(rows, chosen[-1]))
    return rows[chosen].astype(np.float64)


def _from_one(rows, which: int) -> np.ndarray:
    """Return squared distances (N,) to one of the rows, exactly 0 for rows equal to it."""
    difference = rows - rows[which]
    return np.einsum("nd,nd->n", difference, difference).astype(np.float64)


def _means(rows, assigned, far, count: int) -> np.ndarray:
    sizes = np.bincount(assigned, minlength=count)
    places = (np.ones(len(rows), rows.dtype), (assigned, np.arange(len(rows))))
    sums = scipy.sparse.csr_matrix(places, shape=(count, len(rows))) @ rows
    centres = sums / np.maximum(sizes, 1)[:, None].astype(np.float64)
    empty = np.flatnonzero(sizes == 0)
    furthest = np.argsort(-far, kind="stable")[: len(empty)]
    centres[empty[: len(furthest)]] = rows[furthest]
    return centres
