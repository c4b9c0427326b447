"""Galleries that are arrays (N, D), in one or more parts that can be sliced anywhere."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fct_jax.errors import UserError, unknown
from fct_jax.storage.ids import uuid_text
from fct_jax.upgrade.galleries.base import Gallery
from fct_jax.upgrade.galleries.embedding_set import SetTarget

VECTORS = ("vector", "vectors", "embedding", "embeddings", "train", "arr_0")
IDS = ("id", "ids", "keys", "_id")


@dataclass(frozen=True)
class Array:
    """One part of a gallery.

    Attributes:
      name: name for messages.
      shape: (n, D).
      dtype: type of the stored values.
      slice: returns the rows from start to stop, (stop − start, D) of any number type.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    slice: Callable[[int, int], np.ndarray]


class ArraysGallery(Gallery):
    """Concatenated rows of arrays; integers are read as floats. Written as an EmbeddingSet."""

    writer = SetTarget

    def __init__(self, path, arrays: list[Array], ids: np.ndarray | None, meta: dict):
        """Take ``ids``, or None for row numbers. Raises UserError if shapes do not match."""
        for array in arrays:
            if len(array.shape) == 3:
                raise UserError(
                    f"{array.name} has shape {array.shape}, several vectors per item, as ColBERT "
                    "gives; an item needs one vector: pool them, or give each its own row and id"
                )
            if len(array.shape) != 2 or array.dtype.kind not in "fiu":
                raise UserError(
                    f"{array.name} must hold numbers (N, D), not {array.dtype} {array.shape}"
                )
            if array.shape[1] != arrays[0].shape[1]:
                raise UserError(
                    f"{array.name} has dimension {array.shape[1]}, "
                    f"but {arrays[0].name} has {arrays[0].shape[1]}"
                )
        self.arrays = arrays
        self.starts = np.cumsum([0, *(array.shape[0] for array in arrays)])
        count = int(self.starts[-1])
        if not count or not arrays[0].shape[1]:
            raise UserError(f"{path} is empty: shape {arrays[0].shape}")
        numbered = ids is None
        ids = np.arange(count) if ids is None else as_ids(ids, f"{path}")
        if ids.shape != (count,):
            raise UserError(f"{path}: ids have shape {ids.shape}, but there are {count} vectors")
        super().__init__(path, ids, arrays[0].shape[1], meta)
        self.numbered = numbered
        kinds = {array.dtype for array in arrays}
        self.dtype = np.result_type(*(k if k.kind == "f" else np.float32 for k in kinds))

    def place(self, row: int) -> str:
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        return f"{self.arrays[part].name}, row {row - self.starts[part]}"

    def read_stored(self, start: int, stop: int) -> np.ndarray:
        found, at = np.empty((max(stop - start, 0), self.dim), np.float32), start
        while at < stop:
            part = int(np.searchsorted(self.starts, at, side="right")) - 1
            last = min(stop, int(self.starts[part + 1]))
            first = int(self.starts[part])
            with np.errstate(over="ignore"):  # float64 overflows are later reported by id
                found[at - start : last - start] = self.arrays[part].slice(at - first, last - first)
            at = last
        return found


def as_ids(ids: np.ndarray, name: str) -> np.ndarray:
    """Return ids as integers or text; bytes are UTF-8, or UUIDs. Raises UserError for others."""
    if ids.dtype.kind == "V" and ids.dtype.itemsize == 16:
        return _uuids(ids)
    try:
        if ids.dtype.kind == "S":
            return np.char.decode(ids, "utf-8")
        if ids.dtype.kind == "O" and len(ids):  # as HDF5 gives text
            texts = [i.decode() if isinstance(i, bytes) else i for i in ids.tolist()]
            ids = np.array(texts)
    except UnicodeDecodeError:
        if ids.dtype == "S16":
            return _uuids(ids)
        raise UserError(f"{name}: ids are bytes that are not text; write them as text") from None
    if ids.dtype.kind not in "iuU":
        raise UserError(f"{name}: ids must be integers or text, not {ids.dtype}")
    return ids


def _uuids(ids: np.ndarray) -> np.ndarray:
    return uuid_text(np.ascontiguousarray(ids).view(np.uint8).reshape(-1, 16))


def pick(given: str | None, shapes: dict[str, tuple], usual: tuple[str, ...], what: str, name: str):
    """Return the name of the wanted array, or None if no array has a usual name.

    Args:
      given: the user's name for it, or None.
      shapes: shapes of all arrays by name.
      usual: usual names of such an array.
      what: kind of array, for messages.
      name: name of the file, for messages.
    """
    if given is not None and given not in shapes:
        raise UserError(f"{name}: {unknown(f'array of {what}', given, shapes)}")
    return given or next((n for n in usual if n in shapes), None)


def pick_vectors(given: str | None, shapes: dict[str, tuple], name: str) -> str:
    """Return the name of the array of vectors: given, usual, or the only two-dimensional one."""
    found = pick(given, shapes, VECTORS, "vectors", name)
    if found is not None:
        return found
    flat = [n for n, shape in shapes.items() if len(shape) == 2]
    if len(flat) != 1:
        raise UserError(
            f"{name}: any of {', '.join(flat or shapes) or 'no arrays'} may hold the vectors; "
            "say which (vector_column)"
        )
    return flat[0]
