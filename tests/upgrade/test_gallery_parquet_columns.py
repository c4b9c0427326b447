"""Columns of Parquet galleries: vectors and ids in the types and layouts that people store."""

import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parquet_files import FLOATS, published, random, write
from tiny_galleries import made_galleries, upgraded

from fct_jax.errors import UserError
from fct_jax.upgrade.galleries.base import open_gallery
from fct_jax.upgrade.galleries.columns import numpy_dtype


def test_two_columns_of_vectors(tmp_path):
    other = pa.array(list(random(2, 4)), FLOATS)
    table = pa.table({"id": [1, 2], "embedding_0": other, "embedding_1": other})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="embedding_0, embedding_1 hold vectors; say which"):
        open_gallery(tmp_path)
    assert open_gallery(tmp_path, vector_column="embedding_1").dim == 4


def test_ids_that_could_be_several(tmp_path):
    vectors = pa.array(list(random(2)), FLOATS)
    pq.write_table(
        pa.table({"a": [1, 2], "b": ["x", "y"], "vector": vectors}), tmp_path / "a.parquet"
    )
    with pytest.raises(UserError, match="any of the columns a, b may hold ids; say which"):
        open_gallery(tmp_path)
    assert open_gallery(tmp_path, id_column="b").ids.tolist() == ["x", "y"]
    pq.write_table(pa.table({"vector": vectors}), tmp_path / "a.parquet")
    gallery = open_gallery(tmp_path)
    assert gallery.ids.tolist() == [0, 1]
    folder = published(gallery, tmp_path.parent / f"{tmp_path.name}w", random(2, 4))
    assert pq.read_table(folder).column_names == ["vector", "fct_version"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, None])
def test_bad_vectors_are_called_by_their_name(tmp_path, bad):
    """Whatever is read first, the reason is the vector, not "normalized False, but … True"."""
    paths, new, ids, old, _ = made_galleries(tmp_path, 60)
    rows = list(old.astype(object))
    rows[0] = None if bad is None else [bad, *old[0][1:]]
    write(tmp_path / "g" / "a.parquet", ids, rows)
    (tmp_path / "g" / "meta.json").write_text('{"normalized": false}')
    paths["parquet"] = tmp_path / "g"
    with pytest.raises(UserError, match="unusable.*1 (NaN|infinite|null)") as caught:
        upgraded((paths, new, ids, old, None), "parquet", tmp_path / "w")
    assert str(ids[0]) in str(caught.value) and "normalized" not in str(caught.value)


def test_two_dimensions_name_their_files(tmp_path):
    write(tmp_path / "a.parquet", [1, 2], random(2, 4), pa.list_(pa.float32(), 4))
    write(tmp_path / "b.parquet", [3], random(1, 5), pa.list_(pa.float32(), 5))
    with pytest.raises(UserError, match=r"id 3 \(b.parquet, row 0\) is of dimension 5, not 4"):
        open_gallery(tmp_path).read(0, 3)


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float16(), 4),
        pa.list_(pa.float16()),
        pa.large_list(pa.float64()),
        pa.list_(pa.int8()),
        pa.list_(pa.uint8(), 4),
        pa.fixed_shape_tensor(pa.float32(), [4]),
    ],
    ids=str,
)
def test_types_of_vectors(tmp_path, kind):
    values = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)
    storage = getattr(kind, "storage_type", kind)
    array = pa.array(
        values.astype(numpy_dtype(storage.value_type)).tolist(),
        storage,
    )
    if storage is not kind:
        array = pa.ExtensionArray.from_storage(kind, array)
    pq.write_table(pa.table({"id": [1, 2], "vector": array}), tmp_path / "a.parquet")
    gallery = open_gallery(tmp_path)
    np.testing.assert_array_equal(gallery.read(0, 2), values)
    of_floats = pa.types.is_floating(storage.value_type)
    assert gallery.dtype == (numpy_dtype(storage.value_type) if of_floats else np.float32)
    folder = published(gallery, tmp_path / "w", values * 2)
    np.testing.assert_array_equal(open_gallery(folder).read(0, 2), values * 2)


@pytest.mark.parametrize(
    "cells",
    [
        ["[0.5, -2e-1]", "[1,3]"],
        ["{0.5,-0.2}", "{1,3}"],
        ["[ 0.5 -0.2]", "[1.  3. ]"],
        ["0.5;-0.2", "1;3"],
    ],
)
def test_vectors_as_text(tmp_path, cells):
    pq.write_table(pa.table({"id": [1, 2], "vector": cells}), tmp_path / "a.parquet")
    gallery = open_gallery(tmp_path)
    np.testing.assert_array_equal(gallery.read(0, 2), np.float32([[0.5, -0.2], [1, 3]]))
    folder = published(gallery, tmp_path / "w", np.float32([[1, 2, 3], [4, 5, 6]]))
    np.testing.assert_array_equal(open_gallery(folder).read(1, 2), [[4, 5, 6]])


def test_text_that_is_no_vector(tmp_path):
    cells = ["[1,2]", "[1 2 ... 9]", "", None, "[1,2,3]", "[null, 2]"]
    pq.write_table(pa.table({"id": range(6), "vector": cells}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"id 1 \(a.parquet, row 1\) is null"):
        open_gallery(tmp_path).read(0, 6)
    gallery = open_gallery(tmp_path, on_bad="quarantine")
    gallery.screen(0, gallery.read(0, 6))
    reasons = {id_: reason for id_, reason, _ in gallery.bad.entries.values()}
    assert list(reasons) == [1, 2, 3, 4, 5] and reasons[4] == "of dimension 3, not 2 in 'vector'"
    assert reasons[5] == "NaN"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("fixed", [True, False])
def test_vectors_as_bytes(tmp_path, dtype, fixed):
    values = random(50, 8).astype(dtype)
    kind = pa.binary(values.itemsize * 8) if fixed else pa.binary()
    cells = pa.array([row.tobytes() for row in values], kind)
    pq.write_table(pa.table({"id": range(50), "vector": cells}), tmp_path / "a.parquet")
    gallery = open_gallery(tmp_path)
    assert gallery.dtype == dtype
    np.testing.assert_array_equal(gallery.read(0, 50), values.astype(np.float32))
    cells = pa.array([b"\xff" * 7] * 50, pa.binary())
    pq.write_table(pa.table({"id": range(50), "vector": cells}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="bytes that are neither float32 nor"):
        open_gallery(tmp_path)


def test_float16_as_polars_once_wrote_it(tmp_path):
    values = random(2, 4).astype(np.float16)
    cells = pa.array([[v.tobytes() for v in row] for row in values], pa.list_(pa.binary(2)))
    pq.write_table(pa.table({"id": [1, 2], "vector": cells}), tmp_path / "a.parquet")
    np.testing.assert_array_equal(open_gallery(tmp_path).read(0, 2), values.astype(np.float32))


UUIDS = [uuid.UUID(int=3), uuid.uuid5(uuid.NAMESPACE_DNS, "x"), uuid.UUID(int=2**128 - 1)]


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([u.bytes for u in UUIDS], pa.uuid()),
        pa.array([u.bytes for u in UUIDS], pa.binary(16)),
        pa.array([str(u) for u in UUIDS]),
        pa.array([str(u).encode() for u in UUIDS]),
        pa.array([str(u) for u in UUIDS], pa.large_string()),
        pa.array([str(u) for u in UUIDS]).dictionary_encode(),
    ],
    ids=lambda a: str(a.type).partition("<")[0],
)
def test_uuids(tmp_path, ids):
    write(tmp_path / "a.parquet", ids, random(3))
    gallery = open_gallery(tmp_path)
    assert gallery.ids.tolist() == [str(u) for u in UUIDS]
    made = pq.read_table(published(gallery, tmp_path / "w", random(3, 2)))
    assert made["id"].combine_chunks().type == pq.read_table(tmp_path / "a.parquet")["id"].type


@pytest.mark.parametrize("kind", [pa.int32(), pa.int64(), pa.uint64(), pa.int8()], ids=str)
def test_integers_as_ids(tmp_path, kind):
    write(tmp_path / "a.parquet", pa.array([3, 1, 2], kind), random(3))
    assert open_gallery(tmp_path).ids.dtype == numpy_dtype(kind)


def test_bytes_that_are_no_text_are_no_ids(tmp_path):
    write(tmp_path / "a.parquet", pa.array([b"\xff\xfe", b"a"]), random(2))
    with pytest.raises(UserError, match="ids are bytes that are not text; write UUIDs as"):
        open_gallery(tmp_path)


def test_many_vectors_an_item_are_refused(tmp_path):
    """ColBERT's vectors (P24), packed bits (P10) and sparse vectors are refused."""
    kind = pa.list_(pa.list_(pa.float16(), 2))
    many = pa.array([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0]]], kind)
    pq.write_table(pa.table({"id": [1, 2], "colbert": many}), tmp_path / "a.parquet")
    for options in ({}, {"vector_column": "colbert"}):
        with pytest.raises(UserError, match="holds several vectors per item .*pool them"):
            open_gallery(tmp_path, **options)
    bits = pa.array([[255, 3], [0, 1]], pa.list_(pa.uint8()))
    pq.write_table(pa.table({"_id": [1, 2], "emb_ubinary": bits}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="packed bits, which are not numbers; unpack"):
        open_gallery(tmp_path)
    sparse = pa.array([{"indices": [1], "values": [0.5]}] * 2)
    pq.write_table(pa.table({"id": [1, 2], "vector": sparse}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="not sparse vectors"):
        open_gallery(tmp_path)


def test_columns_of_cohere(tmp_path):
    numbers = pa.array([[1, -2], [3, 127]], pa.list_(pa.int8()))
    table = pa.table({"_id": ["a", "b"], "title": ["x", "x"], "emb_int8": numbers})
    pq.write_table(table, tmp_path / "a.parquet")
    gallery = open_gallery(tmp_path)
    assert gallery.ids.tolist() == ["a", "b"] and gallery.read(1, 2).tolist() == [[3, 127]]
