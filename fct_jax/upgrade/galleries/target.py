"""A new-space gallery that is written in place, in the form of its source."""

import abc
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.storage.embedding_set import FORMAT_VERSION
from fct_jax.storage.files import sync_directory, sync_files, write_synced
from fct_jax.upgrade.galleries.base import TRANSLATED, VERSIONS, Gallery
from fct_jax.upgrade.galleries.rows import Rows, empty_npy, npy_rows
from fct_jax.upgrade.galleries.stored import Coding, StoredType, stored_type


class Target(abc.ABC):
    """An unfinished new-space gallery, written in place: its rows, versions and description.

    It is called ``gallery.partial`` until every row is translated. A form defines `lay_out` and
    `open_vectors`; the rest is here, and may be overridden.

    Attributes:
      source: the gallery that is translated.
      coding: how the vectors are stored.
      folder: directory of the gallery; its name ends in ``.partial`` until it is translated.
      vectors: Rows of the stored numbers, while open.
      versions: Rows of one uint8, indices in `VERSIONS`, while open.
    """

    copies = 1  # copies of the vectors on disk
    follows = False  # whether `publish` can make files while later rows are still written
    meta_name, version_name = "meta.json", "version.npy"

    def __init__(self, source: Gallery, workdir, dtype=None):
        """Take the source, the upgrade's directory, and the stored type's name; None: the source's.

        Raises UserError for a type that the form cannot store.
        """
        self.source, self.workdir = source, Path(workdir)
        self.coding = Coding(self.storable(dtype))
        self.final, self.partial = self.workdir / "gallery", self.workdir / "gallery.partial"
        self.vectors = self.versions = None

    def storable(self, dtype) -> StoredType:
        """Return the type in which vectors are stored for a wanted one; None: none is wanted.

        Raises UserError for a type that the form cannot store.
        """
        return self.source.stored_as if dtype is None else stored_type(dtype)

    def width(self, dim: int) -> int:
        """Return the bytes of a stored vector of D dimensions."""
        return self.coding.type.values(dim) * self.coding.type.dtype.itemsize

    def empty_vectors(self, path: Path, dim: int) -> None:
        """Make a .npy file for the stored vectors, without them."""
        shape = len(self.source), self.coding.type.values(dim)
        empty_npy(path, shape, self.coding.type.dtype)

    @abc.abstractmethod
    def lay_out(self, dim: int, metric: str) -> None:
        """Make the gallery's files at their full size, without vectors."""

    @abc.abstractmethod
    def open_vectors(self, dim: int) -> Rows:
        """Open the vectors' rows for writing."""

    def unit(self, metric: str) -> bool:
        """Return whether vectors that are compared by ``metric`` are stored with length 1."""
        return False

    def publish(self, rows=None, ready: Callable[[int], None] | None = None) -> int:
        """Make written rows visible to readers (None: all rows); return the number of files made.

        If readers see the rows directly, there is nothing to do.

        Args:
          rows: the rows that were written.
          ready: a function that returns once the rows before its argument are written, and raises
            an error if they never will be; None: all are.
        """
        return 0

    def file_starts(self) -> np.ndarray | None:
        """Return the first row of each file that can be made by itself, and the number of rows.

        None if the vectors are rows of one file. A form with such files also has `file_name`,
        `write_file` and `adopt`.
        """
        return None

    @property
    def folder(self) -> Path:
        return self.final if self.final.is_dir() else self.partial

    @property
    def store(self) -> Path:
        """Return the place of the rows."""
        return self.folder

    def create(self, dim: int, metric: str, freed: int = 0) -> None:
        """Lay out all files anew, also after a killed run. Raises UserError if the disk is full.

        freed: bytes on disk that become free while the rows are written.
        """
        self.discard()
        needed = self.copies * len(self.source) * self.width(dim)
        free = shutil.disk_usage(self.workdir).free
        if free + freed < needed:
            raise UserError(
                f"{self.workdir} has {free / 1e9:.1f} GB free, "
                f"but the new gallery needs {needed / 1e9:.1f} GB"
            )
        for folder in {self.partial, self.store}:
            folder.mkdir()
        self.lay_out(dim, metric)
        versions = np.full(len(self.source), TRANSLATED, np.uint8)
        np.save(self.store / self.version_name, versions)
        for folder in {self.partial, self.store}:
            sync_files(folder)
        sync_directory(self.workdir)

    def discard(self) -> None:
        """Remove an unfinished layout."""
        for folder in {self.partial, self.store}:
            shutil.rmtree(folder, ignore_errors=True)

    def open(self, dim: int) -> None:
        """Open the rows for writing."""
        self.vectors = self.open_vectors(dim)
        self.versions = npy_rows(self.store / self.version_name)

    def close(self) -> None:
        """Close the rows."""
        for rows in (self.vectors, self.versions):
            if rows is not None:
                rows.close()
        self.vectors = self.versions = None

    def put(self, rows: np.ndarray, vectors: np.ndarray, version: int) -> None:
        """Write encoded vectors first, then versions: a row never claims to be newer than it is."""
        self.vectors.put(rows, vectors)
        self.vectors.sync()
        self.versions.put(rows, np.full((len(rows), 1), version, np.uint8))
        self.versions.sync()

    def describe(self, meta: dict) -> None:
        """Write the description, which does not depend on interruptions of the work."""
        meta = {**meta, "format_version": FORMAT_VERSION, "versions": list(VERSIONS)}
        self.keep(self.meta_name, (json.dumps(meta, indent=2) + "\n").encode())

    def keep(self, name: str, data: bytes) -> None:
        """Write or replace a small file of the gallery."""
        write_synced(self.folder / name, data)

    def complete(self) -> None:
        """Give the directory its final name, once every row is translated."""
        if self.partial.is_dir():
            self.partial.rename(self.final)
            sync_directory(self.workdir)
