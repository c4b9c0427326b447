"""An upgrade reads each row of a gallery twice, notices changes, and sets bad rows aside."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_galleries as tiny
from tiny_galleries import as_set

from fct_jax.errors import UserError
from fct_jax.storage import checksums
from fct_jax.upgrade.galleries.base import open_gallery
from fct_jax.upgrade.galleries.embedding_set import SetGallery
from fct_jax.upgrade.galleries.stored import TYPES, Coding
from fct_jax.upgrade.maps.map import Map
from fct_jax.upgrade.migration.reading import stamps_of
from fct_jax.upgrade.migration.translating import Translator
from fct_jax.upgrade.migration.upgrade import Upgrade

COUNT = 300


@pytest.fixture
def rows_read(monkeypatch):
    """Count the rows that galleries read, and the bytes that checksums read."""
    counted = {"rows": 0}
    read, of_part = SetGallery._values, checksums.of_part

    def counting(self, start, stop):
        counted["rows"] += stop - start
        return read(self, start, stop)

    def summing(path, start, stop):
        counted[path] = counted.get(path, 0) + stop - start
        return of_part(path, start, stop)

    monkeypatch.setattr(SetGallery, "_values", counting)
    monkeypatch.setattr(checksums, "of_part", summing)
    return counted


def test_a_gallery_is_read_twice_by_plan_and_apply(tmp_path, rows_read):
    """It is read once to plan and once to translate, besides samples of 256 rows per batch.

    A plan also times one block.
    """
    count, samples = 20_000, 600 + 256 * 5 + 4096
    ids, old, new = tiny.vectors(count)
    path = as_set(tmp_path / "old", old, ids, fingerprint="old-model")
    where = as_set(tmp_path / "new", new, ids)
    rows_read.pop(path / "vectors.npy", None)  # reads from when it was written

    def reads(call) -> tuple[int, int]:
        before = rows_read["rows"]
        call()
        full, rest = divmod(rows_read["rows"] - before, count)
        assert rest <= samples
        return full

    def apply(folder, **given):
        return lambda: Upgrade(tmp_path / folder).apply(tiny.plain_map(), path, **given)

    planned = Upgrade(tmp_path / "planned")
    assert reads(lambda: planned.plan(tiny.plain_map(), path, budget_items=100)) == 1
    assert reads(lambda: planned.apply(reembed=where)) == 1
    assert reads(apply("at once", reembed=where, max_batches=1)) == 2
    # A plan needs no more than the translation has seen.
    assert reads(apply("translated", unchecked=True)) == 1
    plan = None

    def later():
        nonlocal plan
        plan = Upgrade(tmp_path / "translated").plan(map=tiny.plain_map(), budget_items=100)

    assert reads(later) == 0
    first = Upgrade(tmp_path / "planned").workdir / "plan"
    np.testing.assert_array_equal(plan.rows, np.load(first / "rows.npy"))
    np.testing.assert_array_equal(
        np.load(tmp_path / "translated" / "plan" / "uncertainty.npy"),
        np.load(first / "uncertainty.npy"),
    )
    assert reads(apply("translated", reembed=where)) == 0
    assert path / "vectors.npy" not in rows_read  # the same passes compared checksums


def test_a_gallery_that_changes_after_it_was_planned(tmp_path):
    ids, old, new = tiny.vectors(300)
    path = as_set(tmp_path / "old", old, ids, fingerprint="old-model")
    where = as_set(tmp_path / "new", new, ids)
    upgrade = Upgrade(tmp_path / "up")
    upgrade.plan(tiny.plain_map(), path, batch_size=16)
    meta = json.loads((path / "meta.json").read_text())
    stamp = (path / "vectors.npy").stat()
    del meta["shards"]
    (path / "meta.json").write_text(json.dumps(meta))
    data = bytearray((path / "vectors.npy").read_bytes())
    data[128 + 25] ^= 1  # in a row that the identity's sample leaves out
    (path / "vectors.npy").write_bytes(data)
    with pytest.raises(UserError, match="have changed since the plan was made"):
        upgrade.apply(reembed=where)
    assert not (tmp_path / "up" / "journal.jsonl").exists()
    # Time and size are as before, so that only the translating pass can notice the change.
    described = json.loads((tmp_path / "up" / "plan" / "plan.json").read_text())
    os.utime(path / "vectors.npy", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    described["checked"]["stamps"] = stamps_of(open_gallery(path))
    (tmp_path / "up" / "plan" / "plan.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="has changed since the plan was made: its vectors have"):
        upgrade.apply(reembed=where)
    assert not (tmp_path / "up" / "gallery").exists()
    # With the file as it was, the same command resumes.
    data[128 + 25] ^= 1
    (path / "vectors.npy").write_bytes(data)
    assert upgrade.apply(reembed=where).versions.all()


def test_a_gallery_that_changes_while_it_is_translated(tmp_path):
    """Rows that were translated from the old files are translated again."""
    ids, old, new = tiny.vectors(300)
    path = as_set(tmp_path / "old", old, ids, fingerprint="old-model")
    where = as_set(tmp_path / "new", new, ids)
    changed = old.copy()
    changed[1] *= 2  # in a row that the identity's sample leaves out

    class Interrupted(Map):
        interrupted = False

        def stream(self, blocks, *settings, **more):
            for number, made in enumerate(super().stream(blocks, *settings, **more)):
                if number == 40 and not type(self).interrupted:
                    type(self).interrupted = True
                    np.save(path / "vectors.npy", changed)
                    raise KeyboardInterrupt
                yield made

    mapping = tiny.plain_map()
    mapping.__class__ = Interrupted
    meta = json.loads((path / "meta.json").read_text())
    del meta["shards"]
    (path / "meta.json").write_text(json.dumps(meta))
    upgrade = Upgrade(tmp_path / "up")
    with pytest.raises(KeyboardInterrupt):
        upgrade.apply(mapping, path, reembed=None, unchecked=True, batch_size=5)
    assert 0 < Upgrade(tmp_path / "up").status().translated < 300
    made = upgrade.apply(unchecked=True)
    np.testing.assert_allclose(made.read(0, 300), changed @ tiny.weight(), atol=1e-6)
    assert Upgrade(tmp_path / "up").apply(tiny.plain_map(), reembed=where).versions.all()


@pytest.mark.parametrize("form", tiny.FORMS)
def test_unusable_vectors_are_set_aside(tmp_path, form):
    """At most one in a thousand may be; they are re-embedded first, and absent until then."""
    count = 2000
    ids, old, new = tiny.vectors(count)
    old = old.copy()
    old[40, 1], old[1700] = np.nan, 0
    path = tiny.write_gallery(form, tmp_path / form, ids, old)
    where = as_set(tmp_path / "new", new, ids)
    upgrade = Upgrade(tmp_path / "up")
    with pytest.raises(UserError, match=r"holds unusable vectors: 1 NaN \("):
        Upgrade(tmp_path / "strict").plan(tiny.plain_map(), path, on_bad="raise")
    plan = upgrade.plan(tiny.plain_map(), path, budget_items=100, batch_size=16)
    assert plan.rows[:2].tolist() == [40, 1700] and len(set(plan.rows)) == 100
    (tmp_path / "up" / "quarantine.jsonl").unlink()
    made = upgrade.apply(unchecked=True)
    expected = old @ tiny.weight()
    expected[[40, 1700]] = 0
    np.testing.assert_allclose(made.read(0, count), expected, atol=1e-6)
    said = [
        json.loads(line) for line in (tmp_path / "up" / "quarantine.jsonl").read_text().splitlines()
    ]
    assert [(s["id"], s["row"]) for s in said] == [(ids[40], 40), (ids[1700], 1700)]
    assert [s["reason"] for s in said] == ["NaN", "zero"]
    assert Upgrade(tmp_path / "up").status().quarantined == 2
    assert "2 unusable vectors set aside" in str(Upgrade(tmp_path / "up").status())
    made = upgrade.apply(reembed=where)
    np.testing.assert_allclose(made.rows([40, 1700]), new[[40, 1700]], atol=1e-6)
    upgrade.rollback(0)
    again = open_gallery(tmp_path / "up" / "gallery")
    np.testing.assert_allclose(again.read(0, count), expected, atol=1e-6)
    # A translation without a plan finds the same rows, and stops if there are too many.
    old[:3] = np.inf
    path = tiny.write_gallery(form, tmp_path / f"{form}2", ids, old)
    with pytest.raises(UserError, match=r"rows are unusable, more than 0.1%: .*3 infinite \("):
        Upgrade(tmp_path / "more").apply(tiny.plain_map(), path, unchecked=True)
    assert not (tmp_path / "more" / "gallery").exists()


def test_rows_that_the_reader_cannot_read_are_set_aside(tmp_path):
    """Null vectors and repeated ids are in the quarantine, each with its reason and file."""
    count = 2000
    ids, old, new = tiny.vectors(count)
    ids = ids.copy()
    ids[9] = ids[8]
    folder = tmp_path / "old"
    folder.mkdir()
    rows = [None if row == 1200 else vector for row, vector in enumerate(old)]
    table = pa.table({"id": ids, "vector": pa.array(rows, type=pa.list_(pa.float32()))})
    pq.write_table(table, folder / "part-0.parquet", row_group_size=500)
    where = as_set(tmp_path / "new", np.delete(new, 9, axis=0), np.delete(ids, 9))
    upgrade = Upgrade(tmp_path / "up")
    with pytest.raises(UserError, match="occurs more than once"):
        upgrade.apply(tiny.plain_map(), folder, reembed=where)
    made = upgrade.apply(tiny.plain_map(), folder, reembed=where, duplicates="first")
    np.testing.assert_array_equal(made.ids, np.delete(ids, 9))
    np.testing.assert_allclose(made.read(0, count - 1), np.delete(new, 9, axis=0), atol=1e-6)
    lines = (tmp_path / "up" / "quarantine.jsonl").read_text().splitlines()
    said = [json.loads(line) for line in lines]
    assert [(s["row"], s["id"], s["reason"]) for s in said] == [
        (9, ids[9], "repeated id"),
        (1200, ids[1200], "null in 'vector'"),
    ]
    assert all("part-0.parquet" in s["where"] for s in said)


@pytest.mark.parametrize(("form", "read"), [("set", 5), ("parquet", 3 * COUNT)])
def test_a_few_rows_are_read_alone_and_translated_as_in_their_block(tmp_path, form, read):
    """A row's bytes are those of the whole block, also beside an unusable row, or if it is one."""
    ids, old, _ = tiny.vectors(COUNT)
    old[17] = np.nan
    path = tiny.write_gallery(form, tmp_path / "old", ids, old)
    gallery, counted = open_gallery(path, on_bad="quarantine"), []
    whole = Translator(gallery, tiny.plain_map(), 16, True, Coding(TYPES["float16"]))
    expected = whole.rows(0, COUNT)
    stored = gallery.read_stored
    gallery.read_stored = lambda a, b: counted.append(b - a) or stored(a, b)
    for rows in ([3, 17, 299], [17], [0]):
        found = whole.some(np.array(rows), 0, COUNT)
        assert found.tobytes() == expected[rows].tobytes()
    assert sum(counted) == read
