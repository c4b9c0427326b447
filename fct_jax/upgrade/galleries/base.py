"""Galleries of vectors in the forms they are kept in: read row by row, whatever their size.

    an EmbeddingSet             a directory with vectors.npy, ids.npy, meta.json
    a Parquet folder            *.parquet with a column of ids and one of vectors (lists of floats)
    a Faiss IndexIDMap2 file    whose inner index can give its vectors back

A gallery that ``apply`` made has a version for every vector: ``translated`` or ``new``.
"""

import abc
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.storage import checksums
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.storage.ids import find_rows

VERSIONS = ("translated", "new")
TRANSLATED, NEW = 0, 1


class Gallery(abc.ABC):
    """N vectors of dimension D with unique ids, read from disk as they are asked for.

    Attributes:
      form: "set", "parquet" or "faiss".
      path: where it is.
      ids: (N,) integers or text.
      dim: D.
      dtype: of the stored vectors; what is read is float32.
      exact: whether what is read is what was stored, rather than a quantised index's likeness.
      meta: what is known of the vectors' space, as in an EmbeddingSet's ``meta.json``.
      versions: (N,) uint8, places in `VERSIONS`, or None where there is no such column.
    """

    form: str
    dtype: np.dtype
    exact: bool = True
    versions: np.ndarray | None = None

    def __init__(self, path, ids: np.ndarray, dim: int, meta: dict):
        self.path, self.ids, self.dim, self.meta = Path(path), ids, int(dim), meta

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def fingerprint(self) -> str | None:
        """Of the model in whose space the vectors live; None when unknown."""
        return self.meta.get("fingerprint")

    @abc.abstractmethod
    def read(self, start: int, stop: int) -> np.ndarray:
        """The rows from start to stop, (stop − start, D) float32."""

    def spread_rows(self, count: int) -> np.ndarray:
        """At most so many row numbers from all over the gallery, ascending, quick to read."""
        return np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).astype(np.int64))

    def verify(self) -> None:
        """Its files are as they were written, as far as checksums tell. Raises UserError."""
        checksums.check_content(self.path, self.meta)

    def rows(self, rows) -> np.ndarray:
        """The rows in the order asked for, (len(rows), D) float32."""
        rows = np.asarray(rows, np.int64)
        found = np.empty((len(rows), self.dim), np.float32)
        for place in np.argsort(rows, kind="stable"):  # forwards: Parquet reads in one pass
            row = int(rows[place])
            found[place] = self.read(row, row + 1)[0]
        return found

    def blocks(self, batch_size: int, start: int = 0):
        """Yields (ids (n,), vectors (n, D) float32) from row ``start`` on, in order."""
        for first in range(start, len(self), batch_size):
            last = min(first + batch_size, len(self))
            yield self.ids[first:last], self.read(first, last)


class SetGallery(Gallery):
    """An EmbeddingSet. Blocks are read, not mapped, so that they do not count as memory."""

    form = "set"

    def __init__(self, path, unfinished: bool = False):
        found = EmbeddingSet.read(path, unfinished=unfinished, verify=False)
        super().__init__(path, found.ids, found.dim, found.meta)
        self.dtype, self.labels, self._mapped = found.vectors.dtype, found.labels, found.vectors
        if (self.path / "version.npy").is_file():
            self.versions = np.load(self.path / "version.npy", allow_pickle=False)

    def read(self, start: int, stop: int) -> np.ndarray:
        if not self._mapped.flags.c_contiguous:
            return np.asarray(self._mapped[start:stop], np.float32)
        values = np.fromfile(
            self.path / "vectors.npy",
            self.dtype,
            (stop - start) * self.dim,
            offset=self._mapped.offset + start * self.dim * self.dtype.itemsize,
        )
        return values.reshape(-1, self.dim).astype(np.float32, copy=False)


def open_gallery(
    path, *, id_column: str = "id", vector_column: str = "vector", unfinished: bool = False
) -> Gallery:
    """The gallery at a path, in whichever form it is.

    Args:
      path: an EmbeddingSet, a folder of Parquet files, a Faiss file, or a folder that ``apply``
        made of one.
      id_column, vector_column: names in Parquet files.
      unfinished: also one of which only a part of the planned vectors is re-embedded yet.

    Raises:
      UserError: nothing of the kind is there, it is damaged or unfinished, or ids are repeated.
    """
    # Each form needs a library of its own, which the others need not import.
    path = Path(path)
    if (path / "vectors.npy").is_file():
        return SetGallery(path, unfinished)
    if path.is_dir() and any(path.glob("*.parquet")):
        from fct_jax.upgrade.galleries.parquet import ParquetGallery

        return ParquetGallery(path, id_column, vector_column, unfinished)
    index = path / "index.faiss" if path.is_dir() else path
    if index.is_file():
        from fct_jax.upgrade.galleries.faiss_file import FaissGallery

        return FaissGallery(index, unfinished)
    raise UserError(
        f"no gallery at {path}; give an EmbeddingSet, a folder of .parquet files "
        "or a Faiss IndexIDMap2 file"
    )


def rows_of(ids: np.ndarray, wanted, what: str, name: str) -> np.ndarray:
    """The row of each wanted id, (len(wanted),) int64. Raises UserError for ids not there."""
    wanted = np.asarray(wanted)
    if (wanted.dtype.kind == "U") != (ids.dtype.kind == "U"):
        raise UserError(f"{what} are {wanted.dtype}, but the ids of {name} are {ids.dtype}")
    rows = find_rows(ids, wanted)
    missing = wanted[rows < 0]
    if len(missing):
        raise UserError(f"{what}: {first_ten(missing)} not in {name}")
    return rows


def first_ten(ids) -> str:
    """``3 ids (7, 12, 40)``: a count and the first ten of them."""
    more = ", …" if len(ids) > 10 else ""
    return f"{len(ids)} id{'s' * (len(ids) != 1)} ({', '.join(map(str, ids[:10]))}{more})"
