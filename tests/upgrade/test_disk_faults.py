"""Disks that fill up, folders that may not be written, files that go: one line, and no row lost."""

import contextlib
import errno
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_galleries as tiny
from disks import disk
from patience import LONG
from tiny_galleries import contents

from fct_jax import cli
from fct_jax.errors import UserError
from fct_jax.upgrade.galleries.base import open_gallery
from fct_jax.upgrade.galleries.parquet import ParquetTarget
from fct_jax.upgrade.galleries.rows import Rows
from fct_jax.upgrade.migration.upgrade import Upgrade
from fct_jax.upgrade.migration.writing import Following

COUNT = 4000


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("galleries")
    tiny.plain_map().save(folder / "map")
    return tiny.made_galleries(folder, COUNT), folder / "map"


def words(made, form, workdir, *more):
    (paths, new, *_), mapping = made
    given = ["--map", mapping, "--gallery", paths[form], "--reembed", new, "--batch-size", "64"]
    return list(map(str, ["apply", workdir, *given, "--batch-items", "500", *more]))


def one_line(capsys, *expected):
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(said) == 1 and any(text in said[0] for text in expected), said
    assert "Traceback" not in said[0]


@pytest.mark.slow
@pytest.mark.parametrize("form", tiny.FORMS)
def test_a_disk_that_is_full(made, tmp_path, form, capsys):
    """Whenever the disk is full, the same command resumes once there is room, to the same bytes."""
    assert cli.main(words(made, form, tmp_path / "whole")) == 0
    whole = contents(tmp_path / "whole" / "gallery")
    capsys.readouterr()
    used = sum(f.stat().st_size for f in (tmp_path / "whole").rglob("*") if f.is_file())
    failed = 0
    for number, share in enumerate((0.2, 0.5, 0.7, 0.8, 0.9, 1.0)):
        with disk(tmp_path / f"disk{number}", int(used * share)) as change:
            workdir = tmp_path / f"disk{number}" / "up"
            code = cli.main(words(made, form, workdir))
            if code:
                failed += 1
                one_line(capsys, "No space left on device", "GB free, but the new gallery")
            change(f"size={used * 4}")
            assert cli.main(words(made, form, workdir)) == 0
            assert contents(workdir / "gallery") == whole
            capsys.readouterr()
    assert failed > 3


@pytest.mark.parametrize("form", tiny.FORMS)
def test_one_write_that_fails(made, tmp_path, form, monkeypatch):
    """The blocks that wait behind it are not recorded as done; the same command makes all rows."""
    (paths, *_, old, _), mapping = made
    write, starts = Rows.write, []

    def failing(self, start, vectors, *more):
        starts.append(start)
        if len(starts) == 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, start, vectors, *more)

    run = Upgrade(tmp_path / "up")
    given = (mapping, paths[form])
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(Rows, "write", failing)
        run.apply(*given, batch_size=64, unchecked=True)
    made_now = run.apply(*given, batch_size=64, unchecked=True)
    np.testing.assert_allclose(made_now.read(0, COUNT), old @ tiny.weight(), atol=1e-5)


def test_a_killed_run_keeps_the_files_that_are_whole(made, tmp_path, monkeypatch):
    paths, mapping = made[0][0], tiny.plain_map()
    settings = {"batch_size": 64, "unchecked": True}
    Upgrade(tmp_path / "whole").apply(mapping, paths["parquet"], **settings)
    write, written = ParquetTarget.write_file, []

    def failing(self, number, path, *rows):
        if number == 2:
            path.write_bytes(b"the begin of a file")
            raise OSError(28, "No space left on device")
        write(self, number, path, *rows)

    monkeypatch.setattr(ParquetTarget, "write_file", failing)
    with pytest.raises(OSError, match="No space"):
        Upgrade(tmp_path / "up").apply(mapping, paths["parquet"], **settings)
    monkeypatch.setattr(
        ParquetTarget,
        "write_file",
        lambda self, *given: written.append(given[0]) or write(self, *given),
    )
    Upgrade(tmp_path / "up").apply()
    assert written == [2, 3]
    assert tiny.tree(tmp_path / "up" / "gallery") == tiny.tree(tmp_path / "whole" / "gallery")


def test_files_are_not_made_to_the_end_after_an_error():
    """Ctrl-C ends the thread that makes files at its next row, also if rows enough are written."""
    begun, finished = threading.Event(), []

    class Files:
        follows = True

        def publish(self, rows, ready):
            for _ in range(60_000):
                ready(1)
                begun.set()
                time.sleep(0.001)
            finished.append(True)

    with pytest.raises(KeyboardInterrupt), Following(Files(), 10):
        assert begun.wait(LONG)
        raise KeyboardInterrupt
    assert not finished


def test_a_disk_that_may_only_be_read(made, tmp_path, capsys):
    with disk(tmp_path / "disk", "8m") as change:
        workdir = tmp_path / "disk" / "up"
        change("ro")
        assert cli.main(words(made, "set", workdir)) == 1
        one_line(capsys, "Read-only file system")
        change("rw")
        assert cli.main(words(made, "set", workdir, "--max-batches", "3")) == 0
        change("ro")
        capsys.readouterr()
        assert cli.main(words(made, "set", workdir)) == 1
        one_line(capsys, "Read-only file system")
        change("rw")
        assert cli.main(words(made, "set", workdir)) == 0
        np.testing.assert_array_equal(open_gallery(workdir / "gallery").read(0, COUNT), made[0][4])


@contextlib.contextmanager
def nobody():
    """Context in which this process, if it is root's, runs as a user who owns nothing."""
    if os.geteuid():
        yield
        return
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def test_files_that_may_not_be_opened(made, capsys):
    """A gallery, one of its files, or the folder for the upgrade belongs to somebody else."""
    (paths, *_), mapping = made
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(paths["parquet"], folder / "g")
        shutil.copytree(mapping, folder / "map")
        np.save(folder / "x.npy", np.ones((30, 3), np.float32))
        (folder / "closed").mkdir()
        # Import everything first, as that user may not be allowed to read the packages.
        given = ["--map", folder / "map", "--gallery", folder / "g", "--unchecked"]
        words = {
            "file": ["doctor", folder / "g"],
            "array": ["doctor", folder / "x.npy"],
            "folder": ["apply", folder / "closed" / "up", *given],
        }
        words = {key: list(map(str, value)) for key, value in words.items()}
        for each in words.values():
            cli.main(each)
        shutil.rmtree(folder / "closed" / "up")
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        (folder / "closed").chmod(0o555)
        for what, closed, named in (
            ("folder", None, "closed/up"),
            ("file", folder / "g" / "part-1.parquet", "part-1.parquet"),
            ("array", folder / "x.npy", "x.npy"),
        ):
            if closed:
                closed.chmod(0)
            capsys.readouterr()
            with nobody():
                assert cli.main(words[what]) == 1
            one_line(capsys, f"{named}: Permission denied", f"{named} cannot be read: ")
        (folder / "closed").chmod(0o755)


@pytest.mark.parametrize("form", tiny.FORMS)
def test_files_that_go_while_apply_runs(made, tmp_path, form, capsys):
    """A file of the gallery is moved away and comes back; all rows are right in the end."""
    (paths, _, ids, _, new), _ = made
    source = tmp_path / "source"
    if paths[form].is_dir():
        shutil.copytree(paths[form], source)
        gallery = source
    else:
        source.mkdir()
        gallery = Path(shutil.copy(paths[form], source))
    row = {i: r for r, i in enumerate(ids.tolist())}
    files = sorted(f for f in source.iterdir() if f.suffix in (".npy", ".parquet", ".faiss"))
    calls = []

    def reembed(wanted):
        calls.append(len(wanted))
        if len(calls) == 4:
            for file in files:
                file.rename(tmp_path / file.name)
        return new[[row[i] for i in wanted.tolist()]]

    run = Upgrade(tmp_path / "up")
    settings = {"batch_size": 64, "batch_items": 500, "reembed": reembed}
    with contextlib.suppress(OSError, UserError):  # the console prints it as one line
        run.apply(tiny.plain_map(), gallery, **settings)
    assert len(calls) >= 4
    for file in files:
        (tmp_path / file.name).rename(file)
    made_now = run.apply(tiny.plain_map(), gallery, **settings)
    np.testing.assert_array_equal(made_now.read(0, COUNT), new)
    np.testing.assert_array_equal(made_now.ids, ids)
