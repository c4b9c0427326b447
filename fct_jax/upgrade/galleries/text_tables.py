"""CSV and JSON lines as a gallery, also compressed; streamed from the start of a file."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json

from fct_jax.errors import UserError
from fct_jax.upgrade.galleries.base import Options
from fct_jax.upgrade.galleries.embedding_set import SetTarget
from fct_jax.upgrade.galleries.names import natural
from fct_jax.upgrade.galleries.tables import Part, TableGallery

CSV, JSON = (".csv", ".tsv", ".csv.gz", ".tsv.gz"), (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
_BLOCK = 1 << 22  # bytes of a block; a row must be shorter, and up to 32 blocks are read ahead
_WIDE = 8  # smallest number of numbered columns that are taken as one vector


class TextGallery(TableGallery):
    """A file, or the files of a folder in natural order.

    A vector is text in a CSV cell (``"[0.1, 0.2]"``, ``{0.1,0.2}``) or numbered columns
    (``dim_0, dim_1, …``), and a list in JSON. Ids that are all digits are integers. Going back
    in a file means parsing it again, so write large galleries as Parquet.
    """

    writer = SetTarget

    def __init__(self, path, options: Options):
        path = Path(path)
        files = [path] if path.is_file() else sorted(path.iterdir(), key=lambda f: natural(f.name))
        parts = [_part(f, options) for f in files if f.name.lower().endswith((*CSV, *JSON))]
        super().__init__(path, parts, {}, options)

    def _ids(self) -> tuple[np.ndarray, np.ndarray]:
        ids, null = super()._ids()
        if ids.dtype.kind == "U":
            ids[null] = "0"
        try:
            numbers = ids.astype(np.int64)
        except (ValueError, OverflowError):
            return ids, null
        return (numbers if (numbers.astype(ids.dtype) == ids).all() else ids), null


def _part(file: Path, options: Options) -> Part:
    kind = CsvPart if file.name.lower().endswith(CSV) else JsonPart
    try:
        return kind(file)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {' '.join(str(error).split())}") from None


class TextPart(Part):
    """One file; opening it counts its rows and determines the types of its columns."""

    def __init__(self, path: Path):
        self.path, self.name = path, path.name
        self.schema = self.first_schema()
        self.groups = [sum(batch.num_rows for batch in self.opened(self.schema.names[:1]))]

    def batches(self, names: list[str], group: int, size: int) -> Iterator[pa.RecordBatch]:
        try:
            for batch in self.opened(names):
                for start in range(0, batch.num_rows, size):
                    yield batch.slice(start, size)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{self.path}: {' '.join(str(error).split())}") from None


class CsvPart(TextPart):
    """A file with a header line, in which the most frequent of ``, ; | tab`` is the separator."""

    def first_schema(self) -> pa.Schema:
        with pa.input_stream(str(self.path), compression="detect") as file:
            head = file.read(1 << 20).decode("utf-8-sig", "replace").partition("\n")[0]
        self._delimiter = max(",;\t|", key=head.count)
        names = [name.strip().strip('"') for name in head.split(self._delimiter)]
        if all(re.fullmatch(r"[-+.\deE]*", name) for name in names) and not _wide(names):
            raise ValueError("its first line must be the names of its columns")
        self._wide = _wide(names)
        with self._read({}, None) as reader:
            schema = reader.schema
        # Ids are read as text, since 007 is not a number; they become integers if all ids allow it.
        fields = [
            pa.field(f.name, pa.string()) if pa.types.is_integer(f.type) else f
            for f in schema
            if f.name not in self._wide
        ]
        if self._wide:
            fields.append(pa.field("vector", pa.list_(pa.float32(), len(self._wide))))
        return pa.schema(fields)

    def opened(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        real = [n for name in names for n in self._columns(name)]
        types = {f.name: f.type for f in self.schema if f.name in real}
        types.update(dict.fromkeys(self._wide, pa.float32()))
        with self._read({n: types[n] for n in real}, real) as reader:
            for batch in reader:
                made = [self._column(batch, name) for name in names]
                yield pa.RecordBatch.from_arrays(made, names=names)

    def _columns(self, name: str) -> list[str]:
        return self._wide if self._wide and name == "vector" else [name]

    def _column(self, batch: pa.RecordBatch, name: str) -> pa.Array:
        columns = [
            batch.column(batch.schema.get_field_index(n)).to_numpy(zero_copy_only=False)
            for n in self._columns(name)
        ]
        if columns[0].dtype == object or len(columns) == 1:
            return batch.column(batch.schema.get_field_index(name))
        flat = pa.array(np.stack(columns, axis=1).astype(np.float32).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, len(columns))

    def _read(self, types: dict, names: list[str] | None):
        return pa.csv.open_csv(
            pa.input_stream(str(self.path), compression="detect"),
            read_options=pa.csv.ReadOptions(block_size=_BLOCK, use_threads=False),
            parse_options=pa.csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                column_types=types,
                include_columns=names,
                null_values=[""],
                strings_can_be_null=True,
            ),
        )


def _wide(names: list[str]) -> list[str]:
    """Return the columns of one vector: equal names with consecutive numbers; [] if none."""
    if "vector" in names:
        return []
    found = [(m[1], int(m[2]), n) for n in names if (m := re.fullmatch(r"(.*?)(\d+)", n))]
    for stem in {stem for stem, _, _ in found}:
        numbers = [(number, name) for other, number, name in found if other == stem]
        first = numbers[0][0]
        counted = [number for number, _ in numbers] == list(range(first, first + len(numbers)))
        if len(numbers) >= _WIDE and counted:
            return [name for _, name in numbers]
    return []


class JsonPart(TextPart):
    """A file with one object per line."""

    def first_schema(self) -> pa.Schema:
        with self._read(None) as reader:
            schema = reader.schema
        return pa.schema(
            [
                pa.field(f.name, pa.list_(pa.float32()))
                if pa.types.is_list(f.type) and _is_number(f.type.value_type)
                else f
                for f in schema
            ]
        )

    def opened(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        with self._read(pa.schema([self.schema.field(name) for name in names])) as reader:
            yield from reader

    def _read(self, schema: pa.Schema | None):
        return pa.json.open_json(
            pa.input_stream(str(self.path), compression="detect"),
            read_options=pa.json.ReadOptions(block_size=_BLOCK, use_threads=False),
            parse_options=pa.json.ParseOptions(
                explicit_schema=schema,
                unexpected_field_behavior="infer" if schema is None else "ignore",
            ),
        )


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)
