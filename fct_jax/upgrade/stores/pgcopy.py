"""Read and write PostgreSQL's binary COPY format for rows of an id, an integer and a vector.

This is about three times as fast as fetching rows, and preserves every bit of the floats.
Format: https://www.postgresql.org/docs/current/sql-copy.html (Binary Format).
"""

import struct
import uuid

import numpy as np

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_INTEGERS = {2: ">h", 4: ">i", 8: ">q"}


def unpack(data: bytes, id_kind: str, half: bool = False, dim: int | None = None):
    """Parse the output of ``COPY (SELECT id, bigint, vector …) TO STDOUT (FORMAT BINARY)``.

    Args:
      half: whether the vectors are pgvector's halfvec.
      dim: dimension of the vectors; vectors of another one become NaN. None: all have the same.

    Returns ids (list), integers (list; None where NULL) and vectors (n, D) float32.
    """
    at = len(_HEADER) + struct.unpack_from(">i", data, len(_HEADER) - 4)[0]
    ids, integers, vectors = [], [], []
    while struct.unpack_from(">h", data, at)[0] != -1:
        at += 2
        fields = []
        for _ in range(3):
            (length,) = struct.unpack_from(">i", data, at)
            at += 4
            fields.append(data[at : at + length] if length >= 0 else None)
            at += max(length, 0)
        ids.append(_id(fields[0], id_kind))
        integers.append(None if fields[1] is None else struct.unpack(">q", fields[1])[0])
        # The floats follow two 16-bit numbers, the dimension and 0.
        vectors.append(b"" if fields[2] is None else fields[2][4:])
    dtype = ">f2" if half else ">f4"
    size = None if dim is None else dim * np.dtype(dtype).itemsize
    if size is not None and any(len(vector) != size for vector in vectors):
        unknown = np.full(dim, np.nan, dtype).tobytes()
        vectors = [vector if len(vector) == size else unknown for vector in vectors]
    rows = np.frombuffer(b"".join(vectors), dtype).astype(np.float32)
    return ids, integers, rows.reshape(len(ids), rows.size // max(len(ids), 1))


def pack(ids, integers, vectors: np.ndarray, id_type: str) -> bytes:
    """Return rows for ``COPY … (id, bigint, vector) FROM STDIN (FORMAT BINARY)``.

    ``id_type`` is the type of the id column, such as "int4", "uuid" or "text".
    """
    rows = np.ascontiguousarray(vectors, ">f4")
    dim = rows.shape[1]
    head = struct.pack(">ihH", 4 + 4 * dim, dim, 0)
    parts = [_HEADER]
    for one, integer, row in zip(ids, integers, rows, strict=True):
        key = _id_bytes(one, id_type)
        parts.append(struct.pack(">hi", 3, len(key)) + key + struct.pack(">iq", 8, int(integer)))
        parts.append(head + row.tobytes())
    return b"".join([*parts, b"\xff\xff"])


def _id(field: bytes, kind: str):
    if kind == "int":
        return struct.unpack(_INTEGERS[len(field)], field)[0]
    return str(uuid.UUID(bytes=field)) if kind == "uuid" else field.decode()


def _id_bytes(one, id_type: str) -> bytes:
    if id_type.startswith("int"):
        return struct.pack(_INTEGERS[int(id_type[3:])], int(one))
    return uuid.UUID(str(one)).bytes if id_type == "uuid" else str(one).encode()
