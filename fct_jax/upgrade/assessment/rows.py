"""Vectors of a gallery that stays on disk while it is assessed."""

import dataclasses
import threading
from collections.abc import Callable

import numpy as np

from fct_jax.runtime import threads
from fct_jax.storage import spilled
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade.confidence import BLOCK, Cells
from fct_jax.upgrade.inputs import take
from fct_jax.upgrade.maps.map import Map

LARGE = 1 << 18  # items from which a gallery is not held in memory
_BLOCK = 1 << 16  # rows that are computed together if all are wanted


class Rows:
    """Vectors (N, D) float32 that are read, and computed, whenever some of them are wanted.

    ``rows[start:stop]`` and ``rows[array of rows]`` give arrays; `numpy.asarray` gives all of them,
    which takes the memory that this class saves.
    """

    dtype, ndim = np.dtype(np.float32), 2

    def __init__(
        self,
        stored,
        dim: int,
        rows: np.ndarray | None = None,
        function: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        """Take stored vectors (M, E), such as a memory map.

        Args:
          stored: gives rows as an array does.
          dim: D, the size of the vectors.
          rows: (N,) those of the stored rows that count; None: all.
          function: computes vectors (n, D) from stored ones (n, E); None: they are the same.
        """
        self._stored, self._rows, self._function = stored, rows, function
        self._last = threading.local()
        self.shape = len(stored if rows is None else rows), dim

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows) -> np.ndarray:
        wanted = (rows.start, rows.stop, rows.step) if isinstance(rows, slice) else None
        if wanted is not None and getattr(self._last, "rows", None) == wanted:
            return self._last.found
        from fct_jax.storage.halves import as_single  # late: importing Numba takes a second

        found = as_single(self._stored[rows if self._rows is None else self._rows[rows]])
        if self._function is None:
            return found
        found = self._function(found)
        # Vectors that are computed from these are often read next, by the same thread.
        self._last.rows, self._last.found = wanted, found
        return found

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        found = np.empty(self.shape, dtype or self.dtype)
        for start in range(0, len(self), _BLOCK):
            found[start : start + _BLOCK] = self[start : start + _BLOCK]
        return found

    def through(self, function: Callable[[np.ndarray], np.ndarray], dim: int) -> "Rows":
        """Return what a function computes from these vectors: (n, D) → (n, dim)."""
        return Rows(self, dim, function=function)


def held(vectors) -> "np.ndarray | Rows":
    """Return vectors in memory as float32, or those of a large gallery as they are."""
    return vectors if isinstance(vectors, Rows) else np.asarray(vectors, np.float32)


def part_of(found: EmbeddingSet, rows: np.ndarray) -> EmbeddingSet:
    """Return some rows of a set: in memory, or as `Rows` if they are more than `LARGE`."""
    if len(rows) <= LARGE:
        return take(found, rows)
    if len(rows) == len(found):
        return dataclasses.replace(found, vectors=Rows(found.vectors, found.dim), uncertainty=None)
    ids = spilled.empty(len(rows), found.ids.dtype)  # text may need more memory than the vectors
    for part in spilled.blocks(len(rows)):
        ids[part] = found.ids[rows[part]]
    labels = None if found.labels is None else np.asarray(found.labels)[rows]
    return dataclasses.replace(
        found, vectors=Rows(found.vectors, found.dim, rows), ids=ids, labels=labels,
        uncertainty=None,
    )  # fmt: skip


def applied(function: Callable[[np.ndarray], np.ndarray], vectors, dim: int):
    """Return what a function computes from vectors: now, or of a large gallery when it is read."""
    if isinstance(vectors, Rows):
        return vectors.through(function, dim)
    return function(vectors)


def translated(
    found: Map, old, cells: dict[str, int] | None = None
) -> "tuple[np.ndarray | Rows, np.ndarray | None, Cells | None]":
    """Return vectors translated by a map, their log-variances (N,), and their cells.

    A map may give no log-variances. A large gallery is read and translated once for these and for
    the cells, which are otherwise left to those who need them; and again by every later reader.

    cells: the arguments of `Cells.of`, or None if no cells are needed.
    """
    if not isinstance(old, Rows):
        return *found.transform(old), None
    # Readers want vectors only, without the regressor's log-variances.
    plain = Map(found.description, found.function) if found.uncertainty else found
    moved = old.through(lambda vectors: plain.transform(vectors)[0], found.dim_out)
    if not found.has_uncertainty:
        return moved, None, None
    made = None if cells is None else Cells.of(moved, **cells)
    log_variance = np.empty(len(old), np.float32)

    def look(rows: slice) -> np.ndarray | float:
        vectors, log_variance[rows] = found.transform(old[rows])
        return 0.0 if made is None else made.assign(rows, vectors)

    for sums in threads.in_order(look, spilled.blocks(len(old), BLOCK)):
        if made is not None:
            made.add(sums)
    return moved, log_variance, made
