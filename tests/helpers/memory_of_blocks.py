"""Measures the memory that reading a gallery block by block takes, in a process of its own.

Usage: memory_of_blocks.py GALLERY ROWS OUT; see `memory_of_blocks`.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
from patience import LONG

from fct_jax.upgrade.galleries.base import open_gallery


def memory_of_blocks(gallery: Path, rows: int) -> tuple[float, np.ndarray]:
    """Read a gallery in blocks of so many rows.

    Returns:
      The largest memory of the process in MB, with its modules, and the sum (D,) of the vectors.
    """
    out = gallery.with_name("sums.npy")
    words = [sys.executable, __file__, gallery, str(rows), out]
    done = subprocess.run(words, capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 0, done.stderr
    return float(done.stdout), np.load(out)


def main(where: str, rows: str, out: str) -> None:
    """Print the memory, and write the sum."""
    gallery = open_gallery(where)
    blocks = (vectors.sum(axis=0, dtype=np.float64) for _, vectors in gallery.blocks(int(rows)))
    np.save(out, sum(blocks, np.zeros(gallery.dim)))
    # `getrusage` would count the process that started this one, too.
    status = Path("/proc/self/status").read_text()
    print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)


if __name__ == "__main__":
    main(*sys.argv[1:])
