"""Bad rows never cost the good ones: they are set aside by id, reason and place, in one pass."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_galleries as tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from fct_jax.errors import UserError
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade.galleries.base import Gallery, Options, open_gallery
from fct_jax.upgrade.galleries.quarantine import Quarantine, reasons


class Held(Gallery):
    """A gallery in memory that counts the rows that are read."""

    def __init__(self, values, ids=None):
        self.values, self.count = values, 0
        ids = np.arange(len(values)) * 10 if ids is None else ids
        super().__init__("held", ids, values.shape[1], {})

    def read_stored(self, start, stop):
        self.count += stop - start
        return self.values[start:stop]


def spoiled(count=10_000, dim=4):
    """Return vectors with three zero and two NaN rows (P8), and these rows."""
    values = np.random.default_rng(0).standard_normal((count, dim)).astype(np.float32)
    rows = np.array([7, 8, count // 2, count - 2, count - 1])
    values[rows[:3]] = 0
    values[rows[3:], 1] = np.nan
    return values, rows


def screened(gallery, size=512):
    """Screen a gallery in a pass that could do something else as well."""
    start = 0
    for ids, vectors in gallery.blocks(size):
        good = gallery.screen(start, vectors)
        assert np.isfinite(vectors[good]).all()
        start += len(ids)
    return gallery.set_aside()


def test_one_pass_finds_bad_rows_and_the_rest_is_served():
    values, rows = spoiled()
    gallery = Held(values).settle(Options(on_bad="quarantine"))
    np.testing.assert_array_equal(screened(gallery), rows)
    assert gallery.count == len(values)  # every row was read once
    assert gallery.bad.counts == {"zero": 3, "NaN": 2}
    assert gallery.bad.ids == [70, 80, 50_000, 99_980, 99_990]
    assert gallery.bad.summary() == "3 zero (70, 80, 50000); 2 NaN (99980, 99990)"
    kept = np.delete(np.arange(len(values)), rows)
    assert len(gallery) == len(kept) and not len(gallery.set_aside())
    np.testing.assert_array_equal(gallery.ids, kept * 10)
    read = np.concatenate([vectors for _, vectors in gallery.blocks(700)])
    np.testing.assert_array_equal(read, values[kept])
    np.testing.assert_array_equal(gallery.stored(np.arange(len(kept))), kept)
    assert len(gallery.sound()) == len(kept)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_rows_are_numbered_without_bad_ones(data):
    count = data.draw(st.integers(1, 40))
    gone = data.draw(st.sets(st.integers(0, count - 1), max_size=count - 1))
    values = np.arange(1, count + 1, dtype=np.float32)[:, None]
    gallery = Held(values)
    half = {row for row in gone if row % 2}
    for rows in (half, gone):  # they are set aside in two steps
        for row in rows:
            gallery.bad.add(row, 0, "x", "y")
        gallery.set_aside()
    kept = np.array([row for row in range(count) if row not in gone])
    np.testing.assert_array_equal(gallery.ids, kept * 10)
    start = data.draw(st.integers(0, len(kept)))
    stop = data.draw(st.integers(start, len(kept)))
    np.testing.assert_array_equal(gallery.read(start, stop), values[kept[start:stop]])
    rows = data.draw(st.lists(st.integers(0, len(kept) - 1), max_size=5))
    np.testing.assert_array_equal(gallery.rows(rows), values[kept[rows]])
    a, b = sorted(data.draw(st.tuples(st.integers(0, count), st.integers(0, count))))
    np.testing.assert_array_equal(gallery.kept(a, b), np.isin(np.arange(a, b), kept))


def test_reasons():
    values = np.ones((6, 2), np.float32)
    values[0], values[1, 0], values[2, 1], values[3], values[4] = 0, np.nan, -np.inf, 3e38, 1e-30
    assert reasons(values) == {0: "zero", 1: "NaN", 2: "infinite", 3: "too large for float32"}


def test_by_default_the_first_bad_block_is_an_error():
    gallery = Held(spoiled()[0]).settle(Options())
    with pytest.raises(UserError, match=r"held holds unusable vectors: 2 zero \(70, 80\)$"):
        gallery.sound(batch_size=64)
    with pytest.raises(UserError, match="unknown on_bad 'ignore'"):
        Options(on_bad="ignore")
    with pytest.raises(UserError, match="unknown duplicates 'lst'; did you mean 'last'"):
        Options(duplicates="lst")


def test_too_many_are_something_else():
    values, _ = spoiled(4000)
    gallery = Held(values).settle(Options(on_bad="quarantine"))
    with pytest.raises(UserError, match=r"5 of 4,000 rows are unusable, more than 0.1%: 3 zero"):
        gallery.sound()
    gallery = Held(np.zeros((3, 2), np.float32)).settle(Options(on_bad="quarantine"))
    with pytest.raises(UserError, match=r"no usable vector: 3 zero \(0, 10, 20\)"):
        screened(gallery)


@pytest.mark.parametrize("name", ["quarantine.parquet", "quarantine.jsonl"])
@pytest.mark.parametrize("text", [True, False])
def test_what_was_found_is_found_again_without_reading(tmp_path, name, text):
    values, rows = spoiled()
    ids = np.array([f"id {i}" for i in range(len(values))]) if text else None
    gallery = Held(values, ids).settle(Options(on_bad="quarantine"))
    screened(gallery)
    gallery.bad.write(tmp_path / name)
    again = Held(values, ids).settle(Options(on_bad="quarantine"))
    read = Quarantine.read(tmp_path / name)
    assert read.entries == gallery.bad.entries
    np.testing.assert_array_equal(again.set_aside(read), rows)
    np.testing.assert_array_equal(again.ids, gallery.ids)
    assert again.count == 0
    if name.endswith("jsonl"):
        first = json.loads((tmp_path / name).read_text().splitlines()[0])
        assert first == {"row": 7, "id": gallery.bad.ids[0], "reason": "zero", "where": "row 7"}
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        Quarantine.read(tmp_path / name)


@pytest.mark.parametrize("form", tiny.FORMS)
@pytest.mark.parametrize("kept", ["first", "last"])
def test_repeated_ids(tmp_path, form, kept):
    """An id may be repeated (P9) in one file, or in two."""
    ids, old, _ = tiny.vectors(200)
    ids[[3, 150, 151]], ids[100] = ids[20], ids[101]
    if form == "set":
        (tmp_path / "g").mkdir()
        np.save(tmp_path / "g" / "vectors.npy", old)
        np.save(tmp_path / "g" / "ids.npy", ids)
        path = tmp_path / "g"
    else:
        path = tiny.write_gallery(form, tmp_path / "g", ids, old)
    with pytest.raises(UserError, match="occurs more than once; so do 1 others"):
        open_gallery(path)
    gallery = open_gallery(path, duplicates=kept)
    gone = [20, 101, 150, 151] if kept == "first" else [3, 20, 100, 150]
    np.testing.assert_array_equal(gallery.bad.rows, gone)
    rows = np.delete(np.arange(200), gone)
    np.testing.assert_array_equal(gallery.ids, ids[rows])
    np.testing.assert_array_equal(gallery.read(0, 196), old[rows])
    gallery.bad.check(200, "g")  # the kept row stands for them
    assert gallery.bad.counts == {"repeated id": 4}
    assert len(gallery.spread_rows(50)) > 20 and gallery.spread_rows(50).max() < 196


def bad_table(path, count=3000):
    """Write Parquet files with a null, a short and a NaN vector and a null id; return the rest."""
    values = np.random.default_rng(1).standard_normal((count, 3)).astype(np.float32)
    rows = list(values)
    rows[5], rows[1500] = None, values[1500][:2]
    rows[2001] = np.array([1, np.nan, 2], np.float32)
    ids = [i if i != 2500 else None for i in range(count)]
    path.mkdir()
    for number in range(3):
        part = slice(number * 1000, number * 1000 + 1000)
        table = {
            "id": ids[part],
            "vector": pa.array(rows[part], pa.list_(pa.float32())),
            "note": [f"n{i}" for i in range(count)][part],
        }
        pq.write_table(pa.table(table), path / f"part-{number}.parquet", row_group_size=400)
    return np.delete(np.arange(count), [5, 1500, 2001, 2500]), values


def test_a_parquet_gallery_goes_on_without_its_bad_rows(tmp_path):
    kept, values = bad_table(tmp_path / "g")
    with pytest.raises(UserError, match="1 ids in 'id' are null, first part-2.parquet, row 500"):
        open_gallery(tmp_path / "g")
    gallery = open_gallery(tmp_path / "g", on_bad="quarantine")
    with pytest.raises(UserError, match="4 of 2,999 rows are unusable, more than 0.1%"):
        gallery.sound()
    gallery.set_aside()
    assert gallery.bad.entries == {
        5: (5, "null in 'vector'", "part-0.parquet, row 5"),
        1500: (1500, "of dimension 2, not 3 in 'vector'", "part-1.parquet, row 500"),
        2001: (2001, "NaN", "part-2.parquet, row 1"),
        2500: (None, "null id", "part-2.parquet, row 500"),
    }
    gallery.bad.write(tmp_path / "quarantine.parquet")
    assert pq.read_table(tmp_path / "quarantine.parquet")["id"].to_pylist() == [5, 1500, 2001, None]
    np.testing.assert_array_equal(gallery.ids, kept)
    np.testing.assert_array_equal(gallery.read(0, len(kept)), values[kept])
    # The new-space copy has the other rows, each with its own columns.
    (tmp_path / "w").mkdir()
    target = gallery.writer(gallery, tmp_path / "w")
    target.create(2, "l2")
    target.open(2)
    target.vectors.write(0, values[kept][:, :2] * 2)
    target.publish()
    chosen = np.array([4, 5, 1499, 2990])
    target.put(chosen, values[kept[chosen]][:, :2] * 3, 1)
    assert target.publish(chosen) == 3
    target.describe({"state": "finished"})
    target.complete()
    target.close()
    made = open_gallery(tmp_path / "w" / "gallery")
    expected = values[kept][:, :2] * 2
    expected[chosen] *= 1.5
    np.testing.assert_allclose(made.read(0, len(kept)), expected, rtol=1e-6)
    np.testing.assert_array_equal(np.flatnonzero(made.versions), chosen)
    notes = pq.read_table(tmp_path / "w" / "gallery")["note"].to_pylist()
    assert notes == [f"n{i}" for i in kept]


def test_labels_and_versions_follow(tmp_path):
    values, rows = spoiled()
    EmbeddingSet.of(values, labels=np.arange(10_000)).write(tmp_path / "g")
    np.save(tmp_path / "g" / "version.npy", (np.arange(10_000) % 2).astype(np.uint8))
    gallery = open_gallery(tmp_path / "g", on_bad="quarantine").sound()
    kept = np.delete(np.arange(10_000), rows)
    np.testing.assert_array_equal(gallery.labels, kept)
    np.testing.assert_array_equal(gallery.versions, kept % 2)


def test_an_upgrade_of_a_table_with_bad_rows(tmp_path):
    """Null vectors and vectors of another dimension do not stop it: 2,998 rows are upgraded."""
    ids, old, new = tiny.vectors(3000)
    rows = list(old)
    rows[5], rows[1500] = None, old[1500][:2]
    (tmp_path / "g").mkdir()
    table = pa.table({"id": ids, "vector": pa.array(rows, pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "g" / "a.parquet", row_group_size=1000)
    tiny.as_set(tmp_path / "new", new, ids, fingerprint="new-model")
    made = ({"parquet": tmp_path / "g"}, tmp_path / "new", ids, old, new)
    with pytest.raises(UserError, match=f"the vector of id {ids[5]} .* is null in 'vector'"):
        tiny.upgraded(made, "parquet", tmp_path / "w1", on_bad="raise")
    gallery = tiny.upgraded(made, "parquet", tmp_path / "w2", batch_items=1000, batch_size=256)
    lines = (tmp_path / "w2" / "quarantine.jsonl").read_text().splitlines()
    found = [tuple(json.loads(line).values()) for line in lines]
    where = "a.parquet, row"
    assert found == [
        (5, ids[5], "null in 'vector'", f"{where} 5"),
        (1500, ids[1500], "of dimension 2, not 6 in 'vector'", f"{where} 1500"),
    ]
    np.testing.assert_array_equal(gallery.read(0, 3000)[6:1500], new[6:1500])
