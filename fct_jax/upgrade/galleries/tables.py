"""Galleries that are Arrow tables in parts: streamed forwards, ids in memory."""

import abc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from fct_jax.errors import UserError
from fct_jax.upgrade.galleries import columns
from fct_jax.upgrade.galleries.base import Gallery, Options

ROWS = 1 << 14  # decoded together
_FEW = 1 << 9  # decoded together where single rows are wanted
_IDS = 1 << 16
_SPREAD = 8  # groups from which a sample is taken, if they have enough rows


class Part(abc.ABC):
    """A file, or another source of a table that is read in order; it is open only while reading.

    Attributes:
      name: name for messages.
      groups: numbers of rows of the groups at whose starts reading can begin.
      schema: its columns.
    """

    name: str
    groups: list[int]
    schema: pa.Schema

    @abc.abstractmethod
    def batches(self, names: list[str], group: int, size: int) -> Iterator[pa.RecordBatch]:
        """Yield batches of at most ``size`` rows of these columns, from the start of a group on."""


class TableGallery(Gallery):
    """A gallery of the rows of parts, in their order.

    Reading forwards continues where it stopped; going back starts at the group of the row.

    Attributes:
      parts: in order.
      starts: (parts + 1,) the first row of each, and the number of rows.
      id_column: name of the column of ids, None if they are row numbers.
      vector_column: name of the column of vectors.
    """

    def __init__(self, path, parts: list[Part], meta: dict, options: Options, taken=()):
        self.parts = parts
        sizes = [sum(part.groups) for part in parts]
        self.starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        if self.starts[-1] == 0:
            raise UserError(f"{path} is empty: it has no rows")
        self._group_starts = np.cumsum([0, *(rows for part in parts for rows in part.groups)])
        self._first_groups = np.cumsum([0, *(len(part.groups) for part in parts)])
        self.path = Path(path)
        first = parts[int(np.argmax(np.diff(self.starts) > 0))]
        self.id_column, self.vector_column = columns.choose(
            first.schema, first.name, options, taken
        )
        self._check_parts()
        ids, self._null_ids = self._ids()
        super().__init__(path, ids, 0, meta)
        self.options, self.numbered = options, self.id_column is None
        self._first, self._batches, self._held, self._size = 0, None, None, ROWS
        self._decode = self._decoder()
        self.dim, self.dtype = self._decode.dim, self._decode.dtype

    def settle(self, options: Options) -> Gallery:
        if len(self._null_ids) and options.on_bad == "raise":
            place = self.place(int(self._null_ids[0]))
            raise UserError(
                f"{self.name}: {len(self._null_ids)} ids in {self.id_column!r} are null, "
                f"first {place}"
            )
        for row in self._null_ids:
            self.bad.add(row, None, "null id", self.place(int(row)))
        return super().settle(options)

    def place(self, row: int) -> str:
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        return f"{self.parts[part].name}, row {row - self.starts[part]}"

    def read_stored(self, start: int, stop: int) -> np.ndarray:
        shape = max(stop - start, 0), self._decode.dim
        found, at = np.empty(shape, np.float32), start
        while at < stop:
            column = self._from(at)
            column = column.slice(0, min(len(column), stop - at))
            values, odd = self._decode(column)
            for row, reason in odd.items():
                self.unusable(at + row, f"{reason} in {self.vector_column!r}")
            found[at - start : at - start + len(column)] = values
            at += len(column)
        return found

    def rows(self, rows) -> np.ndarray:
        # What lies between the rows of different groups is not decoded.
        self._held, self._size = None, _FEW
        try:
            return super().rows(rows)
        finally:
            self._held, self._size = None, ROWS

    def spread_rows(self, count: int) -> np.ndarray:
        """Return the first rows of some groups; later rows are reached only by decoding these.

        The groups are eight, or as many more as it takes to have so many rows.
        """
        sizes = np.diff(self._group_starts)
        starts, sizes = self._group_starts[:-1][sizes > 0], sizes[sizes > 0]
        few, taken = _SPREAD, None
        while taken is None or (taken.sum() < count and few < 2 * len(starts)):
            places = np.linspace(0, len(starts) - 1, min(few, len(starts))).astype(np.int64)
            chosen = np.unique(places)
            taken = np.minimum(sizes[chosen], -(-count // len(chosen)))
            few *= 2
        rows = [np.arange(starts[f], starts[f] + n) for f, n in zip(chosen, taken, strict=True)]
        rows = np.concatenate(rows)
        return np.unique(self.served(rows[~np.isin(rows, self._gone)]))[:count]

    def _from(self, row: int) -> pa.Array:
        """Return some rows from ``row`` on; reading forwards continues at the last place."""
        near = 1 if self._size == ROWS else 0  # to go on needs no file to be opened
        if self._held is None or row < self._first or self._group(row) > self._group_after() + near:
            group = self._group(row)
            self._first = int(self._group_starts[group])
            self._batches = self._columns([self.vector_column], group, self._size)
            self._held = next(self._batches).column(0)
        while row >= self._first + len(self._held):
            self._first += len(self._held)
            self._held = next(self._batches).column(0)
        return self._held.slice(row - self._first)

    def _group(self, row: int) -> int:
        return int(np.searchsorted(self._group_starts, row, side="right")) - 1

    def _group_after(self) -> int:
        """Return the group of the last row that was read."""
        return self._group(self._first + len(self._held) - 1)

    def _columns(self, names: list[str], group: int, size: int) -> Iterator[pa.RecordBatch]:
        """Yield batches that are not empty, from a group of the gallery to its end."""
        part = int(np.searchsorted(self._first_groups, group, side="right")) - 1
        for number in range(part, len(self.parts)):
            first = group - int(self._first_groups[part]) if number == part else 0
            if not sum(self.parts[number].groups[first:]):
                continue
            for batch in self.parts[number].batches(names, first, size):
                if batch.num_rows:
                    yield batch

    def _decoder(self) -> columns.Vectors:
        for batch in self._columns([self.vector_column], 0, ROWS):
            if batch.column(0).null_count < len(batch.column(0)):
                return columns.Vectors(self.vector_column, batch.column(0))
        raise UserError(f"{self.path}: every row of {self.vector_column!r} is null")

    def _ids(self) -> tuple[np.ndarray, np.ndarray]:
        if self.id_column is None:
            return np.arange(self.starts[-1]), np.empty(0, np.int64)
        read = self._columns([self.id_column], 0, _IDS)
        chunks = (batch.column(0) for batch in read)
        return columns.ids_of(chunks, int(self.starts[-1]), f"{self.path}")

    def _check_parts(self) -> None:
        """Raise UserError, naming the part, unless all have both columns in types of one kind."""
        for part in self.parts:
            for name in (self.id_column, self.vector_column):
                if name is not None and name not in part.schema.names:
                    raise UserError(
                        f"{part.name} has no column {name!r}; its columns: "
                        f"{', '.join(part.schema.names)}"
                    )
            kind = columns.plain(part.schema.field(self.vector_column).type)
            columns.check_vectors(kind, self.vector_column, part.name)
