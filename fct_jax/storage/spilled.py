"""Large arrays that are kept in temporary files, so that the system can reclaim their memory."""

import os
import tempfile
from pathlib import Path

import numpy as np

_LARGE = 1 << 26  # bytes; an array of this size or larger is kept in a file
_BLOCK = 1 << 20  # values processed together


def empty(shape, dtype, large: int | None = None) -> np.ndarray:
    """Return a new array; one of 64 MiB or more is kept in a file, which is removed with it.

    The file is in the folder for temporary files (``TMPDIR``). If there is no space for it, the
    array is in memory.

    Args:
      shape, dtype: as for `numpy.empty`.
      large: number of bytes from which on the array is kept in a file; None: 64 MiB.
    """
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if size < (_LARGE if large is None else large) or size == 0:
        return np.empty(shape, dtype)
    try:
        with tempfile.TemporaryFile() as file:
            if hasattr(os, "posix_fallocate"):  # a full disk is noticed here, not by a mapped page
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            return np.memmap(file, dtype, "r+", shape=shape)
    except OSError:
        return np.empty(shape, dtype)


def load(path: Path) -> np.ndarray:
    """Load a .npy file; one of 64 MiB or more is mapped."""
    mode = "r" if path.stat().st_size >= _LARGE else None
    return np.load(path, mmap_mode=mode, allow_pickle=False)


def blocks(count: int, size: int = _BLOCK):
    """Yield slices that cut ``count`` values into blocks.

    >>> list(blocks(5, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
