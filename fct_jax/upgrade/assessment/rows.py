"""Vectors of a gallery that stays on disk while it is assessed."""

from collections.abc import Callable

import numpy as np

LARGE = 1 << 18  # items from which a gallery is not held in memory
_BLOCK = 1 << 14  # rows that are computed together if all are wanted


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
        self.shape = len(stored if rows is None else rows), dim

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows) -> np.ndarray:
        rows = rows if self._rows is None else self._rows[rows]
        found = np.asarray(self._stored[rows], np.float32)
        return found if self._function is None else self._function(found)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        found = np.empty(self.shape, dtype or self.dtype)
        for start in range(0, len(self), _BLOCK):
            found[start : start + _BLOCK] = self[start : start + _BLOCK]
        return found
