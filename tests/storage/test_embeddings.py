"""EmbeddingSets: what is written is read, and what is unsound is refused."""

import json
import re
import zlib

import numpy as np
import pytest

from fct_jax.errors import UserError
from fct_jax.storage import checksums
from fct_jax.storage.embedding_set import (
    EmbeddingSet,
    check_fingerprint,
    check_paired,
    new_directory,
)


def make(n=7, d=3, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "vectors": rng.standard_normal((n, d)).astype(np.float32),
        "labels": np.arange(n) % 2,
        "uncertainty": rng.standard_normal(n).astype(np.float32),
        "meta": {"fingerprint": "abc"},
    }
    return EmbeddingSet.of(**{**arrays, **changes})


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("ids", [None, np.arange(7) * 10, np.array(list("gfedcba"))])
def test_round_trip(tmp_path, dtype, ids):
    made = make(ids=ids)
    made = EmbeddingSet.of(made.vectors.astype(dtype), made.ids, made.labels, made.uncertainty)
    made.write(tmp_path / "set")
    found = EmbeddingSet.read(tmp_path / "set")
    assert isinstance(found.vectors, np.memmap)
    assert found.vectors.dtype == dtype
    for name in ("vectors", "ids", "labels", "uncertainty"):
        np.testing.assert_array_equal(getattr(found, name), getattr(made, name))
    meta = json.loads((tmp_path / "set" / "meta.json").read_text())
    assert (meta["count"], meta["dimension"], meta["format_version"]) == (7, 3, 1)


def test_vectors_alone_are_enough(tmp_path):
    np.save(tmp_path / "vectors.npy", np.ones((4, 2), np.float32))
    found = EmbeddingSet.read(tmp_path)
    np.testing.assert_array_equal(found.ids, np.arange(4))
    assert found.labels is None and found.fingerprint is None


def test_nothing_is_overwritten(tmp_path):
    make().write(tmp_path / "set")
    with pytest.raises(UserError, match="exists already; nothing was overwritten"):
        make(n=3).write(tmp_path / "set")
    assert len(EmbeddingSet.read(tmp_path / "set")) == 7


def test_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), new_directory(tmp_path / "set") as folder:
        (folder / "vectors.npy").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"vectors": np.ones(7, np.float32)}, r"must be \(N, D\)"),
        ({"vectors": np.ones((7, 3), int)}, r"must be \(N, D\)"),
        ({"vectors": np.ones((0, 3), np.float32)}, "is empty"),
        ({"labels": np.arange(6)}, r"labels have shape \(6,\), but there are 7 vectors"),
        ({"labels": np.ones(7)}, "labels must be integers"),
        ({"ids": np.array([1, 2, 3, 3, 4, 5, 6])}, "id 3 occurs more than once"),
        ({"ids": np.ones(7)}, "ids must be integers or text"),
    ],
)
def test_unsound_sets_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        make(**changes)


def test_not_finite_vector_is_named():
    made = make(ids=np.arange(7) + 100)
    made.vectors[4, 1] = np.nan
    with pytest.raises(UserError, match="the vector of id 104 is not finite"):
        made.check_finite()
    made = make()
    made.uncertainty[2] = np.inf
    with pytest.raises(UserError, match="the uncertainty of id 2 is not finite"):
        made.check_finite()


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_not_finite_halves_are_found(bad):
    made = make(vectors=np.full((7, 3), -65504, np.float16))  # the largest ones are finite
    made.check_finite()
    made.vectors[6, 2] = bad
    with pytest.raises(UserError, match="the vector of id .* is not finite"):
        made.check_finite()


def damage_meta(folder, **changes):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, **changes}))


def test_damaged_sets_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no EmbeddingSet in .*: vectors.npy is missing"):
        EmbeddingSet.read(tmp_path / "nowhere")
    folder = make().write(tmp_path / "set")
    damage_meta(folder, count=9)
    with pytest.raises(UserError, match="incomplete: 7 rows of 9"):
        EmbeddingSet.read(folder)
    damage_meta(folder, count=7, format_version=99)
    with pytest.raises(UserError, match="format version 99"):
        EmbeddingSet.read(folder)
    (folder / "meta.json").write_text("{")
    with pytest.raises(UserError, match="meta.json cannot be read"):
        EmbeddingSet.read(folder)
    content = (folder / "vectors.npy").read_bytes()
    (folder / "vectors.npy").write_bytes(content[:-5])
    (folder / "meta.json").unlink()
    with pytest.raises(UserError, match="vectors.npy cannot be read"):
        EmbeddingSet.read(folder)


def damage(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.fixture
def shards(tmp_path):
    """Write a set of 7 rows in shards of 3."""
    folder = make().write(tmp_path / "set")
    damage_meta(folder, shards=checksums.shards_of(folder / "vectors.npy", 3))
    return folder


def test_checksums_are_crc_32(shards):
    made = EmbeddingSet.read(shards)
    for shard, rows in zip(
        made.meta["shards"], (slice(0, 3), slice(3, 6), slice(6, 7)), strict=True
    ):
        assert (shard["start"], shard["count"]) == (rows.start, rows.stop - rows.start)
        assert shard["checksum"] == f"{zlib.crc32(made.vectors[rows].tobytes()):08x}"
    assert made.meta["checksums"] == {
        f"{name}.npy": f"{zlib.crc32((shards / f'{name}.npy').read_bytes()):08x}"
        for name in ("ids", "labels", "uncertainty")
    }


@pytest.mark.parametrize("row, shard", [(0, "shard 0 (rows 0–2)"), (5, "shard 1 (rows 3–5)")])
def test_damaged_row_is_named(shards, row, shard):
    damage(shards / "vectors.npy", 128 + 12 * row + 7)
    with pytest.raises(UserError, match=rf"vectors.npy is damaged in {re.escape(shard)}"):
        EmbeddingSet.read(shards)
    assert len(EmbeddingSet.read(shards, verify=False)) == 7


@pytest.mark.parametrize("name", ["ids", "labels", "uncertainty"])
def test_damaged_companion_is_named(shards, name):
    damage(shards / f"{name}.npy", -3)
    with pytest.raises(UserError, match=rf"{name}.npy is damaged: its checksum"):
        EmbeddingSet.read(shards)
    (shards / f"{name}.npy").unlink()
    for verify in (True, False):
        with pytest.raises(UserError, match=rf"{name}.npy is missing, but meta.json lists it"):
            EmbeddingSet.read(shards, verify=verify)


def test_missing_rows_are_named(shards):
    content = (shards / "vectors.npy").read_bytes()
    for length, message in ((-1, r"shard 2 \(rows 6–6\)"), (-30, r"shard 1 \(rows 3–5\)")):
        (shards / "vectors.npy").write_bytes(content[:length])
        for verify in (True, False):
            with pytest.raises(UserError, match=f"vectors.npy is cut off: {message} is not whole"):
                EmbeddingSet.read(shards, verify=verify)
    (shards / "vectors.npy").write_bytes(content)
    whole = json.loads((shards / "meta.json").read_text())["shards"]
    for left, rows in ((whole[:2], "6–6"), (whole[::2], "3–5"), ([whole[0], *whole], "0–2")):
        damage_meta(shards, shards=left)
        with pytest.raises(UserError, match=f"meta.json has no shard, or two, of rows {rows}"):
            EmbeddingSet.read(shards, verify=False)
    for broken in ([{"start": 0}], 5, [[]]):
        damage_meta(shards, shards=broken)
        with pytest.raises(UserError, match="meta.json is damaged: 'shards' or"):
            EmbeddingSet.read(shards)


def test_no_damage_goes_unnoticed(shards):
    """Any changed byte of any array is refused, unless it is a meaningless byte of the header."""
    whole = EmbeddingSet.read(shards)
    for name in ("vectors", "ids", "labels", "uncertainty"):
        path = shards / f"{name}.npy"
        content = path.read_bytes()
        expected = np.array(getattr(whole, name))
        for at in range(0, len(content), 1 if name == "vectors" else 9):
            damage(path, at)
            try:
                found = getattr(EmbeddingSet.read(shards), name)
            except UserError:
                pass
            else:
                assert name == "vectors" and at < 128
                assert found.dtype == expected.dtype
                np.testing.assert_array_equal(found, expected)
            path.write_bytes(content)
    EmbeddingSet.read(shards)


def test_any_damage_of_meta_is_one_clear_line(shards):
    path = shards / "meta.json"
    content = path.read_bytes()
    refused = 0
    for at in range(0, len(content), 3):
        damage(path, at)
        try:
            EmbeddingSet.read(shards)
        except UserError:
            refused += 1
        path.write_bytes(content)
    assert refused > len(content) / 9


def test_columns_are_written_as_rows(tmp_path):
    made = make(vectors=np.asfortranarray(np.arange(21, dtype=np.float32).reshape(7, 3)))
    made.write(tmp_path / "set")
    np.testing.assert_array_equal(EmbeddingSet.read(tmp_path / "set").vectors, made.vectors)
    np.save(tmp_path / "set" / "vectors.npy", made.vectors)
    with pytest.raises(UserError, match="does not hold rows"):
        EmbeddingSet.read(tmp_path / "set")


def test_another_type_is_refused(shards):
    damage_meta(shards, dtype="float16")
    with pytest.raises(UserError, match="holds float32 vectors; meta.json: float16"):
        EmbeddingSet.read(shards)


def test_new_directory_takes_over_from_a_killed_run(tmp_path):
    """The remains of a killed run are removed; a live run is not disturbed."""
    (tmp_path / ".set.new").mkdir()
    (tmp_path / ".set.new" / "half").write_text("")
    (tmp_path / ".set.lock").write_text("")
    with new_directory(tmp_path / "set") as folder:
        assert list(folder.iterdir()) == []
        with pytest.raises(UserError, match="another run is making"):
            make().write(tmp_path / "set")
        (folder / "whole").write_text("")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["set", "whole"]


def test_pickled_arrays_are_refused(tmp_path):
    folder = make().write(tmp_path / "set")
    np.save(folder / "ids.npy", np.array([{}] * 7), allow_pickle=True)
    with pytest.raises(UserError, match="ids.npy cannot be read"):
        EmbeddingSet.read(folder, verify=False)


def test_pairs_must_hold_the_same_items():
    check_paired(make(), make(d=5))
    with pytest.raises(UserError, match="7 vectors and .* 6"):
        check_paired(make(), make(n=6))
    with pytest.raises(UserError, match="row 0 is id 0 in .* and id 6"):
        check_paired(make(), make(ids=np.arange(7)[::-1]))
    with pytest.raises(UserError, match="row 0 is id 0 in .* and id a"):
        check_paired(make(), make(ids=np.array(list("abcdefg"))))
    with pytest.raises(UserError, match="id 0 has label 0 in .* and 1 in"):
        check_paired(make(), make(labels=(np.arange(7) + 1) % 2))


def test_fingerprints_must_agree_where_known():
    check_fingerprint(make(), "abc", "old")
    check_fingerprint(make(), None, "old")
    check_fingerprint(make(meta={}), "abc", "old")
    with pytest.raises(UserError, match="comes from model abc, but the old model is def"):
        check_fingerprint(make(), "def", "old")
