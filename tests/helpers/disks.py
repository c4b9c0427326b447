"""A file system of its own in a folder, to fill it or make it read-only."""

import contextlib
import subprocess

import pytest
from patience import LONG


@contextlib.contextmanager
def disk(folder, size):
    """Context of a separate file system in a folder; yields a function that changes it."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, timeout=LONG)
    if done.returncode:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    # A process of its own unmounts it at the end of its input, even if this one is killed.
    words = ["sh", "-c", 'trap "" INT TERM; cat; umount -l "$0"', str(folder)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True) as end:
        yield lambda options: subprocess.run(
            ["mount", "-o", f"remount,{options}", str(folder)], check=True, timeout=LONG
        )
    assert end.returncode == 0
