"""Columns of Arrow tables as ids and vectors, in all the types that occur."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fct_jax.errors import UserError, unknown
from fct_jax.runtime.progress import console
from fct_jax.storage import spilled
from fct_jax.storage.ids import uuid_text

_IDS = ("id", "_id", "ids", "uuid", "key", "item_id", "doc_id", "image_id")
_PACKED = ("ubinary", "packed")  # usual names of columns of packed bits
_BYTES = (np.float32, np.float64, np.float16)  # possible types of vectors stored as bytes


def numpy_dtype(kind: pa.DataType) -> np.dtype:
    """Return the NumPy type of an Arrow number type; Arrow's own conversion needs pandas."""
    return pa.array([], kind).to_numpy(zero_copy_only=False).dtype


def plain(kind: pa.DataType) -> pa.DataType:
    """Return the storage type of an extension or dictionary type."""
    while isinstance(kind, pa.BaseExtensionType) or pa.types.is_dictionary(kind):
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind.storage_type
    return kind


def plain_array(column: pa.Array) -> pa.Array:
    """Return a column in its storage type."""
    while column.type != plain(column.type):
        is_dictionary = pa.types.is_dictionary(column.type)
        column = column.dictionary_decode() if is_dictionary else column.storage
    return column


def is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_bytes(kind: pa.DataType) -> bool:
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def is_uuid(kind: pa.DataType) -> bool:
    return pa.types.is_fixed_size_binary(kind) and kind.byte_width == 16


def _is_number(kind: pa.DataType) -> bool:
    # Polars once wrote float16 as two bytes.
    two_bytes = pa.types.is_fixed_size_binary(kind) and kind.byte_width == 2
    return pa.types.is_floating(kind) or pa.types.is_integer(kind) or two_bytes


def _holds_vectors(kind: pa.DataType) -> bool:
    return is_list(kind) and _is_number(kind.value_type)


def _is_multi(kind: pa.DataType) -> bool:
    return is_list(kind) and is_list(plain(kind.value_type))


def choose(schema: pa.Schema, name: str, options, taken=()) -> tuple[str | None, str]:
    """Return the columns of ids (None: row numbers) and of vectors.

    The user's names come first, then ``id`` and ``vector``, then the only column of each kind.
    Raises UserError if there is none, or more than one.
    """
    kinds = {n: plain(schema.field(n).type) for n in schema.names if n not in taken}
    vector = options.vector_column
    if vector and vector not in kinds:
        raise UserError(f"{name}: {unknown('column of vectors', vector, kinds)}")
    vector = vector or ("vector" if "vector" in kinds else _only_vector(kinds, name))
    check_vectors(kinds[vector], vector, name)
    return choose_ids(schema, name, options, (*taken, vector)), vector


def choose_ids(schema: pa.Schema, name: str, options, taken=()) -> str | None:
    """Return the column of ids as `choose` does; ``taken``: columns with another meaning."""
    kinds = {n: plain(schema.field(n).type) for n in schema.names if n not in taken}
    identity = options.id_column
    if identity and identity not in kinds:
        raise UserError(f"{name}: {unknown('column of ids', identity, kinds)}")
    usable = [n for n, k in kinds.items() if _is_id(k)]
    if identity:
        if identity not in usable:
            raise UserError(
                f"{name}: column {identity!r} must hold integers, text or UUIDs to be ids, "
                f"not {kinds[identity]}"
            )
        return identity
    named = [n for n in _IDS if n in usable]
    if not named and len(usable) > 1:
        raise UserError(
            f"{name}: any of the columns {', '.join(usable)} may hold ids; say which (id_column)"
        )
    identity = next(iter(named or usable), None)
    if identity != "id":
        console.print(
            f"{name}: ids are " + ("row numbers" if identity is None else f"column {identity!r}")
        )
    return identity


def _only_vector(kinds: dict, name: str) -> str:
    lists = [n for n, k in kinds.items() if _holds_vectors(k)]
    loose = [n for n, k in kinds.items() if (is_text(k) or is_bytes(k)) and _sounds(n)]
    found = lists or loose
    if len(found) > 1:
        raise UserError(
            f"{name}: the columns {', '.join(found)} hold vectors; say which (vector_column)"
        )
    if not found:
        many = [n for n, k in kinds.items() if _is_multi(k)]
        if many:
            check_vectors(kinds[many[0]], many[0], name)
        raise UserError(
            f"{name} has no column of vectors; its columns: {', '.join(kinds)} (vector_column)"
        )
    if found[0] != "vector":
        console.print(f"{name}: vectors are column {found[0]!r}")
    return found[0]


def _sounds(name: str) -> bool:
    """Return whether the name of a column of text or bytes suggests vectors."""
    return any(part in name.lower() for part in ("vec", "emb", "feature"))


def _is_id(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or is_text(kind) or is_bytes(kind)


def check_vectors(kind: pa.DataType, column: str, name: str) -> None:
    """Raise UserError if a column of this type cannot hold one vector a row."""
    if _is_multi(kind):
        raise UserError(
            f"{name}: column {column!r} holds several vectors per item ({kind}), as ColBERT gives; "
            "an item needs one vector: pool them, or give each its own row and id"
        )
    if any(part in column.lower() for part in _PACKED) and not pa.types.is_floating(
        kind.value_type if is_list(kind) else kind
    ):
        raise UserError(
            f"{name}: column {column!r} sounds like packed bits, which are not numbers; unpack "
            "them first (numpy.unpackbits)"
        )
    if not (_holds_vectors(kind) or is_text(kind) or is_bytes(kind)):
        sparse = pa.types.is_struct(kind) and "indices" in [f.name for f in kind]
        raise UserError(
            f"{name}: column {column!r} must hold lists of numbers, not "
            + (f"sparse vectors ({kind})" if sparse else str(kind))
        )


class Vectors:
    """Decodes a column of vectors into rows of float32.

    Attributes:
      dim: D, the dimension of most of the first rows.
      dtype: float type of the column; float32 for integers and text.
    """

    def __init__(self, name: str, column: pa.Array):
        """Take some rows of the column, at least one of them with a vector."""
        self.name = name
        column = plain_array(column)
        self._bytes = _kind_of_bytes(column.drop_null(), name) if is_bytes(column.type) else None
        lists = self._lists(column)
        lengths = pc.list_value_length(lists).drop_null().to_numpy(zero_copy_only=False)
        lengths = lengths[lengths > 0]
        if not len(lengths):
            raise UserError(f"column {name!r} holds no vectors in its first rows")
        self.dim = int(np.bincount(lengths.astype(np.int64)).argmax())
        kind = column.type.value_type if is_list(column.type) else None
        self.dtype = np.dtype(np.float32)
        if kind is not None and not pa.types.is_integer(kind):
            half = pa.types.is_fixed_size_binary(kind)
            self.dtype = np.dtype(np.float16 if half else numpy_dtype(kind))
        elif self._bytes is not None:
            self.dtype = np.dtype(self._bytes)

    def __call__(self, column: pa.Array) -> tuple[np.ndarray, dict[int, str]]:
        """Return vectors (n, D) float32, NaN in rows without one, and {row: reason} of these."""
        column = self._lists(plain_array(column))
        lengths = pc.list_value_length(column).fill_null(-1).to_numpy(zero_copy_only=False)
        values = column.flatten()  # without those of null rows
        if pa.types.is_fixed_size_binary(values.type):
            values = values.view(pa.float16())
        values = values.to_numpy(zero_copy_only=False)
        with np.errstate(over="ignore"):  # float64 overflows become infinite and are reported by id
            values = values.astype(np.float32, copy=False)
        right = lengths == self.dim
        if right.all():
            return values.reshape(-1, self.dim), {}
        found = np.full((len(column), self.dim), np.nan, np.float32)
        there = lengths >= 0
        found[right] = values[np.repeat(right[there], lengths[there])].reshape(-1, self.dim)
        return found, {int(row): _reason(lengths[row], self.dim) for row in np.flatnonzero(~right)}

    def _lists(self, column: pa.Array) -> pa.Array:
        if is_text(column.type):
            return _numbers(column)
        if not is_bytes(column.type):
            return column
        width, kind = np.dtype(self._bytes).itemsize, pa.from_numpy_dtype(self._bytes)
        sizes = pc.binary_length(column)
        size = sizes[0].as_py() or 0
        if not column.null_count and size and size % width == 0 and pc.all(pc.equal(sizes, size)):
            flat = b"".join(column.to_pylist())
            flat = pa.Array.from_buffers(kind, len(flat) // width, [None, pa.py_buffer(flat)])
            return pa.FixedSizeListArray.from_arrays(flat, size // width)
        rows = [
            None if cell is None or len(cell) % width else np.frombuffer(cell, self._bytes)
            for cell in column.to_pylist()
        ]
        return pa.array(rows, pa.list_(kind))


def _reason(length: int, dim: int) -> str:
    if length < 0:
        return "null"
    return f"of dimension {length}, not {dim}" if length else "empty"


def _numbers(column: pa.Array) -> pa.Array:
    """Parse text such as ``[0.1, 2e-3]``, ``{1,2}`` or ``1 2`` into lists of numbers or nulls."""
    kind = pa.list_(pa.float32())
    tight = pc.replace_substring(column, " ", "")
    tight = pc.utf8_trim(tight, characters="[](){}\n\t")
    try:
        return pc.cast(pc.split_pattern(tight, ","), kind)
    except pa.ArrowInvalid:
        return pa.array([_parsed(cell) for cell in column.to_pylist()], kind)


def _parsed(cell: str | None) -> list[float] | None:
    words = (cell or "").strip("[](){} \n\t").replace(",", " ").replace(";", " ").split()
    try:
        return [float("nan" if word == "null" else word) for word in words] or None
    except ValueError:
        return None  # such as NumPy's abbreviated "[0.1 0.2 ... 0.9]"


def _kind_of_bytes(column: pa.Array, name: str) -> type:
    """Return the float type in which the bytes are plausible numbers of embeddings."""
    cells = [cell for cell in column.slice(0, 64).to_pylist() if cell]
    for kind in _BYTES:
        if not cells or any(len(cell) % np.dtype(kind).itemsize for cell in cells):
            continue
        with np.errstate(invalid="ignore", over="ignore"):
            values = np.abs(np.concatenate([np.frombuffer(c, kind) for c in cells]).astype(float))
        likely = (values == 0) | ((values > 1e-7) & (values < 1e5))
        if likely.mean() > 0.99:
            console.print(f"column {name!r}: bytes are read as {np.dtype(kind).name}")
            return kind
    raise UserError(
        f"column {name!r} holds bytes that are neither float32 nor float64 nor float16; "
        "write lists of numbers"
    )


def ids_of(chunks: Iterable[pa.Array], count: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return ids (count,), integers or text, and the rows (n,) where they are null.

    UUIDs become text of 36 characters in lower case, and other bytes are taken as UTF-8. Many ids
    are kept in a temporary file.

    Raises UserError if the kinds of chunks differ, or if bytes are not text.
    """
    ids, null, row, kinds = None, [np.empty(0, np.int64)], 0, {}
    for chunk in map(plain_array, chunks):
        kinds[chunk.type] = _kind_of_ids(chunk.type)
        if len(set(kinds.values())) > 1 or None in kinds.values():
            said = ", ".join(map(str, kinds))
            raise UserError(f"{name}: ids must be integers or text throughout, not {said}")
        null.append(row + np.flatnonzero(chunk.is_null().to_numpy(zero_copy_only=False)))
        part = _DECODED[kinds[chunk.type]](chunk, name)
        # NumPy's text has one width, and its integers have one, too.
        kind = part.dtype if ids is None else np.promote_types(ids.dtype, part.dtype)
        if ids is None or kind != ids.dtype:
            wider = spilled.empty(count, kind)
            for some in spilled.blocks(row):
                wider[some] = ids[some]
            ids = wider
        ids[row : row + len(part)] = part
        row += len(part)
    return ids, np.concatenate(null)


def _kind_of_ids(kind: pa.DataType) -> str | None:
    if pa.types.is_integer(kind):
        return "integers"
    if is_uuid(kind):
        return "uuids"
    return "text" if is_text(kind) or is_bytes(kind) else None


def _integers(column: pa.Array, name: str) -> np.ndarray:
    return column.fill_null(0).to_numpy(zero_copy_only=False)


def _texts(column: pa.Array, name: str) -> np.ndarray:
    try:
        if not is_text(column.type):
            column = column.cast(pa.binary()).cast(pa.string())
    except pa.ArrowInvalid:
        raise UserError(
            f"{name}: ids are bytes that are not text; write UUIDs as binary(16), others as text"
        ) from None
    width = pc.max(pc.utf8_length(column)).as_py() or 1
    found = np.empty(len(column), f"U{width}")
    found[:] = column.fill_null("").to_numpy(zero_copy_only=False)
    return found


def _uuids(column: pa.Array, name: str) -> np.ndarray:
    """Return text ``xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`` (n,) of 16 bytes each."""
    column = column.fill_null(b"\0" * 16)
    data = np.frombuffer(column.buffers()[1], np.uint8)
    data = data[column.offset * 16 :][: len(column) * 16].reshape(-1, 16)
    return uuid_text(data)


# how ids of each kind are decoded
_DECODED = {"integers": _integers, "uuids": _uuids, "text": _texts}
