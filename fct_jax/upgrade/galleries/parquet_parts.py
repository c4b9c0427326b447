"""Parquet files of a migrated gallery: the source's, with new vectors and a version column."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fct_jax.storage.files import sync_directory
from fct_jax.upgrade.galleries.base import VERSIONS
from fct_jax.upgrade.galleries.parquet import VERSION_COLUMN, ParquetGallery
from fct_jax.upgrade.galleries.target import Rows

_ROWS = 1 << 16  # of a row group


def publish(source: ParquetGallery, folder: Path, vectors: Rows, versions: Rows, rows=None) -> int:
    """Writes the files that hold any of ``rows`` (None: all), each whole or not at all.

    Every other column of the source is kept. Returns the number of files written.
    """
    starts = source.starts
    if rows is None:
        wanted = np.arange(len(source.files))
    else:
        wanted = np.unique(np.searchsorted(starts, rows, side="right") - 1)
    for number in wanted:
        path = folder / source.files[number].name
        partial = path.with_name(f".{path.name}.partial")
        _write(source, int(number), partial, vectors, versions)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.rename(path)
    sync_directory(folder)
    return len(wanted)


def _write(source, number: int, path: Path, vectors: Rows, versions: Rows) -> None:
    reader = pq.ParquetFile(source.files[number], buffer_size=1 << 20, pre_buffer=False)
    schema = _schema(reader.schema_arrow, source.vector_column, vectors.dim)
    others = [n for n in schema.names if n not in (source.vector_column, VERSION_COLUMN)]
    row = int(source.starts[number])
    with pq.ParquetWriter(path, schema) as writer:
        for batch in reader.iter_batches(_ROWS, columns=others, use_threads=False):
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
