"""Galleries in every form: any piece is read as it was written."""

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_galleries as tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from fct_jax.errors import UserError
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.storage.ids import find_rows, first_ten, rows_of
from fct_jax.upgrade.galleries.base import open_gallery
from fct_jax.upgrade.galleries.columns import numpy_dtype


@pytest.fixture(scope="module")
def galleries(tmp_path_factory):
    """Return one gallery in each form, with its ids and vectors."""
    ids, old, _ = tiny.vectors(300)
    folder = tmp_path_factory.mktemp("galleries")
    opened = {
        form: open_gallery(tiny.write_gallery(form, folder / form, ids, old)) for form in tiny.FORMS
    }
    return opened, ids, old


@pytest.mark.parametrize("form", tiny.FORMS)
def test_whole(galleries, form):
    opened, ids, old = galleries
    gallery = opened[form]
    assert (gallery.form, len(gallery), gallery.dim) == (form, 300, tiny.OLD_DIM)
    assert gallery.versions is None and gallery.dtype == np.float32
    np.testing.assert_array_equal(gallery.ids, ids)
    blocks = list(gallery.blocks(47))
    np.testing.assert_array_equal(np.concatenate([b[0] for b in blocks]), ids)
    np.testing.assert_array_equal(np.concatenate([b[1] for b in blocks]), old)
    assert {len(b[1]) for b in blocks[:-1]} == {47}
    np.testing.assert_array_equal(next(gallery.blocks(10, 290))[1], old[290:])


@pytest.mark.parametrize("form", tiny.FORMS)
@pytest.mark.parametrize("count", [1, 20, 64, 1000])
def test_spread_rows(galleries, form, count):
    gallery = galleries[0][form]
    rows = gallery.spread_rows(count)
    assert len(np.unique(rows)) == len(rows) <= count and (np.diff(rows) > 0).all()
    assert rows.min() == 0 and rows.max() < 300
    assert len(rows) >= min(count, 20) and (count == 1 or rows.max() >= 240)


@pytest.mark.parametrize("form", tiny.FORMS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_piece(galleries, form, data):
    opened, _, old = galleries
    rows = data.draw(st.lists(st.integers(0, 299), max_size=8))
    start = data.draw(st.integers(0, 299))
    stop = data.draw(st.integers(start + 1, 300))
    np.testing.assert_array_equal(opened[form].rows(rows), old[rows].reshape(-1, tiny.OLD_DIM))
    np.testing.assert_array_equal(opened[form].read(start, stop), old[start:stop])


@pytest.mark.parametrize("width", [None, tiny.OLD_DIM])
@pytest.mark.parametrize("value", [pa.float16(), pa.float32(), pa.float64()])
def test_parquet_types(tmp_path, value, width):
    ids, old, _ = tiny.vectors(30)
    kind = pa.large_list(value) if width is None else pa.list_(value, width)
    tiny.write_parquet(tmp_path, np.array([f"id {i}" for i in ids]), old, (11,), 4, kind)
    gallery = open_gallery(tmp_path)
    assert gallery.dtype == np.dtype(numpy_dtype(value)) and gallery.ids[0] == f"id {ids[0]}"
    expected = old.astype(gallery.dtype).astype(np.float32)
    np.testing.assert_array_equal(gallery.read(3, 29), expected[3:29])


def test_other_columns(tmp_path):
    table = pa.table({"key": [5, 6], "embedding": pa.array([[1.0, 2.0], [3.0, 4.0]])})
    pq.write_table(table, tmp_path / "a.parquet")
    gallery = open_gallery(tmp_path, id_column="key", vector_column="embedding")
    np.testing.assert_array_equal(gallery.read(0, 2), [[1, 2], [3, 4]])
    found = open_gallery(tmp_path)  # columns are found by their kinds
    assert (found.id_column, found.vector_column) == ("key", "embedding")
    with pytest.raises(UserError, match=r"unknown column of ids 'kye'; did you mean 'key'"):
        open_gallery(tmp_path, id_column="kye")
    with pytest.raises(UserError, match=r"column 'key' must hold lists of numbers, not int64"):
        open_gallery(tmp_path, id_column="key", vector_column="key")


@pytest.mark.parametrize(
    "rows, message",
    [
        ([[1.0], [1.0, 2.0]], r"id 2 \(a.parquet, row 1\) is of dimension 2, not 1 in 'vector'"),
        ([[1.0], None], r"id 2 \(a.parquet, row 1\) is null in 'vector'"),
    ],
)
def test_unsound_parquet(tmp_path, rows, message):
    table = pa.table({"id": [1, 2], "vector": pa.array(rows, pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=message):
        open_gallery(tmp_path).read(0, 2)


@pytest.mark.parametrize("form", tiny.FORMS)
def test_repeated_ids_are_counted_and_named(tmp_path, form):
    ids, old, _ = tiny.vectors(60)
    ids = np.arange(60)
    ids[40:52] = np.arange(12)
    with pytest.raises(UserError) as caught:
        if form == "set":
            np.save(tmp_path / "vectors.npy", old)
            np.save(tmp_path / "ids.npy", ids)
            open_gallery(tmp_path)
        open_gallery(tiny.write_gallery(form, tmp_path / "g", ids, old))
    said = str(caught.value)
    assert "id 0 occurs more than once; so do 11 others: 1, 2, 3, 4, 5, 6, 7, 8, 9, …" in said


def test_faiss_inner_indexes(tmp_path):
    ids, old, _ = tiny.vectors(50)
    path = str(tmp_path / "x.faiss")
    index = faiss.IndexIDMap2(faiss.IndexHNSWFlat(tiny.OLD_DIM, 8))
    index.add_with_ids(old, ids)
    faiss.write_index(index, path)
    np.testing.assert_array_equal(open_gallery(path).read(10, 50), old[10:])

    index = faiss.IndexIDMap2(faiss.index_factory(tiny.OLD_DIM, "ITQ6,LSHt"))
    index.train(np.tile(old, (2, 1)))
    index.add_with_ids(old, ids)
    faiss.write_index(index, path)
    with pytest.raises(UserError, match="IndexPreTransform cannot reconstruct vectors"):
        open_gallery(path)


def test_quantised_faiss_vectors_are_said_to_be_inexact(tmp_path, capsys):
    ids, old, _ = tiny.vectors(100)
    index = faiss.IndexIDMap2(faiss.IndexScalarQuantizer(6, faiss.ScalarQuantizer.QT_8bit))
    index.train(old)
    index.add_with_ids(old, ids)
    faiss.write_index(index, str(tmp_path / "x.faiss"))
    gallery = open_gallery(tmp_path / "x.faiss")
    assert not gallery.exact and "holds approximations of the vectors" in capsys.readouterr().err
    np.testing.assert_allclose(gallery.read(0, 100), old, atol=0.05)


def test_parquet_ids_of_no_use(tmp_path):
    rows = pa.array([[1.0], [2.0]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": [1, 2], "vector": rows}), tmp_path / "a.parquet")
    for number, ids in enumerate(([b"a", b"b"], ["a", "b"])):
        pq.write_table(pa.table({"id": ids, "vector": rows}), tmp_path / "b.parquet")
        kind = ("binary", "string")[number]
        with pytest.raises(
            UserError, match=f"ids must be integers or text throughout, not int64, {kind}"
        ):
            open_gallery(tmp_path)


def test_parquet_ids_of_several_widths(tmp_path):
    names = [["a", "bb"], [], ["a longer one", "é"]]
    for number, part in enumerate(names):
        table = pa.table({"id": pa.array(part, pa.string()), "vector": [[1.0]] * len(part)})
        kind = pa.schema([("id", pa.string()), ("vector", pa.list_(pa.float32()))])
        pq.write_table(table.cast(kind), tmp_path / f"{number}.parquet")
    gallery = open_gallery(tmp_path)
    assert gallery.ids.tolist() == ["a", "bb", "a longer one", "é"]
    assert gallery.ids.dtype == "<U12"


def test_faiss_inverted_lists(tmp_path):
    ids, old, _ = tiny.vectors(100)
    index = faiss.IndexIDMap2(faiss.index_factory(tiny.OLD_DIM, "IVF2,Flat"))
    index.train(old)
    index.add_with_ids(old, ids)
    faiss.write_index(index, str(tmp_path / "x.faiss"))
    gallery = open_gallery(tmp_path / "x.faiss")
    np.testing.assert_array_equal(gallery.read(10, 50), old[10:50])
    np.testing.assert_array_equal(gallery.rows([99, 3]), old[[99, 3]])


def test_no_gallery(tmp_path):
    with pytest.raises(
        UserError, match="no gallery at .*nowhere: nothing is there; give an EmbeddingSet"
    ):
        open_gallery(tmp_path / "nowhere")
    (tmp_path / "x.faiss").write_text("no index")
    with pytest.raises(UserError, match="is not a Faiss index"):
        open_gallery(tmp_path / "x.faiss")
    (tmp_path / "bad.parquet").write_text("no table")
    with pytest.raises(UserError, match=r"bad.parquet cannot be read"):
        open_gallery(tmp_path)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("form", tiny.FORMS)
def test_target_is_filled_in_place(galleries, tmp_path, form, metric):
    opened, ids, _ = galleries
    values = np.random.default_rng(1).standard_normal((300, 4)).astype(np.float32)
    target = opened[form].writer(opened[form], tmp_path)
    target.create(4, metric)
    target.describe({"state": "translating", "count": 300})
    target.open(4)
    target.vectors.write(0, values[:200])
    target.vectors.write(200, values[200:])
    rows = np.array([299, 7, 8, 9, 120])
    target.put(rows, values[rows] * 2, 1)
    expected = values.copy()
    expected[rows] *= 2
    np.testing.assert_array_equal(target.vectors.read(0, 300), expected)
    np.testing.assert_array_equal(target.vectors.get(rows), expected[rows])
    assert target.publish() == (4 if form == "parquet" else 0)
    assert target.unit(metric) == (form == "faiss" and metric == "cosine")
    with pytest.raises(UserError, match="unfinished gallery \\(translating"):
        open_gallery(target.folder, unfinished=True)
    target.describe({"state": "migrating", "reembedded": 5, "planned": 9, "count": 300})
    with pytest.raises(UserError, match=r"migrating: 5 of 9 planned .*open it with unfinished"):
        open_gallery(target.folder)
    target.describe({"state": "finished", "count": 300})
    target.complete()
    target.close()
    made = open_gallery(tmp_path / "gallery")
    np.testing.assert_array_equal(made.ids, ids)
    np.testing.assert_array_equal(made.read(0, 300), expected)
    np.testing.assert_array_equal(np.flatnonzero(made.versions), np.sort(rows))
    if form == "faiss":
        index = faiss.read_index(str(tmp_path / "gallery" / "index.faiss"))
        kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
        same = faiss.IndexIDMap2(faiss.IndexFlat(4, kind))
        same.add_with_ids(expected, ids)
        assert faiss.serialize_index(index).tobytes() == faiss.serialize_index(same).tobytes()
    if form == "set":
        read = EmbeddingSet.read(tmp_path / "gallery")
        np.testing.assert_array_equal(read.labels, np.arange(300) % 7)
    if form == "parquet":
        # Other columns stay, and names tell old and new ones apart.
        table = pq.read_table(tmp_path / "gallery" / "part-2.parquet")
        assert table.column_names == ["title", "vector", "id", "fct_version"]
        assert table["title"].to_pylist() == [f"item {i}" for i in ids[70:200]]
        assert table["fct_version"].to_pylist()[49:52] == ["translated", "new", "translated"]


def test_ids_are_found():
    ids = np.array(["b", "a", "ccc"])
    np.testing.assert_array_equal(rows_of(ids, np.array(["ccc", "b"]), "ids", "x"), [2, 0])
    np.testing.assert_array_equal(find_rows(ids, np.array(["cc", "a"])), [-1, 1])
    np.testing.assert_array_equal(find_rows(ids, np.array([1, 2])), [-1, -1])
    np.testing.assert_array_equal(find_rows(np.array([7, 3]), np.array([3, 9, -1])), [1, -1, -1])
    with pytest.raises(UserError, match=r"ids: 2 ids \(x, y\) not in gallery"):
        rows_of(ids, np.array(["a", "x", "y"]), "ids", "gallery")
    assert first_ten(np.arange(12)) == "12 ids (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …)"
    assert first_ten(["x"]) == "1 id (x)"
