"""A Faiss file as a gallery, and one that is filled in place."""

import json
from pathlib import Path

import faiss
import numpy as np

from fct_jax.errors import UserError
from fct_jax.runtime.progress import console
from fct_jax.storage.embedding_set import check_state
from fct_jax.upgrade.galleries.base import Gallery, Options
from fct_jax.upgrade.galleries.faiss_layout import (
    METRICS,
    codes_of,
    open_rows,
    signed,
    write_empty,
)
from fct_jax.upgrade.galleries.rows import Rows
from fct_jax.upgrade.galleries.stored import Coding, StoredType
from fct_jax.upgrade.galleries.target import Target

_EXACT = (faiss.IndexFlat, faiss.IndexHNSWFlat, faiss.IndexNSGFlat, faiss.IndexIVFFlat)
_UNIT = 1e-2  # how far from 1 the length of a float16 unit vector may be
_MAPPED = (
    faiss.IndexIDMap,
    faiss.IndexIDMap2,
    faiss.IndexBinaryIDMap,
    faiss.IndexBinaryIDMap2,
)


class FaissTarget(Target):
    """``index.faiss``, whose vectors are written in place inside the file.

    float32 gives a flat index, int8 a scalar quantiser, and binary a flat binary index.

    Faiss has no cosine metric; vectors are stored with length 1 and compared by inner product.
    """

    meta_name, version_name = "index.meta.json", "index.version.npy"

    def storable(self, dtype) -> StoredType:
        found = super().storable(dtype)
        if found.name == "float16":
            raise UserError(f"dtype={dtype}: a Faiss file holds float32, int8 or binary")
        return found

    def lay_out(self, dim: int, metric: str) -> None:
        path = self.store / "index.faiss"
        write_empty(path, self.source.ids, dim, metric, self.coding)

    def open_vectors(self, dim: int) -> Rows:
        return open_rows(self.store / "index.faiss", dim, self.coding)

    def unit(self, metric: str) -> bool:
        return metric == "cosine"


class FaissGallery(Gallery):
    """A Faiss file: a flat index, whose vectors stay on disk, or one that can reconstruct them.

    Ids are those of an IndexIDMap or of inverted lists, otherwise row numbers. Vectors of a
    quantised index (PQ, SQ, OPQ …) are approximations. ``NAME.meta.json`` beside ``NAME.faiss``
    names the vectors' model. The inner product of vectors that do not have length 1 is not a
    cosine; this metric is called ``ip``.
    """

    searched = True
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
        self.coding = Coding.of_meta(meta, str(path))
        self._index = _opened(path, self.coding)
        if self._index.metric_type not in METRICS:
            raise UserError(f"{path}: its metric is neither L2 nor the inner product")
        if self._index.ntotal == 0:
            raise UserError(f"{path} is empty")
        inner, ids = self._index, None
        if isinstance(inner, _MAPPED):
            ids, binary = faiss.vector_to_array(inner.id_map), isinstance(inner, faiss.IndexBinary)
            inner = (faiss.downcast_IndexBinary if binary else faiss.downcast_index)(inner.index)
        self._inner, self._keys = inner, None
        self._flat = codes_of(inner, self.coding)
        self.exact = isinstance(inner, _EXACT)
        if self._flat is None:
            if isinstance(inner, faiss.IndexBinary):
                raise UserError(f"{path}: the bits of a {type(inner).__name__} cannot be read")
            self.coding = None  # another index than that of the description
        if self.coding is not None:
            self.coding.dim_of(self._flat.shape[1], meta, str(path))
        if not self.exact and self.coding is None:
            console.print(
                f"{path}: {type(inner).__name__} holds approximations of the vectors, so their "
                "translations are approximations, too"
            )
        if self._flat is None:
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
        if self.coding is not None:
            codes = np.array(self._flat[start:stop])
            return self.coding.decode(signed(codes) if self.coding.type.scaled else codes)
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


def _opened(path: Path, coding: Coding | None):
    with path.open("rb") as file:
        binary = file.read(2) == b"IB"
    if binary and (coding is None or coding.type.name != "binary"):
        raise UserError(f"{path} holds binary vectors, which no map can translate")
    # Older releases of Faiss have no IFC flag and memory-map only inverted lists.
    flags = getattr(faiss, "IO_FLAG_MMAP_IFC", faiss.IO_FLAG_MMAP)
    try:
        return (faiss.read_index_binary if binary else faiss.read_index)(str(path), flags)
    except RuntimeError as error:
        raise UserError(f"{path} is not a Faiss index: {str(error).splitlines()[-1]}") from None
