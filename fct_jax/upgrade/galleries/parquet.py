"""Parquet files as a gallery, on disk or in an object store, and their new-space copies."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq

from fct_jax.errors import UserError
from fct_jax.storage.embedding_set import check_state
from fct_jax.storage.files import sync_directory, sync_files
from fct_jax.upgrade.galleries.base import VERSIONS, Options
from fct_jax.upgrade.galleries.columns import is_list, plain, plain_array
from fct_jax.upgrade.galleries.names import natural
from fct_jax.upgrade.galleries.places import of_uri
from fct_jax.upgrade.galleries.rows import Awaited, Rows, npy_rows
from fct_jax.upgrade.galleries.stored import Coding
from fct_jax.upgrade.galleries.tables import ROWS, Part, TableGallery
from fct_jax.upgrade.galleries.target import Target

VERSION_COLUMN = "fct_version"
_META = ("_meta.json", "meta.json")  # Parquet readers skip names that begin with _
_MEMORY = 1 << 27  # bytes that pyarrow may need for a row group; larger ones are divided
# Bytes of each value that pyarrow holds beside a column of vectors while it writes a row group: two
# levels of a list, and a pointer to each float16 or a copy of each byte as a number of 32 bits.
_BESIDE = {np.dtype(np.float16): 4 + 8, np.dtype(np.int8): 4 + 4, np.dtype(np.uint8): 4 + 4}


class ParquetTarget(Target):
    """The source's files with new vectors and a column of versions; every other column is kept.

    Parquet cannot be changed in place: rows are written to ``store`` beside the folder, and files
    are made from it, each completely or not at all. Compression, folders and row groups are the
    source's, except that groups whose writing would need more than 128 MiB are divided.
    """

    copies, meta_name, follows = 2, "_meta.json", True

    @property
    def store(self) -> Path:
        return self.workdir / "store"

    def lay_out(self, dim: int, metric: str) -> None:
        self.empty_vectors(self.store / "vectors.npy", dim)

    def open(self, dim: int) -> None:
        if not self.store.is_dir() and self.made is not None:
            self._take_back(dim)
        super().open(dim)

    @property
    def made(self) -> Path | str | None:
        """Return the place of the gallery's files, or None while there are none."""
        return self.folder if self.folder.is_dir() else None

    def file_starts(self) -> np.ndarray:
        return self.source.served(self.source.starts)

    def file_name(self, number: int) -> str:
        """Return the name of a file, with its folder below the gallery's."""
        return self.source.parts[number].name

    def write_file(self, number: int, path: Path, vectors, versions) -> None:
        """Write a file of the source with new vectors and versions, and without bad rows.

        vectors, versions: have ``read(start, stop)`` of rows, which is called in order.
        """
        _write(self.source, number, path, vectors, versions)

    def adopt(self, folder: Path) -> None:
        """Make a folder of finished files the unfinished gallery."""
        folder.rename(self.partial)
        sync_directory(self.workdir)

    def _take_back(self, dim: int) -> None:
        """Fill the store with the vectors of files that were adopted."""
        columns = Options(vector_column=self.source.vector_column, unfinished=True)
        made = ParquetGallery(self.made, columns)
        partial = self.store.with_name(f"{self.store.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        self.empty_vectors(partial / "vectors.npy", dim)
        with contextlib.closing(npy_rows(partial / "vectors.npy")) as rows:
            for start in range(0, len(made), ROWS):
                rows.write(start, made.read_exactly(start, min(start + ROWS, len(made))))
        np.save(partial / self.version_name, made.versions)
        sync_files(partial)
        partial.rename(self.store)
        sync_directory(self.workdir)

    def open_vectors(self, dim: int) -> Rows:
        return npy_rows(self.store / "vectors.npy")

    def describe(self, meta: dict) -> None:
        super().describe({**meta, "version_column": self.source.version_column})

    def publish(self, rows=None, ready=None) -> int:
        source, wanted = self.source, range(len(self.source.parts))
        if rows is not None:
            wanted = np.unique(np.searchsorted(source.starts, source.stored(rows), "right") - 1)
        numbers = [int(number) for number in wanted]
        # A killed run's files are whole, and of the same vectors, because the layout is the same.
        self.replace(numbers, Awaited(self.vectors, ready), again=ready is None)
        return len(wanted)

    def replace(self, numbers: list[int], vectors, again: bool) -> None:
        """Make files of the gallery of these vectors, each completely or not at all.

        again: whether those that are there already are made, too.
        """
        folders = set()
        for number in numbers:
            path = self.folder / self.file_name(number)
            partial = path.with_name(f".{path.name}.partial")
            path.parent.mkdir(parents=True, exist_ok=True)
            if again or not path.is_file():
                self.write_file(number, partial, vectors, self.versions)
                with partial.open("rb+") as file:
                    os.fsync(file.fileno())
                partial.rename(path)
            folders.update(p for p in path.parents if p.is_relative_to(self.folder))
        for folder in folders:
            sync_directory(folder)


class ParquetGallery(TableGallery):
    """A ``.parquet`` file, or those of a folder and its subfolders in the order of their names.

    Names are in natural order (``part-2`` before ``part-10``), and names that begin with ``_`` or
    ``.`` are skipped. A ``_meta.json`` (or ``meta.json``) in the folder names the vectors' model,
    as in an EmbeddingSet. Files are opened one at a time, and row groups are streamed. ``s3://``,
    ``gs://`` and ``hf://`` are read through pyarrow and fsspec, with the credentials of the
    environment.

    Attributes:
      version_column: column of versions of this gallery or of its new-space copy: ``fct_version``,
        or ``fct_version_2`` … if the user has a column of that name.
    """

    writer = ParquetTarget

    def __init__(self, path, options: Options):
        self._where = str(path)
        store, root, files = located(path)
        if not files:
            raise UserError(f"no .parquet files in {path}")
        parts = [ParquetPart(store, root, file) for file in files]
        meta = _meta(store, root)
        check_state(self._where, meta, options.unfinished)
        names = parts[0].schema.names
        known = meta.get("version_column", "version" if "versions" in meta else None)
        versioned = known in names
        self.version_column = known if versioned else _free(VERSION_COLUMN, parts)
        super().__init__(path, parts, meta, options, taken=(known,) if versioned else ())
        self.coding = Coding.of_meta(meta, self._where)
        if self.coding is not None:
            self.dim, self.exact = self.coding.dim_of(self.dim, meta, self._where), False
        if versioned:
            new = [
                pc.equal(plain_array(batch.column(0)), VERSIONS[1]).to_numpy(zero_copy_only=False)
                for batch in self._columns([known], 0, 1 << 16)
            ]
            self.versions = np.concatenate(new).astype(np.uint8)

    @property
    def name(self) -> str:
        return self._where

    def read_stored(self, start, stop):
        values = super().read_stored(start, stop)
        if self.coding is None:
            return values
        there = np.isfinite(values).all(axis=1)
        codes = np.where(there[:, None], values, 0).astype(self.coding.type.dtype)
        return np.where(there[:, None], self.coding.decode(codes), np.float32(np.nan))

    def read_exactly(self, start, stop):
        if self.coding is None:
            return super().read_exactly(start, stop)
        return super().read_stored(start, stop).astype(self.coding.type.dtype)

    def stamps(self):
        found = self.parts[0].store.get_file_info([part.file for part in self.parts])
        return {
            part.name: [info.size, info.mtime_ns]
            for part, info in zip(self.parts, found, strict=True)
        }


class ParquetPart(Part):
    """One file."""

    def __init__(self, store: pa.fs.FileSystem, root: str, file: str):
        self.store, self.file = store, file
        self.name = os.path.relpath(file, root) if file != root else Path(file).name
        try:
            with self.opened() as reader:
                metadata = reader.metadata
                self.schema = reader.schema_arrow
                self.groups = [
                    metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)
                ]
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{file} cannot be read: {' '.join(str(error).split())}") from None

    def opened(self) -> pq.ParquetFile:
        # Reads are buffered, because a row group may be too large for memory.
        return pq.ParquetFile(
            self.file, filesystem=self.store, buffer_size=1 << 20, pre_buffer=False
        )

    def batches(self, names: list[str], group: int, size: int) -> Iterator[pa.RecordBatch]:
        groups = list(range(group, len(self.groups)))
        try:
            with self.opened() as reader:
                yield from reader.iter_batches(size, groups, names, use_threads=False)
        except FileNotFoundError:
            raise UserError(f"{self.file} is no longer there") from None
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{self.file} is damaged: {' '.join(str(error).split())}") from None


def located(path) -> tuple[pa.fs.FileSystem, str, list[str]]:
    """Return a path's file system, the path in it, and its Parquet files in natural order."""
    if "://" not in str(path):
        store, root = pa.fs.LocalFileSystem(), str(Path(path))
        if Path(path).is_file():
            return store, root, [root]
        # FileSelector is not used, because it follows circular links.
        found = [f"{at}/{name}" for at, _, names in os.walk(root) for name in names]
    else:
        store, root, info = of_uri(str(path))
        if info.type == pa.fs.FileType.File:
            return store, root, [root]
        if info.type == pa.fs.FileType.NotFound:
            raise UserError(f"{path}: nothing is there")
        found = [f.path for f in store.get_file_info(pa.fs.FileSelector(root, recursive=True))]
    kept = [f for f in found if f.endswith(".parquet") and not _hidden(os.path.relpath(f, root))]
    return store, root, sorted(kept, key=lambda f: natural(os.path.relpath(f, root)))


def _hidden(name: str) -> bool:
    return any(part.startswith(("_", ".")) for part in Path(name).parts)


def _free(name: str, parts: list[Part]) -> str:
    """Return a name that no part's column has."""
    taken = {column for part in parts for column in part.schema.names}
    names = [name, *(f"{name}_{n}" for n in range(2, len(taken) + 3))]
    return next(n for n in names if n not in taken)


def _meta(store: pa.fs.FileSystem, root: str) -> dict:
    for name in _META:
        file = f"{root}/{name}"
        try:
            with store.open_input_file(file) as opened:
                return json.loads(opened.read())
        except ValueError as error:
            raise UserError(f"{file} cannot be read: {error}") from None
        except OSError:
            continue  # not there
    return {}


def _write(source: ParquetGallery, number: int, path: Path, vectors, versions) -> None:
    """Rewrite one file of the source with the target's vectors and without bad rows."""
    part, first = source.parts[number], int(source.starts[number])
    with part.opened() as reader:
        schema = _schema(part.schema, source, vectors.dim, vectors.dtype)
        others = [n for n in part.schema.names if n in schema.names and n != source.vector_column]
        plain = others if vectors.dtype.kind == "f" else True
        with pq.ParquetWriter(
            path,
            schema,
            compression=_codecs(reader, source),
            # Vectors of floats have neither repeated values nor ranges that anyone asks for.
            use_dictionary=plain,
            write_statistics=plain,
        ) as writer:
            for group, rows in enumerate(part.groups):
                if not rows:
                    continue
                size = min(rows, _rows_at_once(reader, group, rows, vectors, source))
                for held in _stretches(reader, group, rows, size, others):
                    kept = source.kept(first, first + held.num_rows)
                    at = int(source.served(first))
                    first += held.num_rows
                    made = _made(held.filter(pa.array(kept)), at, schema, source, vectors, versions)
                    writer.write_table(made, row_group_size=max(1, made.num_rows))


def _rows_at_once(reader, group: int, rows: int, vectors, source) -> int:
    """Return the number of rows that can be written together; at least one."""
    found = reader.metadata.row_group(group)
    held = [found.column(number) for number in range(found.num_columns)]
    others = sum(
        column.total_uncompressed_size
        for column in held
        if column.path_in_schema.split(".")[0] != source.vector_column
    )
    value = vectors.dtype.itemsize + _BESIDE.get(vectors.dtype, 4)
    return max(1, rows * _MEMORY // (others + rows * vectors.dim * value))


def _stretches(reader, group: int, rows: int, size: int, names: list[str]) -> Iterator[pa.Table]:
    """Yield tables of ``size`` rows of a group; the vectors may be the file's only column."""
    if not names:
        for start in range(0, rows, size):
            yield pa.table({"row": pa.nulls(min(size, rows - start))})
        return
    for batch in reader.iter_batches(size, [group], names, use_threads=False):
        yield pa.Table.from_batches([batch])


def _made(held: pa.Table, at: int, schema: pa.Schema, source, vectors, versions) -> pa.Table:
    """Return the rows with new vectors and versions; ``at``: the first of them in the target."""
    last = at + held.num_rows
    codes = versions.read(at, last)[:, 0].astype(np.int8)
    field = schema.field(source.vector_column)
    made = {
        source.vector_column: _lists(vectors.read(at, last), field.type),
        source.version_column: pa.DictionaryArray.from_arrays(codes, list(VERSIONS)),
    }
    return pa.table([made[n] if n in made else held[n] for n in schema.names], schema)


def _schema(schema: pa.Schema, source: ParquetGallery, dim: int, dtype) -> pa.Schema:
    """Return the source's columns, vectors of a new size and type, and the versions at the end."""
    place = schema.get_field_index(source.vector_column)
    kind = plain(schema.field(place).type)
    value = pa.from_numpy_dtype(dtype)
    if pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type):
        kind = pa.list_(value, dim)
    elif not is_list(kind) or kind.value_type != value:
        kind = pa.large_list(value) if pa.types.is_large_list(kind) else pa.list_(value)
    schema = schema.set(place, pa.field(source.vector_column, kind))
    if source.version_column in schema.names:
        schema = schema.remove(schema.get_field_index(source.version_column))
    return schema.append(pa.field(source.version_column, pa.dictionary(pa.int8(), pa.string())))


def _codecs(reader: pq.ParquetFile, source: ParquetGallery) -> dict[str, str] | str:
    """Return the compression of each of the source's columns."""
    if not reader.metadata.num_row_groups:
        return "snappy"
    group = reader.metadata.row_group(0)
    found = [group.column(c) for c in range(group.num_columns)]
    codecs = {column.path_in_schema: column.compression for column in found}
    codecs = {path: "NONE" if codec == "UNCOMPRESSED" else codec for path, codec in codecs.items()}
    vector = next(c for p, c in codecs.items() if p.split(".")[0] == source.vector_column)
    codecs.setdefault(f"{source.vector_column}.list.element", vector)  # may have been text
    return {**codecs, source.version_column: vector}


def _lists(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    flat = pa.array(values.reshape(-1)).cast(kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    offsets = np.arange(len(values) + 1) * values.shape[1]
    if pa.types.is_large_list(kind):
        return pa.LargeListArray.from_arrays(offsets.astype(np.int64), flat, type=kind)
    return pa.ListArray.from_arrays(offsets.astype(np.int32), flat, type=kind)
