"""A folder of Parquet files as a gallery: row groups streamed, ids held in memory."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fct_jax.errors import UserError
from fct_jax.storage.embedding_set import check_ids, check_state
from fct_jax.storage.files import sync_directory
from fct_jax.upgrade.galleries.base import VERSIONS, Gallery, Options, Target
from fct_jax.upgrade.galleries.rows import Rows, empty_npy, npy_rows

VERSION_COLUMN = "version"
_ROWS = 1 << 14  # decoded together
_GROUP = 1 << 16  # rows of a row group that is written


class ParquetTarget(Target):
    """The source's files with new vectors and a column of versions; every other column is kept.

    Parquet cannot be changed in place: rows are written to ``store`` beside the folder, and files
    are made from it, each whole or not at all.
    """

    copies = 2

    @property
    def store(self) -> Path:
        return self.workdir / "store"

    def lay_out(self, dim: int, metric: str) -> None:
        empty_npy(self.store / "vectors.npy", (len(self.source), dim), self.source.dtype)

    def open_vectors(self, dim: int) -> Rows:
        return npy_rows(self.store / "vectors.npy")

    def publish(self, rows=None) -> int:
        source, folder = self.source, self.folder
        if rows is None:
            wanted = np.arange(len(source.files))
        else:
            wanted = np.unique(np.searchsorted(source.starts, rows, side="right") - 1)
        for number in wanted:
            path = folder / source.files[number].name
            partial = path.with_name(f".{path.name}.partial")
            _write(source, int(number), partial, self.vectors, self.versions)
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.rename(path)
        sync_directory(folder)
        return len(wanted)


class ParquetGallery(Gallery):
    """The ``*.parquet`` files of a folder in the order of their names.

    A ``meta.json`` beside them says, as in an EmbeddingSet, which model the vectors are of.
    """

    writer = ParquetTarget

    def __init__(self, path, options: Options):
        path = Path(path)
        id_column, vector_column = options.id_column or "id", options.vector_column or "vector"
        self.id_column, self.vector_column = id_column, vector_column
        self.files = sorted(path.glob("*.parquet"))
        self._readers = [_opened(file) for file in self.files]
        for file, reader in zip(self.files, self._readers, strict=True):
            _check_columns(file, reader.schema_arrow, id_column, vector_column)
        sizes = [reader.metadata.num_rows for reader in self._readers]
        self.starts = np.concatenate([[0], np.cumsum(sizes)])
        if self.starts[-1] == 0:
            raise UserError(f"{path} is empty: its Parquet files have no rows")
        meta = _meta(path)
        check_state(str(path), meta, options.unfinished)
        self._cursor = (0, None)  # row that comes next, and the batches from there on
        self._left = None
        first = int(np.argmax(np.diff(self.starts) > 0))
        kind = self._readers[first].schema_arrow.field(vector_column).type.value_type
        self.dtype = np.dtype(kind.to_pandas_dtype())
        self.path = path
        ids = self._ids()
        check_ids(str(path), ids)
        super().__init__(path, ids, 0, meta)
        self.dim = self.read(0, 1).shape[1]
        if VERSION_COLUMN in self._readers[0].schema_arrow.names:
            new = [pc.equal(cells, VERSIONS[1]) for cells in self._cells(VERSION_COLUMN)]
            self.versions = np.concatenate([n.to_numpy(zero_copy_only=False) for n in new]).astype(
                np.uint8
            )

    def read(self, start: int, stop: int) -> np.ndarray:
        parts, at = [], start
        while at < stop:
            block = self._from(at)[: stop - at]
            parts.append(block)
            at += len(block)
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def spread_rows(self, count: int) -> np.ndarray:
        """First rows of row groups: what is behind them must be decoded to be reached."""
        self._group(0)
        sizes = np.diff(self._group_starts)
        starts = self._group_starts[:-1][sizes > 0]
        few = np.unique(np.linspace(0, len(starts) - 1, min(8, len(starts))).astype(np.int64))
        each = -(-count // len(few))
        rows = np.concatenate(
            [
                np.arange(start, start + min(each, size))
                for start, size in zip(starts[few], sizes[sizes > 0][few], strict=True)
            ]
        )
        return rows[:count]

    def _from(self, row: int) -> np.ndarray:
        """Some rows from ``row`` on; reading forwards goes on where it stopped."""
        first, batches = self._cursor
        held = self._left
        if held is None or not first <= row or self._group(row) > self._group(first) + 1:
            first, batches, held = self._seek(row)
        while row >= first + len(held):
            first += len(held)
            held = next(batches)
        self._cursor, self._left = (first, batches), held
        return held[row - first :]

    def _seek(self, row: int):
        file = int(np.searchsorted(self.starts, row, side="right")) - 1
        metadata, first = self._readers[file].metadata, int(self.starts[file])
        group = 0
        while row >= first + metadata.row_group(group).num_rows:
            first += metadata.row_group(group).num_rows
            group += 1
        batches = self._batches(file, group)
        return first, batches, next(batches)

    def _group(self, row: int) -> int:
        """A number that grows by one from row group to row group."""
        if not hasattr(self, "_group_starts"):
            sizes = [
                reader.metadata.row_group(g).num_rows
                for reader in self._readers
                for g in range(reader.metadata.num_row_groups)
            ]
            self._group_starts = np.cumsum([0, *sizes])
        return int(np.searchsorted(self._group_starts, row, side="right")) - 1

    def _batches(self, file: int, group: int):
        """Blocks (n, D) float32 from a row group of a file to the end of the last file."""
        for number in range(file, len(self.files)):
            reader = self._readers[number]
            groups = range(group if number == file else 0, reader.metadata.num_row_groups)
            for batch in reader.iter_batches(
                _ROWS, row_groups=list(groups), columns=[self.vector_column], use_threads=False
            ):
                if batch.num_rows:
                    yield self._vectors(batch.column(0), self.files[number])

    def _vectors(self, column, file) -> np.ndarray:
        if column.null_count:
            raise UserError(f"{file}: {column.null_count} rows of {self.vector_column!r} are null")
        values = column.flatten()
        wide = len(values) // len(column)
        if not pa.types.is_fixed_size_list(column.type):
            lengths = np.diff(column.offsets.to_numpy())
            if (lengths != wide).any():
                raise UserError(
                    f"{file}: vectors of {lengths.min()} to {lengths.max()} values "
                    f"in {self.vector_column!r}; all must have the same dimension"
                )
        dim = getattr(self, "dim", 0)
        if wide == 0 or (dim and wide != dim):
            raise UserError(f"{file}: vectors have dimension {wide}, others {dim or 'none'}")
        values = values.to_numpy(zero_copy_only=False)
        return values.reshape(-1, wide).astype(np.float32, copy=False)

    def _ids(self) -> np.ndarray:
        """(N,) integers or text; in memory once, and a batch beside them."""
        kinds = [reader.schema_arrow.field(self.id_column).type for reader in self._readers]
        if all(map(pa.types.is_integer, kinds)):
            kind = np.result_type(*(k.to_pandas_dtype() for k in kinds))
        elif all(map(_is_text, kinds)):
            # NumPy's text has one width, which must be known first.
            longest = [
                pc.max(pc.utf8_length(cells)).as_py() for cells in self._cells(self.id_column)
            ]
            kind = np.dtype(f"U{max(1, *longest)}")
        else:
            names = ", ".join(dict.fromkeys(map(str, kinds)))
            raise UserError(
                f"{self.path}: ids in {self.id_column!r} must be integers or text, not {names}"
            )
        ids, row = np.empty(int(self.starts[-1]), kind), 0
        for cells in self._cells(self.id_column):
            ids[row : row + len(cells)] = cells.to_numpy(zero_copy_only=False)
            row += len(cells)
        return ids

    def _cells(self, name: str):
        """A column batch by batch. Raises UserError for nulls."""
        for file, reader in zip(self.files, self._readers, strict=True):
            for batch in reader.iter_batches(1 << 16, columns=[name], use_threads=False):
                column = batch.column(0)
                if column.null_count:
                    raise UserError(f"{file}: {column.null_count} rows of {name!r} are null")
                if pa.types.is_dictionary(column.type):
                    column = column.dictionary_decode()
                if len(column):
                    yield column


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _opened(file: Path) -> pq.ParquetFile:
    try:
        # Buffered: a row group may be larger than memory should be.
        return pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} cannot be read: {' '.join(str(error).split())}") from None


def _check_columns(file: Path, schema: pa.Schema, id_column: str, vector_column: str) -> None:
    for what, name in (("ids", id_column), ("vectors", vector_column)):
        if name not in schema.names:
            raise UserError(
                f"{file} has no column {name!r} of {what}; its columns: {', '.join(schema.names)}"
            )
    kind = schema.field(vector_column).type
    lists = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)
    if not (lists or pa.types.is_large_list(kind)) or not pa.types.is_floating(kind.value_type):
        raise UserError(f"{file}: column {vector_column!r} must be lists of floats, not {kind}")


def _meta(path: Path) -> dict:
    if not (path / "meta.json").is_file():
        return {}
    try:
        return json.loads((path / "meta.json").read_text())
    except ValueError as error:
        raise UserError(f"{path}/meta.json cannot be read: {error}") from None


def _write(source, number: int, path: Path, vectors: Rows, versions: Rows) -> None:
    reader = pq.ParquetFile(source.files[number], buffer_size=1 << 20, pre_buffer=False)
    schema = _schema(reader.schema_arrow, source.vector_column, vectors.dim)
    others = [n for n in schema.names if n not in (source.vector_column, VERSION_COLUMN)]
    row = int(source.starts[number])
    with pq.ParquetWriter(path, schema) as writer:
        for batch in reader.iter_batches(_GROUP, columns=others, use_threads=False):
            last = row + batch.num_rows
            made = {name: batch.column(batch.schema.get_field_index(name)) for name in others}
            values = vectors.read(row, last)
            made[source.vector_column] = _lists(values, schema.field(source.vector_column).type)
            codes = versions.read(row, last)[:, 0].astype(np.int8)
            made[VERSION_COLUMN] = pa.DictionaryArray.from_arrays(codes, list(VERSIONS))
            arrays = [made[name] for name in schema.names]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
            row = last


def _schema(schema: pa.Schema, vector_column: str, dim: int) -> pa.Schema:
    """The source's columns, vectors of the new dimension, and the versions at the end."""
    place = schema.get_field_index(vector_column)
    kind = schema.field(place).type
    if pa.types.is_fixed_size_list(kind):
        schema = schema.set(place, pa.field(vector_column, pa.list_(kind.value_type, dim)))
    if VERSION_COLUMN in schema.names:
        schema = schema.remove(schema.get_field_index(VERSION_COLUMN))
    return schema.append(pa.field(VERSION_COLUMN, pa.dictionary(pa.int8(), pa.string())))


def _lists(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    flat = pa.array(values.reshape(-1))
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    offsets = np.arange(len(values) + 1) * values.shape[1]
    if pa.types.is_large_list(kind):
        return pa.LargeListArray.from_arrays(offsets.astype(np.int64), flat, type=kind)
    return pa.ListArray.from_arrays(offsets.astype(np.int32), flat, type=kind)
