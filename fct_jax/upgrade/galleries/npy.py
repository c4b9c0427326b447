"""NumPy files as a gallery: ``.npy`` with ids beside it, and ``.npz``."""

import json
import re
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.storage.checksums import UNREADABLE
from fct_jax.upgrade.galleries.arrays import IDS, Array, ArraysGallery, pick, pick_vectors
from fct_jax.upgrade.galleries.base import Options


class NpyGallery(ArraysGallery):
    """``NAME.npy``: ids are those of ``NAME_ids.npy`` beside it, or row numbers.

    ``NAME.meta.json`` names the vectors' model. The arrays of ``NAME.npz`` are called ``vectors``
    and ``ids`` or have the names that the user gives; its vectors are held in memory.
    """

    scattered = True

    def __init__(self, path, options: Options):
        path = Path(path)
        beside = path.with_suffix(".meta.json")
        try:
            meta = json.loads(beside.read_text()) if beside.is_file() else {}
        except ValueError as error:
            raise UserError(f"{beside} cannot be read: {error}") from None
        if path.suffix.lower() == ".npy":
            ids = path.with_name(f"{path.stem}_ids.npy")
            ids = np.asarray(load(ids)) if ids.is_file() else None
            super().__init__(path, [npy_array(path)], ids, meta)
            return
        with load(path) as archive:
            shapes = {name: _shape(archive, name) for name in archive.files}
            vectors = archive[pick_vectors(options.vector_column, shapes, str(path))]
            ids = pick(options.id_column, shapes, IDS, "ids", str(path))
            ids = None if ids is None else archive[ids]
        array = Array(str(path), vectors.shape, vectors.dtype, lambda a, b: vectors[a:b])
        super().__init__(path, [array], ids, meta)


def npy_array(path: Path) -> Array:
    """Return a ``.npy`` file as a part; only the needed rows are read."""
    mapped = load(path)
    count = mapped.shape[1] if mapped.ndim == 2 else 1

    def read(start: int, stop: int) -> np.ndarray:
        if not mapped.flags.c_contiguous:
            return mapped[start:stop]
        # Rows are read, not mapped: mapped pages would count as memory.
        offset = mapped.offset + start * count * mapped.dtype.itemsize
        found = np.fromfile(path, mapped.dtype, (stop - start) * count, offset=offset)
        return found.reshape(-1, count)

    return Array(path.name, mapped.shape, mapped.dtype, read)


def load(path: Path):
    """Open a NumPy file, mapped. Raises UserError if it is damaged, or holds Python objects."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (*UNREADABLE, AttributeError) as error:
        reason = (
            "it holds Python objects, not numbers"
            if re.search("pickle|Python obj", str(error))
            else error
        )
        raise UserError(f"{path} cannot be read: {reason}") from None


def _shape(archive, name: str) -> tuple:
    """Return the shape of an archive's array from its header."""
    with archive.zip.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        read = read if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(file)[0]
