"""New-space galleries that are written in place, in the form of their source.

Vectors and versions of a target live in plain rows of a file: ``vectors.npy`` of an
EmbeddingSet, the vectors inside a Faiss file, or a store beside a Parquet folder, whose files
are written from it. A target's directory is called ``gallery.partial`` until every row
is translated.
"""

import json
import os
import shutil
import zlib
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.storage.embedding_set import FORMAT_VERSION
from fct_jax.storage.files import sync_directory, sync_files, write_synced
from fct_jax.upgrade.galleries.base import TRANSLATED, VERSIONS, Gallery


class Rows:
    """Rows of D floats in a file, written in place without holding them in memory."""

    def __init__(self, path: Path, offset: int, dim: int, dtype):
        self.path, self.offset, self.dim, self.dtype = path, offset, dim, np.dtype(dtype)
        self._file = os.open(path, os.O_RDWR)
        self._width = dim * self.dtype.itemsize

    def write(self, start: int, vectors: np.ndarray) -> int:
        """Writes consecutive rows; returns the checksum of their bytes."""
        data = memoryview(np.ascontiguousarray(vectors, self.dtype)).cast("B")
        at = self.offset + start * self._width
        checksum = zlib.crc32(data)
        while data:
            written = os.pwrite(self._file, data, at)
            data, at = data[written:], at + written
        return checksum

    def put(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Writes vectors (n, D) to n rows; runs of neighbouring rows go together."""
        order = np.argsort(rows)
        rows, vectors = rows[order], np.ascontiguousarray(vectors[order], self.dtype)
        ends = np.flatnonzero(np.diff(rows) != 1) + 1
        for first, last in zip([0, *ends], [*ends, len(rows)], strict=True):
            if first < last:
                self.write(int(rows[first]), vectors[first:last])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows from start to stop in the stored type."""
        count = (stop - start) * self.dim
        at = self.offset + start * self._width
        return np.fromfile(self.path, self.dtype, count, offset=at).reshape(-1, self.dim)

    def get(self, rows: np.ndarray) -> np.ndarray:
        """The rows in the order asked for, in the stored type."""
        found = np.empty((len(rows), self.dim), self.dtype)
        for place, row in enumerate(rows):
            data = os.pread(self._file, self._width, self.offset + int(row) * self._width)
            found[place] = np.frombuffer(data, self.dtype)
        return found

    def sync(self) -> None:
        """What was written survives a crash."""
        os.fsync(self._file)

    def close(self) -> None:
        """Gives the file back."""
        os.close(self._file)


class Target:
    """A gallery under way: its rows, its versions and its ``meta.json``.

    Attributes:
      form: as of the source.
      folder: where the gallery is; its name ends in ``.partial`` until it is translated.
      vectors: Rows of D floats.
      versions: Rows of one uint8, places in `VERSIONS`.
    """

    def __init__(self, form: str, workdir: Path):
        self.form, self.workdir = form, workdir
        self.final, self.partial = workdir / "gallery", workdir / "gallery.partial"
        self.vectors = self.versions = None

    @property
    def folder(self) -> Path:
        return self.final if self.final.is_dir() else self.partial

    def create(self, source: Gallery, dim: int, metric: str) -> None:
        """Lays out the files at their full size, with nothing in them yet."""
        count = len(source)
        copies = 2 if self.form == "parquet" else 1
        needed = copies * count * dim * source.dtype.itemsize
        free = shutil.disk_usage(self.workdir).free
        if free < needed:
            raise UserError(
                f"{self.workdir} has {free / 1e9:.1f} GB free, "
                f"but the new gallery takes {needed / 1e9:.1f} GB"
            )
        self.partial.mkdir(exist_ok=True)
        if self.form == "faiss":
            from fct_jax.upgrade.galleries.faiss_file import write_empty

            write_empty(self.partial / "index.faiss", source.ids, dim, metric)
        else:
            where = self._store()
            where.mkdir(exist_ok=True)
            _empty_npy(where / "vectors.npy", (count, dim), source.dtype)
        if self.form == "set":
            np.save(self.partial / "ids.npy", source.ids)
            if source.labels is not None:
                np.save(self.partial / "labels.npy", source.labels)
        np.save(self._version_file(), np.full(count, TRANSLATED, np.uint8))
        for folder in {self.partial, self._store()}:
            sync_files(folder)
        sync_directory(self.workdir)

    def open(self, dim: int) -> None:
        """Opens the rows for writing."""
        if self.form == "faiss":
            from fct_jax.upgrade.galleries.faiss_file import vectors_offset

            self.vectors = Rows(self.folder / "index.faiss", vectors_offset(), dim, np.float32)
        else:
            self.vectors = _npy_rows(self._store() / "vectors.npy")
        self.versions = _npy_rows(self._version_file())

    def close(self) -> None:
        """Gives the files back."""
        for rows in (self.vectors, self.versions):
            if rows is not None:
                rows.close()
        self.vectors = self.versions = None

    def put(self, rows: np.ndarray, vectors: np.ndarray, version: int) -> None:
        """Vectors first, then versions: a row never claims to be newer than it is."""
        self.vectors.put(rows, vectors)
        self.vectors.sync()
        self.versions.put(rows, np.full((len(rows), 1), version, np.uint8))
        self.versions.sync()

    def describe(self, meta: dict) -> None:
        """Writes ``meta.json``; nothing in it depends on when or how often work stopped."""
        meta = {**meta, "format_version": FORMAT_VERSION, "versions": list(VERSIONS)}
        name = "index.meta.json" if self.form == "faiss" else "meta.json"
        write_synced(self.folder / name, (json.dumps(meta, indent=2) + "\n").encode())

    def complete(self) -> None:
        """Gives the directory its name, once every row is there."""
        if self.partial.is_dir():
            self.partial.rename(self.final)
            sync_directory(self.workdir)

    def _store(self) -> Path:
        return self.workdir / "store" if self.form == "parquet" else self.folder

    def _version_file(self) -> Path:
        return self._store() / ("index.version.npy" if self.form == "faiss" else "version.npy")


def _empty_npy(path: Path, shape, dtype) -> None:
    """A .npy file whose values are a hole: neither memory nor disk is used yet."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False}
    with path.open("wb") as file:
        np.lib.format.write_array_header_2_0(file, {**header, "shape": tuple(shape)})
        file.truncate(file.tell() + int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize)


def _npy_rows(path: Path) -> Rows:
    found = np.load(path, mmap_mode="r", allow_pickle=False)
    dim = found.shape[1] if found.ndim == 2 else 1
    return Rows(path, found.offset, dim, found.dtype)
