"""Galleries of vectors: reading rows of any form and size.

A form of gallery (`fct_jax.upgrade.galleries.FORMS`) is a `Gallery`, which reads, and a `Target`,
which writes a new-space gallery of the same form in place. A gallery that ``apply`` made has a
version for every vector: ``translated`` or ``new``.
"""

import abc
import dataclasses
import importlib.metadata
import urllib.parse
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError, unknown
from fct_jax.runtime import plugins
from fct_jax.storage import checksums
from fct_jax.storage.embedding_set import check_ids
from fct_jax.storage.ids import repeated
from fct_jax.upgrade.galleries import FORMS
from fct_jax.upgrade.galleries.quarantine import REPEATED, Quarantine, reasons
from fct_jax.upgrade.galleries.resembles import resembles
from fct_jax.upgrade.galleries.stored import Coding, StoredType, floats
from fct_jax.upgrade.stores import is_store

VERSIONS = ("translated", "new")
TRANSLATED, NEW = 0, 1


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings for reading a gallery.

    Attributes:
      id_column, vector_column: names of columns; None: found by their kind.
      unfinished: also read a gallery whose re-embedding is unfinished.
      on_bad: "raise" or "quarantine" for a row without a usable vector.
      duplicates: "raise", or "first" or "last" to keep that row of a repeated id.
    """

    id_column: str | None = None
    vector_column: str | None = None
    unfinished: bool = False
    on_bad: str = "raise"
    duplicates: str = "raise"

    def __post_init__(self):
        for what, given, known in (
            ("on_bad", self.on_bad, ("raise", "quarantine")),
            ("duplicates", self.duplicates, ("raise", "first", "last")),
        ):
            if given not in known:
                raise unknown(what, given, known)


class Gallery(abc.ABC):
    """N vectors of dimension D with unique ids, read from disk when they are needed.

    A form's reader gives ids, dimension and `read_stored`; the rest is here. The ids are held in
    memory: 8 bytes per integer, 4 bytes for each character of the longest text (144 per UUID).

    A row is bad if it has no usable vector: NaN, infinity, zeros, null, or another dimension. With
    ``on_bad="quarantine"`` a pass over the whole gallery sets such rows aside, and the later work
    uses the remaining rows:

        for first, (ids, vectors) in ...:        # `blocks`
            good = gallery.screen(first, vectors)
        gallery.set_aside()                      # the gallery no longer has these rows
        gallery.bad.write("quarantine.parquet")  # and `set_aside(Quarantine.read(…))` next time

    Attributes:
      form: name of its row in the table of forms.
      writer: the `Target` class that writes a new-space gallery of this form.
      path: its path.
      ids: (N,) integers or text.
      dim: D.
      dtype: float type of new vectors, the type of the stored ones (float32 for integers
        and text); vectors that are read are float32.
      coding: how vectors are stored that are not plain numbers, or None.
      exact: whether vectors are read exactly as stored; quantised indexes give approximations.
      meta: known facts about the vectors' space, as in an EmbeddingSet's ``meta.json``.
      versions: (N,) uint8, indices in `VERSIONS`, or None without such a column.
      labels: (N,) integers, or None.
      numbered: whether ids are row numbers, because there are no others.
      scattered: whether a row can be read alone, without the rows beside it.
      searched: whether another program searches the file as it is, rows without a vector included.
      bad: the unusable rows found so far.
    """

    form: str = ""
    writer: type
    dtype: np.dtype = np.dtype(np.float32)
    coding: Coding | None = None
    exact: bool = True
    versions: np.ndarray | None = None
    labels: np.ndarray | None = None
    numbered: bool = False
    scattered: bool = False
    searched: bool = False

    def __init__(self, path, ids: np.ndarray, dim: int, meta: dict):
        self.path, self.ids, self.dim, self.meta = Path(path), ids, int(dim), meta
        self.bad, self.options = Quarantine(), Options()
        self._gone = np.empty(0, np.int64)  # stored rows that are set aside

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def stored_as(self) -> StoredType:
        """Return the type in which the vectors are stored, and those of a new gallery by default.

        Integers and text count as float32.
        """
        return floats(self.dtype) if self.coding is None else self.coding.type

    @property
    def fingerprint(self) -> str | None:
        """Return the fingerprint of the vectors' model, or None."""
        return self.meta.get("fingerprint")

    @abc.abstractmethod
    def read_stored(self, start: int, stop: int) -> np.ndarray:
        """Return the stored rows from start to stop, (stop − start, D) float32."""

    def read_exactly(self, start: int, stop: int) -> np.ndarray:
        """Return the rows from start to stop in the stored type, (stop − start, D)."""
        return self.read(start, stop).astype(self.dtype, copy=False)

    def place(self, row: int) -> str:
        """Return the place of a stored row, for messages."""
        return f"row {row}"

    def stamps(self) -> dict[str, list[int]]:
        """Return {name: [bytes, time of the last change in ns]} of files that are not on disk."""
        return {}

    def settle(self, options: Options) -> "Gallery":
        """Handle repeated ids and rows that were found unusable at opening; return self."""
        self.options = options
        self.set_aside()
        again = repeated(self.ids)
        if len(again) and options.duplicates == "raise":
            check_ids(self.name, self.ids)
        if len(again):
            rows = np.flatnonzero(np.isin(self.ids, again))
            rows = rows if options.duplicates == "first" else rows[::-1]
            _, kept = np.unique(self.ids[rows], return_index=True)
            for row in np.delete(rows, kept):
                self._set_bad(self.stored(row), self.ids[row], REPEATED)
            self.set_aside()
        return self

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the rows from start to stop, (stop − start, D) float32."""
        if not len(self._gone) or start >= stop:
            return self.read_stored(start, stop)
        first, last = self.stored(start), self.stored(stop - 1)
        return self.read_stored(first, last + 1)[self.kept(first, last + 1)]

    def stored(self, rows):
        """Return the stored numbers of rows that are numbered without the bad ones."""
        gaps = self._gone - np.arange(len(self._gone))
        found = np.asarray(rows) + np.searchsorted(gaps, rows, side="right")
        return int(found) if np.ndim(rows) == 0 else found

    def served(self, rows):
        """Return the number, without bad rows, of a stored row or of the next kept one."""
        return np.asarray(rows) - np.searchsorted(self._gone, rows)

    def kept(self, start: int, stop: int) -> np.ndarray:
        """Return bool for the stored rows from start to stop: True if not set aside."""
        kept = np.ones(stop - start, bool)
        first, last = np.searchsorted(self._gone, [start, stop])
        kept[self._gone[first:last] - start] = False
        return kept

    def screen(self, start: int, vectors: np.ndarray) -> np.ndarray:
        """Return bool: True for usable vectors (n, D) of the rows from ``start``; note the others.

        Raises UserError for unusable ones unless the gallery was opened with "quarantine".
        """
        good = np.ones(len(vectors), bool)
        found = reasons(vectors)
        for row, reason in found.items():
            good[row] = False
            self._set_bad(self.stored(start + row), self.ids[start + row], reason)
        if found and self.options.on_bad == "raise":
            raise UserError(f"{self.name} holds unusable vectors: {self.bad.summary()}")
        return good

    def set_aside(self, bad: Quarantine | None = None) -> np.ndarray:
        """Leave out all bad rows found so far, or those of a quarantine; return their numbers.

        The remaining rows are renumbered; the returned numbers are the previous ones, ascending.
        """
        if bad is not None:
            self.bad.entries.update(bad.entries)
        rows = np.setdiff1d(self.bad.rows, self._gone)
        gone = self.served(rows)
        if len(gone):
            for held in ("ids", "versions", "labels"):
                if getattr(self, held) is not None:
                    setattr(self, held, np.delete(getattr(self, held), gone))
            self._gone = self.bad.rows
        if not len(self.ids):
            raise UserError(f"{self.name} holds no usable vector: {self.bad.summary()}")
        return gone

    def sound(self, progress=None, batch_size: int = 1 << 14) -> "Gallery":
        """Read every vector once and set bad ones aside; return self. Meant for small galleries.

        ``progress`` is called with the number of rows done. Raises UserError for a bad row unless
        the gallery was opened with "quarantine", and if more than a thousandth of it is bad.
        """
        start = 0
        for ids, vectors in self.blocks(batch_size):
            self.screen(start, vectors)
            start += len(ids)
            if progress is not None:
                progress(len(ids))
        self.bad.check(start, self.name)
        self.set_aside()
        return self

    def unusable(self, row: int, reason: str) -> None:
        """Record a stored row in which the reader found no vector and which it reads as NaN."""
        if row in self.bad.entries:
            return
        id_ = self.ids[self.served(row)]
        if self.options.on_bad == "raise":
            raise UserError(f"{self.name}: the vector of id {id_} ({self.place(row)}) is {reason}")
        self._set_bad(row, id_, reason)

    def _set_bad(self, row: int, id_, reason: str) -> None:
        self.bad.add(row, id_, reason, self.place(row))

    def spread_rows(self, count: int) -> np.ndarray:
        """Return at most ``count`` evenly spread row numbers, ascending."""
        return np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).astype(np.int64))

    def verify(self) -> None:
        """Check its files against their checksums, if any. Raises UserError for a difference."""
        checksums.check_content(self.path, self.meta)

    def rows(self, rows) -> np.ndarray:
        """Return the rows in the given order, (len(rows), D) float32."""
        rows = np.asarray(rows, np.int64)
        found = np.empty((len(rows), self.dim), np.float32)
        order = np.argsort(rows, kind="stable")  # forwards: tables are read in one pass
        ends = np.flatnonzero(np.diff(rows[order]) != 1) + 1
        for places in np.split(order, ends) if len(rows) else ():
            first = int(rows[places[0]])  # of neighbours, which are read together
            found[places] = self.read(first, first + len(places))
        return found

    def blocks(self, batch_size: int, start: int = 0):
        """Yield (ids (n,), vectors (n, D) float32) from row ``start`` on, in order."""
        for first in range(start, len(self), batch_size):
            last = min(first + batch_size, len(self))
            yield self.ids[first:last], self.read(first, last)


def open_gallery(
    where,
    *,
    id_column: str | None = None,
    vector_column: str | None = None,
    unfinished: bool = False,
    on_bad: str = "raise",
    duplicates: str = "raise",
    form: str | None = None,
) -> Gallery:
    """Open the gallery at a path, of any form.

    Args:
      where: a path, or ``FORM@PATH`` to name its form; either may end in ``?id=COLUMN``,
        ``?vector=COLUMN`` or ``?id=COLUMN&vector=COLUMN``.
      id_column, vector_column: names of columns, if the form has columns; None or "" finds them,
        ``id`` and ``vector`` first.
      unfinished: also open a gallery whose re-embedding is unfinished.
      on_bad: with "quarantine" rows without a usable vector can be set aside, as `Gallery` shows;
        with "raise" the first of them is an error.
      duplicates: "raise", or "first" or "last" to keep that row of a repeated id; the
        others are in `Gallery.bad`.
      form: a name in `FORMS`, an entry point of ``fct_jax.galleries``, or ``module:name`` of a
        `Form`; None recognises it.

    Raises:
      UserError: there is no such gallery, it is damaged or unfinished, or ids are repeated.

    Example:

        gallery = open_gallery("vectors")
        for ids, vectors in gallery.blocks(4096):
            ...
    """
    where, columns = split_columns(where)
    id_column, vector_column = id_column or columns["id"], vector_column or columns["vector"]
    named, at, rest = str(where).partition("@")
    if form is None and at and not Path(where).exists() and _is_form(named):
        form, where = named, rest
    path = where if "://" in str(where) else Path(where).expanduser()
    options = Options(id_column or None, vector_column or None, unfinished, on_bad, duplicates)
    forms = (*FORMS.values(), *_offered())
    try:
        if form:
            chosen = plugins.find(FORMS, form, "form of gallery", "galleries")
        else:
            chosen = next((known for known in forms if known.recognises(path)), None)
        if chosen is not None:
            return chosen.open(path, options)
        looks = resembles(path, forms)
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror or error}") from None
    raise UserError(f"no gallery at {path}{looks}")


def split_columns(where) -> tuple:
    """Return a name of a gallery without its columns, and those, None where not named.

    >>> split_columns("export.parquet?vector=emb")
    ('export.parquet', {'id': None, 'vector': 'emb'})
    """
    found: dict[str, str | None] = {"id": None, "vector": None}
    path, _, query = str(where).partition("?")
    pairs = urllib.parse.parse_qsl(query)
    named = [(key, value) for key, value in pairs if key in found]
    if not named or is_store(where) or Path(where).exists():
        return where, found  # a store's columns are parts of its name
    # What else there is in the URI of an object store is the store's.
    rest = urllib.parse.urlencode([pair for pair in pairs if pair not in named])
    return f"{path}?{rest}" if rest else path, {**found, **dict(named)}


def _is_form(name: str) -> bool:
    return name in FORMS or plugins.is_import_name(name) or name in _entry_points()


def _offered() -> list:
    """Return the forms that other installed packages offer."""
    names = [name for name in _entry_points() if name not in FORMS]
    return [plugins.find(FORMS, name, "form of gallery", "galleries") for name in names]


def _entry_points() -> list[str]:
    return [e.name for e in importlib.metadata.entry_points(group="fct_jax.galleries")]
