"""Faiss files whose vectors are filled in place: floats, bytes or bits under ids of their own.

They are what ``faiss.write_index`` and ``faiss.write_index_binary`` would write, but their vectors
are a hole, so the memory needed does not grow with their number. The layout follows
``faiss/impl/index_write.cpp`` (https://github.com/facebookresearch/faiss).
"""

import struct
import zlib
from pathlib import Path

import faiss
import numpy as np

from fct_jax.upgrade.galleries.rows import Rows
from fct_jax.upgrade.galleries.stored import TYPES, Coding

METRICS = {faiss.METRIC_INNER_PRODUCT: "cosine", faiss.METRIC_L2: "l2"}
FLOATS = Coding(TYPES["float32"])
_HIGH = np.uint8(128)  # Faiss's bytes are this much larger than the codes of int8


def write_empty(
    path: Path, ids: np.ndarray, dim: int, metric: str, coding: Coding = FLOATS
) -> None:
    """Write an index of these ids whose vectors are all zero."""
    count = len(ids)
    with path.open("wb") as file:
        file.write(_LAYOUTS[coding.type.name](dim, count, metric, coding))
        file.seek(count * _width(dim, coding), 1)
        file.write(struct.pack("<Q", count))
        np.ascontiguousarray(ids, "<i8").tofile(file)


def vectors_offset(dim: int = 0, coding: Coding = FLOATS) -> int:
    """Return the byte at which the vectors of a file of `write_empty` start."""
    return len(_LAYOUTS[coding.type.name](dim, 0, "l2", coding))


def open_rows(path: Path, dim: int, coding: Coding) -> Rows:
    """Open the stored vectors of a file of `write_empty`."""
    kind = ByteRows if coding.type.name == "int8" else Rows
    return kind(path, vectors_offset(dim, coding), coding.type.values(dim), coding.type.dtype)


def codes_of(inner, coding: Coding | None) -> np.ndarray | None:
    """Return the stored rows of an index, which are not copied from the file; None: it has none.

    Bytes are those of Faiss; see `signed`.
    """
    name = None if coding is None else coding.type.name
    if name is None and isinstance(inner, faiss.IndexFlat):
        return faiss.rev_swig_ptr(inner.get_xb(), inner.ntotal * inner.d).reshape(-1, inner.d)
    if name == "int8" and isinstance(inner, faiss.IndexScalarQuantizer):
        found, width = inner.codes, inner.d
    elif name == "binary" and isinstance(inner, faiss.IndexBinaryFlat):
        found, width = inner.xb, inner.code_size
    else:
        return None
    return faiss.rev_swig_ptr(found.data(), inner.ntotal * width).reshape(-1, width)


def signed(codes: np.ndarray) -> np.ndarray:
    """Return Faiss's bytes as codes of int8, or the other way round; the memory is new."""
    return (codes.view(np.uint8) ^ _HIGH).view(np.uint8 if codes.dtype == np.int8 else np.int8)


class ByteRows(Rows):
    """Rows of codes of int8, which are Faiss's bytes in the file."""

    def write(self, start, vectors, checksum=0):
        codes = np.ascontiguousarray(vectors)
        super().write(start, signed(codes).view(np.int8))
        return zlib.crc32(codes, checksum)  # of what was given, as others see it

    def read(self, start, stop, into=None):
        return signed(super().read(start, stop, into)).view(np.int8)

    def get(self, rows):
        return signed(super().get(rows)).view(np.int8)


def _width(dim: int, coding: Coding) -> int:
    return coding.type.values(dim) * coding.type.dtype.itemsize


def _head(name: bytes, dim: int, count: int, metric: str) -> bytes:
    """Return the start of an index file: two unused numbers between count and trained."""
    number = next(number for number, known in METRICS.items() if known == metric)
    return name + struct.pack("<iqqqBi", dim, count, 1 << 20, 1 << 20, 1, number)


def _floats(dim: int, count: int, metric: str, coding: Coding) -> bytes:
    inner = b"IxF2" if metric == "l2" else b"IxFI"
    heads = _head(b"IxM2", dim, count, metric) + _head(inner, dim, count, metric)
    return heads + struct.pack("<Q", count * dim)


def _bytes(dim: int, count: int, metric: str, coding: Coding) -> bytes:
    """Return the head of an IndexScalarQuantizer of 8 bits whose range gives our scales.

    Faiss takes a byte for ``low + range × (byte + ½) / 255``.
    """
    scale, offset = (a.astype(np.float64) for a in (coding.scales.scale, coding.scales.offset))
    trained = np.concatenate([offset - 128.5 * scale, 255 * scale]).astype("<f4")
    heads = _head(b"IxM2", dim, count, metric) + _head(b"IxSQ", dim, count, metric)
    quantizer = struct.pack("<iifQQ", faiss.ScalarQuantizer.QT_8bit, 0, 0, dim, dim)
    sizes = struct.pack("<Q", len(trained)), struct.pack("<Q", count * dim)
    return heads + quantizer + sizes[0] + trained.tobytes() + sizes[1]


def _bits(dim: int, count: int, metric: str, coding: Coding) -> bytes:
    width = _width(dim, coding)
    rest = struct.pack("<iiqBi", dim, width, count, 1, faiss.METRIC_L2)
    return b"IBM2" + rest + b"IBxF" + rest + struct.pack("<Q", count * width)


_LAYOUTS = {"float32": _floats, "int8": _bytes, "binary": _bits}
