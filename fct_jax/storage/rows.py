"""Float32 .npy files of an unfinished EmbeddingSet, written in place."""

import contextlib
import os
from pathlib import Path

import numpy as np

from fct_jax.storage import checksums
from fct_jax.storage.files import disk_errors

Shapes = dict[str, tuple[int, ...]]  # {"vectors": (D,), "uncertainty": ()}: of a row of each file


def needed_bytes(shapes: Shapes, count: int) -> int:
    """Return the disk space of ``count`` rows in bytes."""
    return sum(_width(shape) * count for shape in shapes.values())


def lay_out(folder: Path, shapes: Shapes, count: int) -> None:
    """Create empty ``.npy`` files of full length."""
    for name, shape in shapes.items():
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (count, *shape))


def copy_spans(source: Path, target: Path, shapes: Shapes, spans: list[tuple[int, int]]) -> None:
    """Write files in which the rows (start, count) of each span follow those of the span before."""
    lay_out(target, shapes, sum(count for _, count in spans))
    with Columns(target, shapes) as files:
        for name in shapes:
            there, at = np.load(source / f"{name}.npy", mmap_mode="r"), 0
            for start, count in spans:
                files.write(name, at, there[start : start + count])
                at += count
        files.sync()


class Columns:
    """Context: the files, open for writing.

    Rows are written, not mapped: hosts that share a folder may write neighbouring rows, and mapped
    files are written back by whole pages.
    """

    def __init__(self, folder: Path, shapes: Shapes):
        self._paths = {name: folder / f"{name}.npy" for name in shapes}
        self._widths = {name: _width(shape) for name, shape in shapes.items()}

    def __enter__(self) -> "Columns":
        self._offsets = {n: np.load(p, mmap_mode="r").offset for n, p in self._paths.items()}
        self._files = {name: path.open("r+b") for name, path in self._paths.items()}
        return self

    def __exit__(self, *exception) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):  # what was not synced is not recorded either
                file.close()

    def write(self, name: str, row: int, array: np.ndarray, checksum: int = 0) -> int:
        """Write consecutive rows from ``row`` on; return the checksum continued over them."""
        array = np.ascontiguousarray(array, np.float32)
        with disk_errors(self._paths[name]):
            file = self._files[name]
            file.seek(self._offsets[name] + row * self._widths[name])
            file.write(array.data)
        return checksums.update(checksum, array)

    def checksums(self, name: str, spans: list[tuple[int, int]]) -> list[str]:
        """Return the checksums of the rows (start, count) of each span, as they are on the disk."""
        path, offset, width = self._paths[name], self._offsets[name], self._widths[name]
        return checksums.of_rows(path, offset, width, spans)

    def sync(self) -> None:
        """Flush all written rows to disk, so that they survive a crash."""
        for name, file in self._files.items():
            with disk_errors(self._paths[name]):
                file.flush()
                os.fsync(file.fileno())


def _width(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape)) * np.dtype(np.float32).itemsize
