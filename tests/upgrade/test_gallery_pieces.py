"""Galleries of every form are read in any piece, each part once, and say if they have no ids."""

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from gallery_files import faiss_file, random, written
from hypothesis import given, settings
from hypothesis import strategies as st

from fct_jax.errors import UserError
from fct_jax.storage.named import vectors_of
from fct_jax.upgrade.galleries.base import open_gallery

KINDS = ["npy", "shards", "vecs", "hdf5", "csv", "json", "arrow", "lance", "parquet", "faiss"]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Return {form: open gallery} of the same vectors, opened on first use."""
    values, made = random(200, 3), {}

    def gallery(form):
        if form not in made:
            folder = tmp_path_factory.mktemp("forms") / form
            made[form] = open_gallery(written(form, folder, values))
        return made[form], values

    return gallery


@pytest.mark.parametrize("form", KINDS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_piece_of_any_form(opened, form, data):
    gallery, values = opened(form)
    start = data.draw(st.integers(0, 200))
    stop = data.draw(st.integers(start, 200))
    np.testing.assert_array_equal(gallery.read(start, stop), values[start:stop])
    rows = data.draw(st.lists(st.integers(0, 199), max_size=5))
    np.testing.assert_array_equal(gallery.rows(rows), values[rows].reshape(-1, 3))
    spread = gallery.spread_rows(data.draw(st.integers(1, 50)))
    assert (np.diff(spread) > 0).all() and spread[0] == 0 and spread[-1] < 200


def test_a_pass_reads_each_part_once(tmp_path, monkeypatch):
    """Blocks of any size continue where the last one ended, also from one file to the next."""
    values = random(300, 3)
    for number in range(3):
        written("parquet", tmp_path / str(number), values[number * 100 :][:100])
    gallery = open_gallery(f"{tmp_path}", duplicates="last")
    assert len(gallery) == 100  # each file has the ids 0 to 99
    gallery = open_gallery(tmp_path, id_column=None, vector_column="vector", duplicates="first")
    begun = []
    kind = type(gallery.parts[0])
    batches = kind.batches
    monkeypatch.setattr(kind, "batches", lambda p, *a: begun.append(p.name) or batches(p, *a))
    total = np.concatenate([vectors for _, vectors in gallery.blocks(17)])
    np.testing.assert_array_equal(total, values[:100])
    assert begun == ["0/x.parquet"]
    begun.clear()  # the last block is still held in memory
    whole = np.concatenate([gallery.read_stored(a, min(a + 17, 300)) for a in range(0, 300, 17)])
    np.testing.assert_array_equal(whole, values)
    assert begun == ["1/x.parquet", "2/x.parquet"]


@pytest.mark.parametrize(
    ("group", "count", "expected"), [(50, 160, [50, 8]), (5, 160, [5, 32]), (5, 10**4, [5, 200])]
)
def test_a_sample_of_a_table_reads_few_groups(tmp_path, monkeypatch, group, count, expected):
    """Those that are spread over it, and as many as it takes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    values, size = random(1000, 3), expected[0]
    table = pa.table({"id": np.arange(1000), "vector": list(values)})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=group)
    gallery = open_gallery(tmp_path / "x.parquet")
    begun, kind = [], type(gallery.parts[0])
    batches = kind.batches
    monkeypatch.setattr(kind, "batches", lambda p, n, g, s: begun.append(g) or batches(p, n, g, s))
    rows = gallery.spread_rows(count)
    np.testing.assert_array_equal(gallery.rows(rows), values[rows])
    assert len(rows) == min(count, 1000)
    assert len(set(rows // size)) == expected[1]
    assert len(begun) <= expected[1] and rows[-1] // group == 1000 // group - 1


def test_row_numbers_are_no_ids(tmp_path):
    """A gallery without ids says so, so that two files are not paired by mere order."""
    values = random()
    np.save(tmp_path / "x.npy", values)
    assert open_gallery(tmp_path / "x.npy").numbered
    np.save(tmp_path / "x_ids.npy", np.arange(30))
    assert not open_gallery(tmp_path / "x.npy").numbered
    assert open_gallery(written("vecs", tmp_path / "v", values)).numbered
    lists = pa.array(values.tolist(), pa.list_(pa.float32()))
    pq.write_table(pa.table({"vector": lists}), tmp_path / "a.parquet")
    assert open_gallery(tmp_path / "a.parquet").numbered
    assert not open_gallery(written("csv", tmp_path / "c", values)).numbered
    index = faiss.IndexFlatL2(4)
    index.add(values)
    assert open_gallery(faiss_file(tmp_path / "x.faiss", index)).numbered
    assert vectors_of(f"parquet@{tmp_path / 'a.parquet'}").numbered
    assert vectors_of(f"file://{tmp_path}/a.parquet").name == f"file://{tmp_path}/a.parquet"
    with pytest.raises(UserError, match="of URIs, s3://, gs://, hf:// and file:// are read"):
        open_gallery("azure://x/y")
