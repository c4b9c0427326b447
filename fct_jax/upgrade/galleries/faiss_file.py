"""A Faiss file as a gallery, and the layout of a Faiss file that is filled in place."""

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
_UNIT = 1e-2  # how far from 1 the length of a float16 unit vector may be
_METRICS = {faiss.METRIC_INNER_PRODUCT: "cosine", faiss.METRIC_L2: "l2"}


class FaissTarget(Target):
    """``index.faiss``, whose vectors are written in place inside the file.

    Faiss has no cosine metric; vectors are stored with length 1 and compared by inner product.
    """

    meta_name, version_name = "index.meta.json", "index.version.npy"

    def storable(self, dtype) -> np.dtype:
        if dtype is not None and np.dtype(dtype) != np.float32:
            raise UserError(f"dtype={dtype}: a Faiss file of whole vectors holds float32")
        return np.dtype(np.float32)

    def lay_out(self, dim: int, metric: str) -> None:
        write_empty(self.store / "index.faiss", self.source.ids, dim, metric)

    def open_vectors(self, dim: int) -> Rows:
        return Rows(self.store / "index.faiss", vectors_offset(), dim, np.float32)

    def unit(self, metric: str) -> bool:
        return metric == "cosine"


class FaissGallery(Gallery):
    """A Faiss file: a flat index, whose vectors stay on disk, or one that can reconstruct them.

    Ids are those of an IndexIDMap or of inverted lists, otherwise row numbers. Vectors of a
    quantised index (PQ, SQ, OPQ …) are approximations. ``NAME.meta.json`` beside ``NAME.faiss``
    names the vectors' model. The inner product of vectors that do not have length 1 is not a
    cosine; this metric is called ``ip``.
    """

    writer = FaissTarget

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
        if self._index.metric_type not in _METRICS:
            raise UserError(f"{path}: its metric is neither L2 nor the inner product")
        if self._index.ntotal == 0:
            raise UserError(f"{path} is empty")
        inner, ids = self._index, None
        if isinstance(inner, faiss.IndexIDMap | faiss.IndexIDMap2):
            ids = faiss.vector_to_array(inner.id_map)
            inner = faiss.downcast_index(inner.index)
        self._inner, self._flat, self._keys = inner, None, None
        self.exact = isinstance(inner, _EXACT)
        if not self.exact:
            console.print(
                f"{path}: {type(inner).__name__} holds approximations of the vectors, so their "
                "translations are approximations, too"
            )
        if isinstance(inner, faiss.IndexFlat):
            values = faiss.rev_swig_ptr(inner.get_xb(), inner.ntotal * inner.d)
            self._flat = values.reshape(-1, inner.d)
        else:
            own = self._prepare(path)
            ids = own if ids is None else ids
        numbered = ids is None or (self._keys is None and inner is self._index)
        ids = np.arange(inner.ntotal) if ids is None else ids
        super().__init__(path, ids, inner.d, meta)
        self.numbered = numbered
        if "metric" not in meta:
            self.meta = {**meta, "metric": self._metric()}
        if path.with_suffix(".version.npy").is_file():
            self.versions = np.load(path.with_suffix(".version.npy"), allow_pickle=False)

    def read_stored(self, start: int, stop: int) -> np.ndarray:
        if self._flat is not None:
            return np.array(self._flat[start:stop], np.float32)
        if self._keys is not None:
            return self._inner.reconstruct_batch(self._keys[start:stop])
        return self._inner.reconstruct_n(start, stop - start)

    def _prepare(self, path: Path) -> np.ndarray | None:
        """Make look-ups possible; return the ids of inverted lists, or None without lists."""
        inner, ids = self._inner, None
        try:
            lists = faiss.try_extract_index_ivf(inner)
            if lists is not None:
                ids = np.sort(_listed(lists.invlists))
                if np.array_equal(ids, np.arange(len(ids))):
                    lists.make_direct_map()  # otherwise every look-up would search all lists
                else:
                    lists.set_direct_map_type(faiss.DirectMap.Hashtable)
                    self._keys = ids
                inner.reconstruct_batch(ids[:1])
            else:
                inner.reconstruct_n(0, 1)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{path}: {type(inner).__name__} cannot reconstruct vectors: {reason}"
            ) from None
        return ids

    def _metric(self) -> str:
        if self._index.metric_type == faiss.METRIC_L2:
            return "l2"
        lengths = np.linalg.norm(self.rows(self.spread_rows(256)), axis=1)
        lengths = lengths[np.isfinite(lengths) & (lengths > 0)]
        if not len(lengths) or np.abs(lengths - 1).max() <= _UNIT:
            return "cosine"
        console.print(
            f"{self.path} compares vectors of lengths {lengths.min():.3g} to {lengths.max():.3g} "
            "by their inner product, which is neither cosine nor L2: its metric is called ip"
        )
        return "ip"


def _listed(lists) -> np.ndarray:
    """Return the ids in inverted lists, list by list."""
    parts = []
    for number in range(lists.nlist):
        count = lists.list_size(number)
        if count:
            parts.append(faiss.rev_swig_ptr(lists.get_ids(number), count).copy())
    return np.concatenate(parts)


def _opened(path: Path):
    with path.open("rb") as file:
        if file.read(2) == b"IB":
            raise UserError(f"{path} holds binary vectors, which no map can translate")
    # Older releases of Faiss have no IFC flag and memory-map only inverted lists.
    flags = getattr(faiss, "IO_FLAG_MMAP_IFC", faiss.IO_FLAG_MMAP)
    try:
        return faiss.read_index(str(path), flags)
    except RuntimeError as error:
        raise UserError(f"{path} is not a Faiss index: {str(error).splitlines()[-1]}") from None


def write_empty(path: Path, ids: np.ndarray, dim: int, metric: str) -> None:
    """Write an IndexIDMap2 of an IndexFlat whose vectors are all zero.

    The file is what ``faiss.write_index`` would write, but its vectors are a hole to be filled in
    place, so the memory needed does not grow with their number.
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
    """Return the byte at which the vectors of a file of `write_empty` start."""
    return 2 * len(_head(b"IxM2", 0, 0, 0)) + 8


def _head(name: bytes, dim: int, count: int, metric_type: int) -> bytes:
    """Return the start of every index file: two unused numbers between count and trained."""
    return name + struct.pack("<iqqqBi", dim, count, 1 << 20, 1 << 20, 1, metric_type)
