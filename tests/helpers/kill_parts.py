"""Translates a gallery in parts, by several processes at once that kill themselves (signal 9).

    python tests/helpers/kill_parts.py GALLERY WORKDIR SEED...

Three processes work at the same time: one on each of two parts, and a third that is a second start
of the first part. Each dies at a random n-th time that something is written, synced or renamed; a
write is cut in the middle. New ones follow until the gallery is finished. Every seed has its own
directory, WORKDIR/SEED, and its own line of output, which says how many processes were killed.
"""

import os
import sys
from pathlib import Path

import numpy as np
import tiny_galleries as tiny
from killing import Fuse

from fct_jax.upgrade.migration.journal import Journal, Progress
from fct_jax.upgrade.migration.upgrade import Upgrade

PARTS = ("1/2", "2/2", "1/2")


def translate(gallery, workdir, part=None, mapping=None):
    """Translate one part of a gallery; None: all of it, in one process."""
    mapping = mapping or tiny.plain_map()
    return Upgrade(workdir).apply(mapping, gallery, batch_size=16, unchecked=True, part=part)


def dies(moment: int, gallery, workdir, part) -> None:
    """Translate a part in a process that kills itself when it changes a file for the n-th time."""
    fuse, pwrite = Fuse(moment), os.pwrite

    def half(file, data, at):
        pwrite(file, bytes(data)[: len(bytes(data)) // 2], at)

    os.pwrite = fuse.on(pwrite, half)
    fuse.on_methods(os, "fsync", "rename", "replace")
    translate(gallery, workdir, part, workdir.parent / "map")


def started(moment: int, gallery, workdir, part) -> int:
    """Start a process that translates a part and dies; return its number."""
    child = os.fork()
    if child:
        return child
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 – never closed
    try:
        dies(moment, gallery, workdir, part)
    except BaseException as error:
        os.write(2, f"{part}: {type(error).__name__}: {error}\n".encode())
        os._exit(1)
    os._exit(0)


def finished(workdir) -> bool:
    return Progress(Journal(workdir / "journal.jsonl").records).ready


def kill_until_done(gallery: Path, workdir: Path, seed: int) -> int:
    """Return how many processes were killed before the gallery was finished."""
    rng, count = np.random.default_rng(seed), 0
    while not finished(workdir):
        moments = rng.integers(1, 40, len(PARTS)).tolist()
        children = [
            started(moment, gallery, workdir, part)
            for moment, part in zip(moments, PARTS, strict=True)
        ]
        for child in children:
            _, status = os.waitpid(child, 0)
            if os.WIFEXITED(status) and os.WEXITSTATUS(status):
                raise RuntimeError("a part failed")
            count += os.WIFSIGNALED(status)
    return count


def main() -> None:
    """Run the command."""
    gallery, workdir = map(Path, sys.argv[1:3])
    tiny.plain_map().save(workdir / "map")
    for seed in sys.argv[3:]:
        print(kill_until_done(gallery, workdir / seed, int(seed)), flush=True)


if __name__ == "__main__":
    main()
