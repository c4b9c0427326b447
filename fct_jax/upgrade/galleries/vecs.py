"""Files of the billion-scale benchmarks: a few bytes of header, then the vectors.

    .fvecs .bvecs .ivecs   each row: its dimension as int32, then float32, uint8 or int32 values
    .fbin .u8bin .i8bin    count and dimension as uint32, then all rows

``.fvecs`` are from http://corpus-texmex.irisa.fr, ``.fbin`` from https://big-ann-benchmarks.com.
Ids are row numbers.
"""

from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.upgrade.galleries.arrays import Array, ArraysGallery
from fct_jax.upgrade.galleries.base import Options

_ROWS = {".fvecs": "<f4", ".bvecs": "<u1", ".ivecs": "<i4"}  # one header per row
_WHOLE = {".fbin": "<f4", ".u8bin": "<u1", ".i8bin": "<i1"}  # one header per file
ENDINGS = (*_ROWS, *_WHOLE)


class VecsGallery(ArraysGallery):
    """One file, of the kind that its suffix names; a header that does not match is an error."""

    def __init__(self, path, options: Options):
        path = Path(path)
        ending = path.suffix.lower()
        size = path.stat().st_size
        head = np.fromfile(path, "<u4", 2)
        if len(head) < 2:
            raise UserError(f"{path} is cut off: it has {size} bytes")
        fits = [e for e in ENDINGS if _count(e, size, head) is not None]
        count = _count(ending, size, head)
        if count is None:
            other = f"; it may be a {' or '.join(fits)} file" if fits else "; it may be cut off"
            raise UserError(
                f"{path}: its size, {size:,} bytes, is not that of a {ending} file with the "
                f"header {tuple(map(int, head))}{other}"
            )
        read = _by_rows(path, int(head[0])) if ending in _ROWS else _whole(path, int(head[1]))
        dim = int(head[0] if ending in _ROWS else head[1])
        kind = np.dtype((_ROWS | _WHOLE)[ending])
        super().__init__(path, [Array(path.name, (count, dim), kind, read)], None, {})


def _count(ending: str, size: int, head: np.ndarray) -> int | None:
    """Return the number of rows by size and header; None if they contradict each other."""
    width = np.dtype((_ROWS | _WHOLE)[ending]).itemsize
    if ending in _ROWS:
        row = 4 + int(head[0]) * width
        return size // row if head[0] and size % row == 0 else None
    fits = int(head[0]) * int(head[1]) and size == 8 + int(head[0]) * int(head[1]) * width
    return int(head[0]) if fits else None


def _by_rows(path: Path, dim: int):
    kind = np.dtype([("dim", "<i4"), ("values", _ROWS[path.suffix.lower()], (dim,))])

    def read(start: int, stop: int) -> np.ndarray:
        rows = np.fromfile(path, kind, stop - start, offset=start * kind.itemsize)
        if (rows["dim"] != dim).any():
            row = start + int(np.argmax(rows["dim"] != dim))
            raise UserError(
                f"{path}: row {row} has dimension {rows['dim'][row - start]}, but the first row "
                f"has {dim}; the file is damaged or of another kind"
            )
        return rows["values"]

    return read


def _whole(path: Path, dim: int):
    kind = np.dtype(_WHOLE[path.suffix.lower()])

    def read(start: int, stop: int) -> np.ndarray:
        offset = 8 + start * dim * kind.itemsize
        return np.fromfile(path, kind, (stop - start) * dim, offset=offset).reshape(-1, dim)

    return read
