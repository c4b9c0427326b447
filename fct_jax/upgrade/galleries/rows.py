"""Rows of floats in a file, written in place without holding them in memory."""

import errno
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np


class Rows:
    """Rows of D floats that start at an offset in a file."""

    def __init__(self, path: Path, offset: int, dim: int, dtype):
        self.path, self.offset, self.dim, self.dtype = path, offset, dim, np.dtype(dtype)
        self._file = os.open(path, os.O_RDWR)
        self._width = dim * self.dtype.itemsize

    def write(self, start: int, vectors: np.ndarray, checksum: int = 0) -> int:
        """Write consecutive rows; return the ``checksum`` continued over their bytes."""
        data = memoryview(np.ascontiguousarray(vectors, self.dtype)).cast("B")
        at = self.offset + start * self._width
        checksum = zlib.crc32(data, checksum)
        while data:
            written = os.pwrite(self._file, data, at)
            data, at = data[written:], at + written
        return checksum

    def put(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Write vectors (n, D) to n rows; runs of neighbouring rows are written together."""
        order = np.argsort(rows)
        rows, vectors = rows[order], np.ascontiguousarray(vectors[order], self.dtype)
        ends = np.flatnonzero(np.diff(rows) != 1) + 1
        for first, last in zip([0, *ends], [*ends, len(rows)], strict=True):
            if first < last:
                self.write(int(rows[first]), vectors[first:last])

    def read(self, start: int, stop: int, into: np.ndarray | None = None) -> np.ndarray:
        """Return the rows from start to stop in the stored type.

        ``into``: contiguous rows of this type, at least as many, whose memory is used again.
        """
        found = np.empty((stop - start, self.dim), self.dtype) if into is None else into
        found = found[: stop - start]
        data, at = memoryview(found.reshape(-1).view(np.uint8)), self.offset + start * self._width
        while data:
            count = os.preadv(self._file, [data], at)
            if not count:
                raise OSError(errno.EIO, f"rows {start} to {stop - 1} are cut off", str(self.path))
            data, at = data[count:], at + count
        return found

    def get(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows in the given order, in the stored type."""
        found = np.empty((len(rows), self.dim), self.dtype)
        for place, row in enumerate(rows):
            data = os.pread(self._file, self._width, self.offset + int(row) * self._width)
            found[place] = np.frombuffer(data, self.dtype)
        return found

    def sync(self) -> None:
        """Flush written rows to disk, so that they survive a crash."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class Awaited:
    """Rows that are read in order once they are written; each read replaces the last one's rows."""

    def __init__(self, rows: Rows, ready: Callable[[int], None] | None):
        """Take rows, and a function that waits until those before its argument are written."""
        self.dim, self.dtype, self._rows, self._ready = rows.dim, rows.dtype, rows, ready
        self._buffer = np.empty((0, self.dim), self.dtype)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the rows from start to stop in the stored type, until the next call."""
        if self._ready is not None:
            self._ready(stop)
        if len(self._buffer) < stop - start:
            self._buffer = np.empty((stop - start, self.dim), self.dtype)
        return self._rows.read(start, stop, self._buffer)


def empty_npy(path: Path, shape, dtype) -> None:
    """Make a .npy file whose values are a hole, which uses neither memory nor disk space yet."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False}
    with path.open("wb") as file:
        np.lib.format.write_array_header_2_0(file, {**header, "shape": tuple(shape)})
        file.truncate(file.tell() + int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize)


def npy_rows(path: Path) -> Rows:
    """Open the rows of a .npy file; a one-dimensional array has rows of one value."""
    found = np.load(path, mmap_mode="r", allow_pickle=False)
    dim = found.shape[1] if found.ndim == 2 else 1
    return Rows(path, found.offset, dim, found.dtype)
