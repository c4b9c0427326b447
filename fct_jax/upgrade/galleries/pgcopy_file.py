"""A file of PostgreSQL's ``COPY … (FORMAT binary)`` as a gallery.

    psql -c "\\copy (SELECT id, embedding FROM items) TO 'items.pgcopy' (FORMAT binary)"

The format (https://www.postgresql.org/docs/current/sql-copy.html, Binary Format) has neither names
nor types of columns; the types are inferred from the first rows.
"""

import dataclasses
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from fct_jax.errors import UserError
from fct_jax.upgrade.galleries.base import Options
from fct_jax.upgrade.galleries.embedding_set import SetTarget
from fct_jax.upgrade.galleries.tables import Part, TableGallery

MAGIC = b"PGCOPY\n\xff\r\n\0"
_GROUP = 1 << 12  # rows of a group; reading can start at each group
_LOOKED_AT = 64  # rows from which types are inferred
_ARRAYS = {700: ">f4", 701: ">f8"}  # element types of arrays by their PostgreSQL number


class CopyGallery(TableGallery):
    """One file. Its columns are called ``column_1``, ``column_2``, … in their order.

    Vectors are of pgvector's types ``vector`` and ``halfvec``, or arrays ``real[]`` and
    ``double precision[]``; ids are integers, UUIDs or text.
    """

    writer = SetTarget

    def __init__(self, path, options: Options):
        super().__init__(path, [CopyPart(Path(path))], {}, options)


class CopyPart(Part):
    """The rows of one file; opening it records where every 4,096th row begins."""

    def __init__(self, path: Path):
        self.path, self.name = path, path.name
        self.groups, self._places = [], []
        first = []
        for row, (place, fields) in enumerate(self._rows()):
            if row % _GROUP == 0:
                self._places.append(place)
                self.groups.append(0)
            self.groups[-1] += 1
            if row < _LOOKED_AT:
                first.append(fields)
        columns = list(zip(*first, strict=True)) if first else []
        self._columns = [_Column.of([f for f in cells if f is not None]) for cells in columns]
        self.schema = pa.schema(
            [pa.field(f"column_{n}", column.kind) for n, column in enumerate(self._columns, 1)]
        )

    def batches(self, names: list[str], group: int, size: int) -> Iterator[pa.RecordBatch]:
        places = [self.schema.get_field_index(name) for name in names]
        held: list[list] = [[] for _ in places]
        for _, fields in self._rows(self._places[group]):
            for column, place in zip(held, places, strict=True):
                column.append(fields[place])
            if len(held[0]) == size:
                yield self._batch(names, places, held)
                held = [[] for _ in places]
        if held[0]:
            yield self._batch(names, places, held)

    def _batch(self, names: list[str], places: list[int], held: list[list]) -> pa.RecordBatch:
        try:
            made = [self._columns[p].array(cells) for cells, p in zip(held, places, strict=True)]
        except ValueError as error:
            raise UserError(f"{self.path} is damaged or of mixed types: {error}") from None
        return pa.RecordBatch.from_arrays(made, names=names)

    def _rows(self, place: int | None = None) -> Iterator[tuple[int, list]]:
        """Yield the byte at which each row begins, and its fields as bytes, None for null."""
        with self.path.open("rb", buffering=1 << 20) as file:
            if place is None:
                head = self._read(file, len(MAGIC) + 8, 0)
                file.seek(struct.unpack_from(">i", head, len(MAGIC) + 4)[0], 1)
                place = file.tell()
            file.seek(place)
            width = None
            while (count := struct.unpack(">h", self._read(file, 2, place))[0]) >= 0:
                if count != (width := count if width is None else width):
                    raise UserError(f"{self.path} is damaged at byte {place:,}: {count} columns")
                fields, size = [], 2
                for _ in range(count):
                    (length,) = struct.unpack(">i", self._read(file, 4, place))
                    fields.append(None if length < 0 else self._read(file, length, place))
                    size += 4 + max(length, 0)
                yield place, fields
                place += size

    def _read(self, file, size: int, place: int) -> bytes:
        found = file.read(size)
        if len(found) < size:
            raise UserError(f"{self.path} is cut off in the row that begins at byte {place:,}")
        return found


@dataclasses.dataclass(frozen=True)
class _Column:
    """The type of a column's cells.

    Attributes:
      kind: Arrow type.
      floats: NumPy type of a vector's floats; "" if the cells are not vectors.
      width: bytes of a cell; 0 if they vary.
    """

    kind: pa.DataType
    floats: str = ""
    width: int = 0

    @classmethod
    def of(cls, cells: list[bytes]) -> "_Column":
        """Infer the type from some of the cells."""
        floats = {_floats_of(cell) for cell in cells}
        if len(floats) == 1 and None not in floats:
            return cls(pa.list_(pa.float32()), floats.pop())
        sizes = {len(cell) for cell in cells}
        if len(sizes) == 1 and not all(cell.decode("latin-1").isprintable() for cell in cells):
            (size,) = sizes
            kind = {2: pa.int64(), 4: pa.int64(), 8: pa.int64(), 16: pa.binary(16)}.get(size)
            if kind is not None:
                return cls(kind, width=size)
        return cls(pa.binary())

    def array(self, cells: list[bytes | None]) -> pa.Array:
        """Convert cells to an Arrow array. Raises ValueError if their sizes differ."""
        if self.floats:
            rows = [None if cell is None else _vector(cell, self.floats) for cell in cells]
            return pa.array(rows, self.kind)
        if self.width and any(cell is not None and len(cell) != self.width for cell in cells):
            raise ValueError(f"a cell does not have {self.width} bytes, unlike those before it")
        if pa.types.is_integer(self.kind):
            return pa.array([None if c is None else _integer(c) for c in cells], self.kind)
        return pa.array(cells, self.kind)


def _integer(cell: bytes) -> int:
    return int.from_bytes(cell, "big", signed=True)


def _floats_of(cell: bytes) -> str | None:
    """Return the NumPy type of a vector's floats; None if the cell is not a vector."""
    if len(cell) > 20 and cell[:4] == b"\0\0\0\1":  # an array of one dimension
        kind, dim = struct.unpack_from(">ii", cell, 8)
        floats = _ARRAYS.get(kind)
        return floats if floats and len(cell) == 20 + dim * _element(floats).itemsize else None
    if len(cell) > 4:
        dim, zero = struct.unpack_from(">HH", cell)
        for floats in (">f4", ">f2"):
            if dim and not zero and len(cell) == 4 + dim * np.dtype(floats).itemsize:
                return floats
    return None


def _vector(cell: bytes, floats: str) -> np.ndarray:
    """Return the floats of a cell; none if its type differs from that of the first rows."""
    if _floats_of(cell) != floats:
        return np.empty(0, np.float32)
    if cell[:4] == b"\0\0\0\1":
        return np.frombuffer(cell, _element(floats), offset=20)["value"].astype(np.float32)
    return np.frombuffer(cell, floats, offset=4).astype(np.float32)


def _element(floats: str) -> np.dtype:
    """Return the type of an array's element, which consists of its length and its value."""
    return np.dtype([("length", ">i4"), ("value", floats)])
