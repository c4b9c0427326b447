"""Messages about files that are no gallery name what the files look like."""

import numpy as np
import pytest
from gallery_files import random

from fct_jax.errors import UserError
from fct_jax.upgrade.galleries.base import open_gallery


@pytest.mark.parametrize(
    "name, data, said",
    [
        ("dump", b"PGDMP\1\x0e", r"a dump of PostgreSQL; .copy .* CSV HEADER can be read"),
        ("x.db", b"SQLite format 3\0abc", "an SQLite database; export its table"),
        ("x.gz", b"\x1f\x8babc", "a gzip file; unpack it first"),
        ("x.pkl", b"\x80\x04abc", "a pickle; save its array with numpy.save"),
        ("x.bin", b"PAR1abc", "a Parquet file; call it NAME.parquet"),
        ("x.json", b'[{"id": 1}]', "JSON; one object a line"),
        ("x.safetensors", b"\1\2\3", "safetensors; save them with numpy.save"),
        ("empty", b"", "an empty file; give an EmbeddingSet"),
    ],
)
def test_what_it_looks_like_is_said(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=f"it looks like {said}"):
        open_gallery(tmp_path / name)


def test_files_that_may_not_be_read(tmp_path, monkeypatch):
    """A path that the user may not open gives one line, in any form."""

    def refused(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    np.save(tmp_path / "x.npy", random())
    monkeypatch.setattr("pathlib.Path.is_file", refused)
    with pytest.raises(UserError, match=r"x.npy: Permission denied$"):
        open_gallery(tmp_path / "x.npy")


def test_folders_that_are_no_gallery(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="the folder is empty; give an EmbeddingSet"):
        open_gallery(tmp_path / "a")
    (tmp_path / "a" / "x.tfrecord").write_text("x")
    with pytest.raises(UserError, match="the folder holds TensorFlow records"):
        open_gallery(tmp_path / "a")
    with pytest.raises(UserError, match="nothing is there; did you mean 'a'"):
        open_gallery(tmp_path / "ab")
    (tmp_path / "a" / "x.tfrecord").rename(tmp_path / "a" / "notes.md")
    with pytest.raises(UserError, match="the folder holds notes.md, …; give an EmbeddingSet"):
        open_gallery(tmp_path / "a")
    np.save(tmp_path / "a" / "x.npy", random())
    np.savez(tmp_path / "a" / "y.npz", random())
    with pytest.raises(UserError, match="the folder holds galleries; name one: x.npy, y.npz"):
        open_gallery(tmp_path / "a")
