"""A file system of its own in a folder, to fill it or make it read-only."""

import contextlib
import subprocess

import pytest


@contextlib.contextmanager
def disk(folder, size):
    """Context of a separate file system in a folder; yields a function that changes it."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, timeout=60)
    if done.returncode:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    try:
        yield lambda options: subprocess.run(
            ["mount", "-o", f"remount,{options}", str(folder)], check=True, timeout=60
        )
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=60)
