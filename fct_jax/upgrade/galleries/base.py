"""Galleries of vectors: read row by row, whatever their form and size, and written in place.

A form of gallery (`fct_jax.upgrade.galleries.FORMS`) is a `Gallery`, which reads, and a `Target`,
which writes a new-space gallery of the same form. A gallery that ``apply`` made has a version for
every vector: ``translated`` or ``new``.
"""

import abc
import dataclasses
import importlib.metadata
import json
import shutil
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.runtime import plugins
from fct_jax.storage import checksums
from fct_jax.storage.embedding_set import FORMAT_VERSION
from fct_jax.storage.files import sync_directory, sync_files, write_synced
from fct_jax.upgrade.galleries import FORMS
from fct_jax.upgrade.galleries.rows import Rows, npy_rows

VERSIONS = ("translated", "new")
TRANSLATED, NEW = 0, 1


@dataclasses.dataclass(frozen=True)
class Options:
    """How a gallery is to be read.

    Attributes:
      id_column, vector_column: names of columns; None: found by their kind.
      unfinished: read also a gallery of which only a part is re-embedded yet.
    """

    id_column: str | None = None
    vector_column: str | None = None
    unfinished: bool = False


class Gallery(abc.ABC):
    """N vectors of dimension D with unique ids, read from disk as they are asked for.

    Attributes:
      form: name of its row in the table of forms.
      writer: the `Target` that a new-space gallery of this form is written with.
      path: where it is.
      ids: (N,) integers or text.
      dim: D.
      dtype: floats that vectors are kept in; what is read is float32.
      exact: whether what is read is what was stored, rather than a quantised index's likeness.
      meta: what is known of the vectors' space, as in an EmbeddingSet's ``meta.json``.
      versions: (N,) uint8, places in `VERSIONS`, or None where there is no such column.
      labels: (N,) integers, or None.
    """

    form: str = ""
    writer: "type[Target]"
    dtype: np.dtype
    exact: bool = True
    versions: np.ndarray | None = None
    labels: np.ndarray | None = None

    def __init__(self, path, ids: np.ndarray, dim: int, meta: dict):
        self.path, self.ids, self.dim, self.meta = Path(path), ids, int(dim), meta

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the model in whose space the vectors live; None when unknown."""
        return self.meta.get("fingerprint")

    @abc.abstractmethod
    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the rows from start to stop, (stop − start, D) float32."""

    def spread_rows(self, count: int) -> np.ndarray:
        """Return at most ``count`` row numbers from everywhere, ascending, quick to read."""
        return np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).astype(np.int64))

    def verify(self) -> None:
        """Compare its files with their checksums, where it has some. Raises UserError."""
        checksums.check_content(self.path, self.meta)

    def rows(self, rows) -> np.ndarray:
        """Return the rows in the order asked for, (len(rows), D) float32."""
        rows = np.asarray(rows, np.int64)
        found = np.empty((len(rows), self.dim), np.float32)
        for place in np.argsort(rows, kind="stable"):  # forwards: Parquet reads in one pass
            row = int(rows[place])
            found[place] = self.read(row, row + 1)[0]
        return found

    def blocks(self, batch_size: int, start: int = 0):
        """Yield (ids (n,), vectors (n, D) float32) from row ``start`` on, in order."""
        for first in range(start, len(self), batch_size):
            last = min(first + batch_size, len(self))
            yield self.ids[first:last], self.read(first, last)


class Target(abc.ABC):
    """A new-space gallery under way, written in place: its rows, versions and description.

    It is called ``gallery.partial`` until every row is translated. A form writes itself by
    `lay_out` and `open_vectors`; the rest is here, and may be overridden.

    Attributes:
      source: the gallery that is translated.
      folder: where the gallery is; its name ends in ``.partial`` until it is translated.
      vectors: Rows of D floats, while it is open.
      versions: Rows of one uint8, places in `VERSIONS`, while it is open.
    """

    copies = 1  # of the vectors on disk
    meta_name, version_name = "meta.json", "version.npy"

    def __init__(self, source: Gallery, workdir):
        self.source, self.workdir = source, Path(workdir)
        self.final, self.partial = self.workdir / "gallery", self.workdir / "gallery.partial"
        self.vectors = self.versions = None

    @abc.abstractmethod
    def lay_out(self, dim: int, metric: str) -> None:
        """Make the gallery's files at their full size, with no vectors in them yet."""

    @abc.abstractmethod
    def open_vectors(self, dim: int) -> Rows:
        """Open the vectors' rows for writing."""

    def unit(self, metric: str) -> bool:
        """Return whether vectors that are compared by ``metric`` are stored with length 1."""
        return False

    def publish(self, rows=None) -> int:
        """Make what was put reach readers, for these rows (None: all); return files written.

        Nothing is to be done where readers see the rows themselves.
        """
        return 0

    @property
    def folder(self) -> Path:
        return self.final if self.final.is_dir() else self.partial

    @property
    def store(self) -> Path:
        """Where the rows are."""
        return self.folder

    def create(self, dim: int, metric: str) -> None:
        """Lay out all files in place of any that a killed run left. Raises UserError: disk full."""
        self.discard()
        needed = self.copies * len(self.source) * dim * self.source.dtype.itemsize
        free = shutil.disk_usage(self.workdir).free
        if free < needed:
            raise UserError(
                f"{self.workdir} has {free / 1e9:.1f} GB free, "
                f"but the new gallery takes {needed / 1e9:.1f} GB"
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
        """Remove a lay-out that was cut short."""
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
        """Write vectors first, then versions: a row never claims to be newer than it is."""
        self.vectors.put(rows, vectors)
        self.vectors.sync()
        self.versions.put(rows, np.full((len(rows), 1), version, np.uint8))
        self.versions.sync()

    def describe(self, meta: dict) -> None:
        """Write the description; nothing in it depends on when or how often work stopped."""
        meta = {**meta, "format_version": FORMAT_VERSION, "versions": list(VERSIONS)}
        write_synced(self.folder / self.meta_name, (json.dumps(meta, indent=2) + "\n").encode())

    def complete(self) -> None:
        """Give the directory its name, once every row is there."""
        if self.partial.is_dir():
            self.partial.rename(self.final)
            sync_directory(self.workdir)


def open_gallery(
    where,
    *,
    id_column: str | None = None,
    vector_column: str | None = None,
    unfinished: bool = False,
    form: str | None = None,
) -> Gallery:
    """Open the gallery at a path, in whichever form it is.

    Args:
      where: a path, or ``FORM@PATH`` to say its form, where FORM is as below.
      id_column, vector_column: names of columns, where the form has such; None or "": ``id`` and
        ``vector``.
      unfinished: also one of which only a part of the planned vectors is re-embedded yet.
      form: a name in `FORMS`, an entry point of ``fct_jax.galleries``, or ``module:name`` of a
        `Form`; None: recognised.

    Raises:
      UserError: nothing of the kind is there, it is damaged or unfinished, or ids are repeated.

    Example:

        gallery = open_gallery("vectors")
        for ids, vectors in gallery.blocks(4096):
            ...
    """
    named, at, rest = str(where).partition("@")
    if form is None and at and not Path(where).exists() and _is_form(named):
        form, where = named, rest
    path = Path(where)
    options = Options(id_column or None, vector_column or None, unfinished)
    if form:
        return plugins.find(FORMS, form, "form of gallery", "galleries").open(path, options)
    for known in (*FORMS.values(), *_offered()):
        if known.recognises(path):
            return known.open(path, options)
    *others, last = [known.what for known in (*FORMS.values(), *_offered())]
    raise UserError(f"no gallery at {path}; give {', '.join(others)} or {last}")


def _is_form(name: str) -> bool:
    return name in FORMS or plugins.is_import_name(name) or name in _entry_points()


def _offered() -> list:
    """The forms of other packages that are installed."""
    names = [name for name in _entry_points() if name not in FORMS]
    return [plugins.find(FORMS, name, "form of gallery", "galleries") for name in names]


def _entry_points() -> list[str]:
    return [e.name for e in importlib.metadata.entry_points(group="fct_jax.galleries")]
