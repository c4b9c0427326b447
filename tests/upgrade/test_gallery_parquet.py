"""Parquet galleries as people keep them: nothing of the source is lost, whatever its layout."""

import subprocess
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from memory_of_blocks import memory_of_blocks
from parquet_files import published, random, write
from patience import LONG

from fct_jax.errors import UserError
from fct_jax.upgrade.galleries.base import open_gallery


def test_columns_of_the_user_are_never_overwritten(tmp_path):
    write(tmp_path / "g" / "a.parquet", [1, 2], random(2), version=["v7", "v8"], fct_version=[3, 4])
    gallery = open_gallery(tmp_path / "g")
    assert gallery.versions is None and gallery.version_column == "fct_version_2"
    folder = published(gallery, tmp_path / "w", random(2, 5))
    table = pq.read_table(folder)
    assert table["version"].to_pylist() == ["v7", "v8"]
    assert table["fct_version"].to_pylist() == [3, 4]
    made = open_gallery(folder)
    assert made.versions.tolist() == [0, 0] and made.version_column == "fct_version_2"
    # In a second upgrade, the column is the tool's own and is written anew.
    again = pq.read_table(published(made, tmp_path / "w2", random(2, 4)))
    assert again.column_names == ["id", "vector", "version", "fct_version", "fct_version_2"]


def test_galleries_of_earlier_releases_are_read(tmp_path):
    states = pa.array(["translated", "new"]).dictionary_encode()
    write(tmp_path / "a.parquet", [1, 2], random(2), version=states)
    (tmp_path / "meta.json").write_text('{"versions": ["translated", "new"], "model": "m"}')
    gallery = open_gallery(tmp_path)
    assert gallery.versions.tolist() == [0, 1] and gallery.meta["model"] == "m"


def test_folders_in_folders(tmp_path):
    vectors = random(6)
    where = ["top.parquet", "date=2026-01-02/part-0.parquet", "date=2026-01-01/x/part-0.parquet"]
    for number, name in enumerate(where):
        rows = slice(2 * number, 2 * number + 2)
        write(tmp_path / "g" / name, np.arange(6)[rows], vectors[rows])
    write(tmp_path / "g" / "_temporary" / "0.parquet", [0], vectors[:1])  # from a killed Spark job
    write(tmp_path / "g" / ".hidden.parquet", [0], vectors[:1])
    (tmp_path / "g" / "again").symlink_to(tmp_path / "g")
    gallery = open_gallery(tmp_path / "g")
    assert sorted(gallery.ids.tolist()) == list(range(6))
    np.testing.assert_array_equal(gallery.read(0, 6), vectors[gallery.ids])
    folder = published(gallery, tmp_path / "w", vectors[gallery.ids])
    found = pq.read_table(folder)  # as any reader does, despite the description file beside it
    assert "date" in found.column_names
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.parquet")) == sorted(
        where
    )
    (tmp_path / "alone" / "deep").mkdir(parents=True)
    write(tmp_path / "alone" / "deep" / "a.parquet", [1], vectors[:1])
    assert len(open_gallery(tmp_path / "alone")) == 1
    assert len(open_gallery(tmp_path / "alone" / "deep" / "a.parquet")) == 1


def test_numbers_in_names_count(tmp_path):
    vectors = random(12)
    for number in range(12):
        write(tmp_path / f"part-{number}.parquet", [number], vectors[number : number + 1])
    assert open_gallery(tmp_path).ids.tolist() == list(range(12))


def test_compression_and_row_groups_are_the_sources(tmp_path):
    vectors, codecs = random(100), {"id": "gzip", "vector.list.element": "zstd", "note": "none"}
    settings = {"row_group_size": 30, "compression": codecs}
    write(tmp_path / "g" / "a.parquet", range(100), vectors, note=["x"] * 100, settings=settings)
    folder = published(open_gallery(tmp_path / "g"), tmp_path / "w", random(100, 5))
    metadata = pq.ParquetFile(folder / "a.parquet").metadata
    groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
    assert [group.num_rows for group in groups] == [30, 30, 30, 10]
    found = {c.path_in_schema: c.compression for c in map(groups[0].column, range(4))}
    expected = {"id": "GZIP", "vector.list.element": "ZSTD", "note": "UNCOMPRESSED"}
    assert found == {**expected, "fct_version": "ZSTD"}
    np.testing.assert_array_equal(open_gallery(folder).read(0, 100), random(100, 5))


def test_large_row_groups_are_divided(tmp_path, monkeypatch):
    monkeypatch.setattr("fct_jax.upgrade.galleries.parquet._MEMORY", 4096)
    write(tmp_path / "g" / "a.parquet", range(1000), random(1000))
    folder = published(open_gallery(tmp_path / "g"), tmp_path / "w", random(1000, 5))
    metadata = pq.ParquetFile(folder / "a.parquet").metadata
    assert metadata.num_rows == 1000
    groups = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
    # Five values of four bytes, with levels of four bytes each, and at least a byte of others.
    assert max(groups) * 5 * 8 <= 4096 < 2 * max(groups) * (5 * 8 + 16)
    np.testing.assert_array_equal(open_gallery(folder).read(0, 1000), random(1000, 5))


def test_files_without_rows(tmp_path):
    for number, count in enumerate((0, 2, 0, 1, 0)):
        write(
            tmp_path / "g" / f"{number}.parquet",
            pa.array(range(count), pa.int64()),
            random(3)[:count],
        )
    with pytest.raises(UserError, match="id 0 occurs more than once"):
        open_gallery(tmp_path / "g")
    write(tmp_path / "g" / "3.parquet", [7], random(3)[2:])
    gallery = open_gallery(tmp_path / "g")
    np.testing.assert_array_equal(gallery.read(0, 3), random(3))
    folder = published(gallery, tmp_path / "w", random(3))
    assert (
        pq.read_table(folder)["id"].to_pylist() == [0, 1, 7]
        and len(list(folder.glob("*.parquet"))) == 5
    )
    write(tmp_path / "empty" / "a.parquet", pa.array([], pa.int64()), [])
    with pytest.raises(UserError, match="is empty: it has no rows"):
        open_gallery(tmp_path / "empty")


@pytest.mark.multiprocess
def test_many_files_are_not_open_at_once(tmp_path):
    """There are far more files than may be open (P5), as with 10,000 under a limit of 1,024."""
    for number in range(150):
        write(
            tmp_path / "g" / f"date={number % 7}" / f"part-{number}.parquet",
            [number],
            [[number, 1.0]],
        )
    code = """
        import resource, sys
        from fct_jax.upgrade.galleries.base import open_gallery
        import pyarrow.parquet, fct_jax.upgrade.galleries.parquet
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        gallery = open_gallery(sys.argv[1])
        assert (gallery.read(0, 150)[:, 0] == gallery.ids).all()
        assert (gallery.rows([149, 3, 77])[:, 0] == gallery.ids[[149, 3, 77]]).all()
        print(len(gallery))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "g")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG)
    assert done.stdout == "150\n", done.stderr


@pytest.mark.multiprocess
def test_memory_of_a_large_row_group(tmp_path):
    """One row group of 100,000 × 256 floats (P28), 100 MB, needs no more than a smaller one."""
    vectors = random(100_000, 256)
    few = write(tmp_path / "few.parquet", range(40_000), vectors[:40_000])
    many = write(tmp_path / "many.parquet", range(100_000), vectors)
    usual, _ = memory_of_blocks(few, 4096)
    most, sums = memory_of_blocks(many, 4096)
    assert most < usual + 30  # a group of three blocks is enough; the rows that follow have 60 MB
    np.testing.assert_allclose(sums, vectors.sum(axis=0, dtype=np.float64))


def test_an_object_store(tmp_path):
    """A file system of pyarrow is opened by URI; S3 and others work in the same way."""
    write(tmp_path / "a=1" / "x.parquet", [1, 2], random(2))
    gallery = open_gallery(f"file://{tmp_path}")
    assert gallery.name == f"file://{tmp_path}" and gallery.parts[0].name == "a=1/x.parquet"
    np.testing.assert_array_equal(gallery.read(0, 2), random(2))
    folder = published(gallery, tmp_path / "w", random(2, 4))
    assert (folder / "a=1" / "x.parquet").is_file()
    with pytest.raises(UserError, match="nothing is there"):
        open_gallery(f"file://{tmp_path}/none")


def test_object_stores_that_cannot_be_reached(tmp_path, monkeypatch):
    """A missing package or an absent server is reported in one line."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="hf://datasets/a/b needs huggingface_hub: pip install"):
        open_gallery("hf://datasets/a/b")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "Zq9hunter")
    away = "endpoint_override=127.0.0.1:1&scheme=http"
    for uri in (
        f"s3://bucket/g?region=us-east-1&{away}",
        f"gs://anonymous@bucket/g?{away}&retry_limit_seconds=1",
    ):
        with pytest.raises(UserError, match=r"^(s3|gs)://.* cannot be read: .*") as caught:
            open_gallery(uri)
        assert "\n" not in str(caught.value) and "Zq9hunter" not in str(caught.value)
    with pytest.raises(UserError, match="of URIs, s3://, gs://, hf:// and file:// are read"):
        open_gallery("abfs://container/g")


def test_damaged_and_foreign_files(tmp_path):
    path = write(
        tmp_path / "a.parquet", range(1000), random(1000, 16), settings={"compression": "none"}
    )
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 2] = b"\0" * (len(data) // 2 - len(data) // 3)
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged|unusable|NaN|null|dimension|zero"):
        open_gallery(tmp_path).sound()
    path.write_bytes(data[:-9])
    with pytest.raises(UserError, match="a.parquet cannot be read"):
        open_gallery(tmp_path)
