"""Two signals of how reliable a translated vector is, and so of which items to re-embed first.

Neither needs the item's new vector: its distance to the nearest training pair, and the
distance of its translation to the mean of its class.
"""

import dataclasses

import numpy as np
import scipy.sparse

from fct_jax.errors import UserError, unknown
from fct_jax.evaluate.distances import (
    as_labels,
    as_vectors,
    check_metric,
    check_same_width,
    distances,
    unit_rows,
)
from fct_jax.evaluate.search import knn
from fct_jax.runtime import threads
from fct_jax.storage import spilled
from fct_jax.upgrade.maps.kmeans import kmeans, nearest_centre

SPREADS = ("mean", "std", "local")
DOUBTFUL = 0.3  # the source advises re-embedding items with a lower confidence
_PAIRS = 5000  # random pairs of training vectors that represent all pairs
_NEIGHBOURS = 32
BLOCK = 8192  # rows worked through at a time
_IN_CACHE = 256  # rows whose float64 values stay in a core's cache
_CELLS = 64  # k-means cells for items without classes
_PER_CELL = 64  # items per centre that k-means is fitted on


def translation_confidence(
    vectors, training_vectors, *, spread: str = "mean", seed: int = 0, block: int = BLOCK
) -> np.ndarray:
    """Return the confidence ``exp(−δ / σ)`` of each vector, (N,).

    δ is the vector's distance to the nearest training vector.

    Args:
      vectors: (N, D) old vectors of the items to be translated; a memory map is read in blocks.
      training_vectors: (M, D) old vectors of the pairs that the map was fitted on.
      spread: definition of σ. "mean" is the mean distance between training vectors, as in the
        public code; "std" is the standard deviation of these distances, as in the paper; "local"
        is each vector's median distance to its 32 nearest training vectors. If there are more than
        5,000 pairs of training vectors, 5,000 random ones are used.
      seed: seed of the random pairs.
      block: vectors worked through at a time.

    As an order of re-embedding (lowest first), "mean" and "std" both put the largest δ first.
    If all training vectors are equal, σ is 0: a vector equal to them has confidence 1 and any
    other vector 0.

    Raises UserError for different sizes, NaN or infinity, an unknown spread, or a single training
    vector with "mean" or "std".

    Example: ``doubtful = translation_confidence(gallery, sample) < DOUBTFUL``.

    Source: LA2M (SIGMOD 2026), public code.
    """
    if spread not in SPREADS:
        raise unknown("spread", spread, SPREADS)
    training = as_vectors("training_vectors", training_vectors)
    check_same_width("vectors", np.asarray(vectors), "training_vectors", training)
    if spread == "local":
        near = nearest_distances(vectors, training, min(_NEIGHBOURS, len(training)), block=block)
        delta, sigma = near[:, 0], np.median(near, axis=1)
    else:
        between = _distances_between(training, seed)
        sigma = between.mean() if spread == "mean" else between.std()
        delta = nearest_distances(vectors, training, 1, block=block)[:, 0]
    ratio = np.full(len(delta), np.inf)
    np.divide(delta, sigma, out=ratio, where=np.broadcast_to(sigma > 0, delta.shape))
    ratio[delta == 0] = 0
    return np.exp(-ratio)


def nearest_distances(vectors, training_vectors, count: int, *, block: int = BLOCK) -> np.ndarray:
    """Return the Euclidean distances (N, count), float64, to the nearest training vectors.

    An exact search in float32 finds the neighbours; their distances are then computed in float64.
    """
    training = as_vectors("training_vectors", training_vectors)
    found = spilled.empty((len(vectors), count), np.float64)
    for part in _blocks(len(vectors), block):
        asked = as_vectors(f"vectors from row {part.start}", vectors[part])
        _, rows = knn(asked, training, count)
        for column in range(count):
            found[part, column] = distances(asked, training[rows[:, column]])
        found[part].sort(axis=1)
    return found


def class_mean_distance(
    translated, labels, *, metric: str = "l2", block: int = BLOCK
) -> np.ndarray:
    """Return the distance (N,) of each translated vector to the mean of its class.

    Items far from the mean of their class are re-embedded first: the order is
    ``np.argsort(-distance, kind="stable")``, in which the lower of two tied rows comes first.

    Args:
      translated: (N, D), h(old); a memory map is read in blocks, twice. The means are not scaled
        to unit length.
      labels: (N,) integers or text. An item that is alone in its class has distance 0.
      metric: "l2" or "cosine".
      block: rows worked through at a time.

    Raises UserError for different lengths, NaN or infinity, or an unknown metric.

    Example: ``order = np.argsort(-class_mean_distance(translated, labels), kind="stable")``.

    Source: https://arxiv.org/abs/2509.16664 (λ-orthogonality), its order of backfilling.
    """
    check_metric(metric)
    if np.ndim(translated) != 2 or not len(translated):
        as_vectors("translated", translated)  # raises
    labels = as_labels("labels", labels, len(translated))
    names, which = np.unique(labels, return_inverse=True)
    sums = np.zeros((len(names), translated.shape[1]))
    for rows in _blocks(len(translated), block):
        vectors = as_vectors(f"translated from row {rows.start}", translated[rows])
        sums += _sums(vectors, which[rows], len(names))
    return _from_means(translated, sums, which, metric, block)


def _sums(vectors: np.ndarray, which: np.ndarray, count: int) -> np.ndarray:
    """Return the sum (K, D) float64 of the vectors (n, D) of each of ``count`` classes."""
    places = (np.ones(len(which)), (which, np.arange(len(which))))
    of_class = scipy.sparse.csr_matrix(places, shape=(count, len(which)))
    return of_class @ vectors.astype(np.float64)


def _from_means(translated, sums, which, metric: str, block: int) -> np.ndarray:
    """Return the distances (N,) of vectors to the means of their classes, from the sums (K, D)."""
    means = sums / np.maximum(np.bincount(which, minlength=len(sums)), 1)[:, None]
    if metric == "cosine":
        means = unit_rows(means)
    found, blocks = spilled.empty(len(translated), np.float64), _blocks(len(translated), block)

    def measure(rows: slice) -> None:
        vectors = translated[rows]
        for some in _blocks(len(vectors), _IN_CACHE):
            part, mean = vectors[some], means[which[rows][some]]
            if metric == "cosine":
                found[rows][some] = 1.0 - np.sum(unit_rows(part) * mean, axis=-1)
            else:
                found[rows][some] = distances(part, mean)

    for _ in threads.in_order(measure, blocks):
        pass
    return found


def cell_mean_distance(
    translated,
    cells: int,
    *,
    metric: str = "l2",
    sample: int = 50_000,
    seed: int = 0,
    block: int = BLOCK,
) -> np.ndarray:
    """Return `class_mean_distance` with k-means cells in place of classes, for unlabelled items.

    Vectors are read twice, and those of the sample once more. This variant is ours.

    Args:
      translated: (N, D), h(old).
      cells: number of cells, at least 1.
      metric: "l2" or "cosine".
      sample: largest number of rows on which k-means runs; all rows are assigned to its cells.
      seed: seed of the sample and of k-means.
      block: rows worked through at a time.

    Raises UserError for no rows, NaN or infinity, or fewer than 1 cell.
    """
    if np.ndim(translated) != 2 or not len(translated):
        as_vectors("translated", translated)  # raises
    check_metric(metric)
    if cells < 1:
        raise UserError(f"the number of cells must be at least 1, not {cells}")
    made = Cells.of(translated, cells, sample=sample, seed=seed)
    blocks = _blocks(len(translated), block)

    def assign(rows: slice) -> np.ndarray:
        return made.assign(rows, as_vectors(f"translated from row {rows.start}", translated[rows]))

    for sums in threads.in_order(assign, blocks):
        made.add(sums)
    return made.distances(translated, metric, block)


@dataclasses.dataclass(frozen=True)
class Cells:
    """A division of N vectors into K k-means cells, which sees the vectors block by block.

    Whoever reads all the vectors calls `assign` with each block, and `add` with what it returns, in
    the order of the rows; then `distances` needs only one more reading.

    Attributes:
      centres: (K, D) float64.
      assigned: (N,) the cell of each vector.
      sums: (K, D) float64, the sum of each cell's vectors.
    """

    centres: np.ndarray
    assigned: np.ndarray
    sums: np.ndarray

    @classmethod
    def of(cls, vectors, cells: int, *, sample: int, seed: int) -> "Cells":
        """Return cells fitted on a sample of vectors (N, D), to which none is assigned yet."""
        rows = np.random.default_rng(seed).permutation(len(vectors))[:sample]
        centres = kmeans(vectors[np.sort(rows)], cells, seed=seed).centres
        return cls(centres, spilled.empty(len(vectors), np.int64), np.zeros(centres.shape))

    def assign(self, rows: slice, vectors: np.ndarray) -> np.ndarray:
        """Assign the vectors (n, D) of some rows; return the sum (K, D) of each cell's."""
        self.assigned[rows] = nearest_centre(vectors, self.centres)[0]
        return _sums(vectors, self.assigned[rows], len(self.centres))

    def add(self, sums: np.ndarray) -> None:
        """Add the sums (K, D) of some rows."""
        np.add(self.sums, sums, out=self.sums)

    def distances(self, vectors, metric: str, block: int = BLOCK) -> np.ndarray:
        """Return the distance (N,) of each vector (N, D) to the mean of its cell."""
        return _from_means(vectors, self.sums, self.assigned, metric, block)


def usual_cells(count: int) -> dict[str, int]:
    """Return the number of cells for ``count`` items, and of items that k-means is fitted on.

    >>> usual_cells(1_000_000)
    {'cells': 64, 'sample': 4096}
    """
    cells = max(1, min(_CELLS, count // _PER_CELL))
    return {"cells": cells, "sample": cells * _PER_CELL}


def _blocks(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _distances_between(training, seed: int) -> np.ndarray:
    """Return the distances of all pairs of training vectors, or of 5,000 random pairs."""
    count = len(training)
    if count < 2:
        raise UserError(
            'the spread of training vectors needs at least 2 of them; spread="local" needs only one'
        )
    if count * (count - 1) // 2 <= _PAIRS:
        first, second = np.triu_indices(count, 1)
    else:
        rng = np.random.default_rng(seed)
        first = rng.integers(count, size=_PAIRS)
        second = (first + rng.integers(1, count, size=_PAIRS)) % count  # never the same row
    return distances(training[first], training[second])
