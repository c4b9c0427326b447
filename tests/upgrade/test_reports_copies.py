"""Reports of tables of vectors that PostgreSQL copied out: P1, pgvector#610, pg2parquet#28."""

import struct
import uuid

import numpy as np
import pytest
from gallery_files import check, csv, quoted, random

from fct_jax.errors import UserError
from fct_jax.upgrade.galleries.base import open_gallery


def copied(rows) -> bytes:
    """Return a binary COPY of rows of fields in bytes, with None for null."""
    data = [b"PGCOPY\n\xff\r\n\0" + bytes(8)]
    for fields in rows:
        data.append(struct.pack(">h", len(fields)))
        for field in fields:
            data.append(struct.pack(">i", -1 if field is None else len(field)) + (field or b""))
    return b"".join([*data, b"\xff\xff"])


def as_vector(row, floats=">f4"):
    """Return a cell of pgvector's vector, or of its halfvec with ``>f2``."""
    return struct.pack(">HH", len(row), 0) + row.astype(floats).tobytes()


def as_array(row, number, floats):
    """Return a cell of real[] or double precision[], by the number of the element type."""
    size = struct.pack(">i", np.dtype(floats).itemsize)
    cells = [size + np.array(value, floats).tobytes() for value in row]
    return struct.pack(">iiiii", 1, 0, number, len(row), 1) + b"".join(cells)


def test_p1_text_of_a_table_of_vectors(tmp_path):
    """1,000 × 768 values as COPY writes them to CSV are a gallery like any other."""
    values = random(1000, 768)
    rows = [f"{3 * i},{quoted(v)}" for i, v in enumerate(values)]
    gallery = open_gallery(csv(tmp_path / "items.csv", "id,embedding", rows))
    check(gallery, values, np.arange(1000) * 3)


@pytest.mark.parametrize("kind", ["vector", "halfvec", "real[]", "double precision[]"])
@pytest.mark.parametrize("ids", ["bigint", "int", "uuid", "text"])
def test_p1_binary_copy(tmp_path, kind, ids):
    values = random(9000, 12)
    if kind == "halfvec":
        values = values.astype(np.float16).astype(np.float32)
    cell = {
        "vector": as_vector,
        "halfvec": lambda row: as_vector(row, ">f2"),
        "real[]": lambda row: as_array(row, 700, ">f4"),
        "double precision[]": lambda row: as_array(row, 701, ">f8"),
    }[kind]
    number = np.arange(9000) * 7 - 100
    named = {
        "bigint": ([struct.pack(">q", n) for n in number], number),
        "int": ([struct.pack(">i", n) for n in number], number),
        "uuid": ([uuid.UUID(int=i).bytes for i in range(9000)], None),
        "text": ([f"item{i:04d}é"[:8].encode() for i in range(9000)], None),
    }
    fields, expected = named[ids]
    if expected is None:
        expected = [str(uuid.UUID(bytes=f)) if ids == "uuid" else f.decode() for f in fields]
    path = tmp_path / "items.pgcopy"
    path.write_bytes(copied((f, cell(v)) for f, v in zip(fields, values, strict=True)))
    gallery = check(open_gallery(path), values, expected)
    assert gallery.form == "pgcopy" and gallery.place(5) == "items.pgcopy, row 5"
    np.testing.assert_array_equal(gallery.rows([8999, 4097, 2]), values[[8999, 4097, 2]])


def test_p1_binary_copy_of_no_use(tmp_path):
    values, path = random(5, 4), tmp_path / "x.pgcopy"
    ids = [struct.pack(">q", i) for i in range(5)]
    rows = [[i, struct.pack(">q", 7), as_vector(v)] for i, v in zip(ids, values, strict=True)]
    path.write_bytes(copied(rows))
    with pytest.raises(UserError, match="columns column_1, column_2 may hold ids; say which"):
        open_gallery(path)
    check(open_gallery(path, id_column="column_1"), values)
    data = path.read_bytes()
    path.write_bytes(data[:-30])
    with pytest.raises(UserError, match="x.pgcopy is cut off in the row that begins at byte"):
        open_gallery(path)
    path.write_bytes(data[:12])
    with pytest.raises(UserError, match="x.pgcopy is cut off"):
        open_gallery(path)
    path.write_bytes(copied([]))
    with pytest.raises(UserError, match="is empty: it has no rows"):
        open_gallery(path)
    odd = [[ids[0], as_vector(values[0])], [ids[1], None], [ids[2], as_vector(values[2][:3])]]
    path.write_bytes(copied([*odd, [ids[3], as_vector(values[3])]]))
    gallery = open_gallery(path, on_bad="quarantine")
    gallery.screen(0, gallery.read(0, 4))
    assert gallery.bad.counts == {
        "null in 'column_2'": 1,
        "of dimension 3, not 4 in 'column_2'": 1,
    }
    mixed = [[struct.pack(">q", i), as_vector(values[0])] for i in range(70)]
    path.write_bytes(copied([*mixed, [struct.pack(">i", 70), as_vector(values[0])]]))
    with pytest.raises(UserError, match="of mixed types: a cell does not have 8 bytes"):
        open_gallery(path)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_p1_a_real_table(tmp_path):
    """PostgreSQL's own output is read, for pgvector's types and for arrays."""
    servers = pytest.importorskip("servers")
    pytest.importorskip("psycopg", reason="psycopg is not installed (extra pgvector)")
    import psycopg

    values = random(300, 8)
    with (
        servers.postgres() as uri,
        psycopg.connect(uri.replace("postgresql://", "postgres://")) as db,
    ):
        db.execute("create table t (id uuid primary key, v vector(8), h halfvec(8), a real[])")
        ids = [str(uuid.UUID(int=5 * i)) for i in range(300)]
        with db.cursor() as cursor:
            cursor.executemany(
                "insert into t values (%s, %s, %s, %s)",
                [(i, str(v), str(v), v) for i, v in zip(ids, values.tolist(), strict=True)],
            )
        for column in "vha":
            data = b""
            with db.cursor().copy(
                f"copy (select id, {column} from t order by id) to stdout (format binary)"
            ) as out:
                data = b"".join(bytes(part) for part in out)
            (tmp_path / f"{column}.dump").write_bytes(data)
    for column in "vha":
        gallery = open_gallery(tmp_path / f"{column}.dump")
        expected = values.astype(np.float16).astype(np.float32) if column == "h" else values
        check(gallery, expected, ids)
