"""Crash-safe writes and the lock."""

import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import LONG

from fct_jax.errors import UserError
from fct_jax.storage import checksums
from fct_jax.storage.files import Lock, write_synced


def test_without_fcntl_the_package_is_imported_and_locks_refuse_nobody(tmp_path):
    """This is the case on Windows, which has no ``fcntl`` and cannot sync directories."""
    program = (
        "import sys; sys.modules['fcntl'] = None\n"
        "from fct_jax.storage.files import Lock\n"
        "import fct_jax.upgrade.migration.steps, fct_jax.storage.partial\n"
        f"first, second = Lock({tmp_path!r} / 'x'), Lock({tmp_path!r} / 'x')\n"
        "first.take(); second.take(); second.close(); first.remove()\n"
    ).replace("PosixPath", "__import__('pathlib').Path")
    subprocess.run([sys.executable, "-c", program], check=True, timeout=LONG)


def test_a_lock_says_what_it_is_told_to(tmp_path):
    with (
        Lock(tmp_path / "x", "somebody is there"),
        pytest.raises(UserError, match="^somebody is there$"),
    ):
        Lock(tmp_path / "x", "somebody is there").take()
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_content(tmp_path, monkeypatch):
    write_synced(tmp_path / "x", b"old")

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_synced(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"


@pytest.mark.parametrize("block", [1, 3, 7, 64])
def test_running_shards(tmp_path, block):
    """With blocks of any size and after a stop, damage is found in its shard."""
    vectors = np.arange(40 * 3, dtype=np.float32).reshape(40, 3)
    np.save(tmp_path / "vectors.npy", vectors)
    shards = checksums.shards_of(tmp_path / "vectors.npy", 16)

    def run(values):
        state = 0
        for start in range(0, 40, block):
            running = checksums.RunningShards(tmp_path / "vectors.npy", shards, start, state)
            running.take(values[start : start + block])
            state = running.state

    run(vectors)
    damaged = vectors.copy()
    damaged[20, 1] += 1
    with pytest.raises(UserError, match=r"is damaged in shard 1 \(rows 16–31\)"):
        run(damaged)


def test_lock_is_for_one_run_or_shared_in_it(tmp_path):
    first, second, third = (Lock(tmp_path / "set") for _ in range(3))
    first.take()
    for refused in (second.take, second.share):
        with pytest.raises(UserError, match="another run"):
            refused()
    first.share()
    second.share()
    with pytest.raises(UserError, match="another run"):
        third.take()
    first.remove()
    second.close()
    third.take()
    assert third.held and not first.held
    third.remove()
    assert list(tmp_path.iterdir()) == []


@given(first=st.binary(max_size=300), second=st.binary(max_size=300))
def test_checksums_of_parts_are_joined(first, second):
    found = checksums.combined(zlib.crc32(first), zlib.crc32(second), len(second))
    assert found == zlib.crc32(first + second)
