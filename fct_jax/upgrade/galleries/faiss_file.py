"""A Faiss IndexIDMap2 file as a gallery, and the layout of one that is filled in place."""

import json
import struct
from pathlib import Path

import faiss
import numpy as np

from fct_jax.errors import UserError
from fct_jax.runtime.progress import console
from fct_jax.storage.embedding_set import check_state
from fct_jax.upgrade.galleries.base import Gallery, Options
from fct_jax.upgrade.galleries.rows import Rows
from fct_jax.upgrade.galleries.target import Target

_EXACT = (faiss.IndexFlat, faiss.IndexHNSWFlat, faiss.IndexNSGFlat, faiss.IndexIVFFlat)
_METRICS = {faiss.METRIC_INNER_PRODUCT: "cosine", faiss.METRIC_L2: "l2"}


class FaissTarget(Target):
    """``index.faiss``, whose vectors are written at their places inside the file.

    A Faiss file has no cosine, but the product of vectors that are stored with length 1.
    """

    meta_name, version_name = "index.meta.json", "index.version.npy"

    def lay_out(self, dim: int, metric: str) -> None:
        write_empty(self.store / "index.faiss", self.source.ids, dim, metric)

    def open_vectors(self, dim: int) -> Rows:
        return Rows(self.store / "index.faiss", vectors_offset(), dim, np.float32)

    def unit(self, metric: str) -> bool:
        return metric == "cosine"


class FaissGallery(Gallery):
    """A Faiss file; the vectors of a flat inner index stay on disk.

    Other inner indexes give back what they store: vectors of a quantised one are inexact.
    ``NAME.meta.json`` beside ``NAME.faiss`` says which model the vectors are of.
    """

    writer = FaissTarget
    dtype = np.dtype(np.float32)

    def __init__(self, path, options: Options):
        path = Path(path)
        path = path / "index.faiss" if path.is_dir() else path
        side = path.with_suffix(".meta.json")
        meta = {}
        if side.is_file():
            try:
                meta = json.loads(side.read_text())
            except ValueError as error:
                raise UserError(f"{side} cannot be read: {error}") from None
        check_state(str(path), meta, options.unfinished)
        self._index = _opened(path)
        inner = faiss.downcast_index(self._index.index)
        if self._index.metric_type not in _METRICS:
            raise UserError(f"{path}: its metric is neither L2 nor the inner product")
        if self._index.ntotal == 0:
            raise UserError(f"{path} is empty")
        self._inner, self._flat = inner, None
        self.exact = isinstance(inner, _EXACT)
        if not self.exact:
            console.print(
                f"{path}: {type(inner).__name__} holds likenesses of the vectors; what is "
                "translated is as inexact as they are"
            )
        if isinstance(inner, faiss.IndexFlat):
            values = faiss.rev_swig_ptr(inner.get_xb(), inner.ntotal * inner.d)
            self._flat = values.reshape(-1, inner.d)
        else:
            try:
                if isinstance(inner, faiss.IndexIVF):
                    inner.make_direct_map()  # else every look-up goes through all lists
                inner.reconstruct_n(0, 1)
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise UserError(
                    f"{path}: {type(inner).__name__} gives no vectors: {reason}"
                ) from None
        ids = faiss.vector_to_array(self._index.id_map)
        super().__init__(path, ids, inner.d, {"metric": _METRICS[self._index.metric_type], **meta})
        if path.with_suffix(".version.npy").is_file():
            self.versions = np.load(path.with_suffix(".version.npy"), allow_pickle=False)

    def read_stored(self, start: int, stop: int) -> np.ndarray:
        if self._flat is not None:
            return np.array(self._flat[start:stop], np.float32)
        return self._inner.reconstruct_n(start, stop - start)


def _opened(path: Path):
    # Older releases of Faiss map without IFC only inverted lists.
    flags = getattr(faiss, "IO_FLAG_MMAP_IFC", faiss.IO_FLAG_MMAP)
    try:
        index = faiss.read_index(str(path), flags)
    except RuntimeError as error:
        raise UserError(f"{path} is no Faiss index: {str(error).splitlines()[-1]}") from None
    if not isinstance(index, faiss.IndexIDMap | faiss.IndexIDMap2):
        raise UserError(
            f"{path} holds a {type(index).__name__}; an IndexIDMap2, which knows ids, is needed"
        )
    return index


def write_empty(path: Path, ids: np.ndarray, dim: int, metric: str) -> None:
    """Writes an IndexIDMap2 of an IndexFlat whose vectors are all zero.

    The file is as ``faiss.write_index`` writes it, but its vectors are a hole to be filled in
    place, so that memory does not grow with their number.
    """
    count = len(ids)
    metric_type = {name: number for number, name in _METRICS.items()}[metric]
    inner = b"IxF2" if metric_type == faiss.METRIC_L2 else b"IxFI"
    header = _head(b"IxM2", dim, count, metric_type) + _head(inner, dim, count, metric_type)
    header += struct.pack("<Q", count * dim)
    with path.open("wb") as file:
        file.write(header)
        file.seek(count * dim * 4, 1)
        file.write(struct.pack("<Q", count))
        np.ascontiguousarray(ids, "<i8").tofile(file)


def vectors_offset() -> int:
    """Where the vectors of a file of `write_empty` start, in bytes."""
    return 2 * len(_head(b"IxM2", 0, 0, 0)) + 8


def _head(name: bytes, dim: int, count: int, metric_type: int) -> bytes:
    """What every index file starts with: two unused numbers stand between count and trained."""
    return name + struct.pack("<iqqqBi", dim, count, 1 << 20, 1 << 20, 1, metric_type)
