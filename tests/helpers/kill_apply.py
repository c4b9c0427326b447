"""Runs an upgrade in child processes that kill themselves (signal 9) at a given moment.

    python tests/kill_apply.py GALLERY NEW WORKDIR SEED...

A moment is the n-th time that something is written, synced or renamed; a write is cut in its
middle. After every death the next child goes on, dies later, and so on; they also
roll back once on the way. Every seed has a directory of its own, WORKDIR/SEED, and its line of
output: how many children were killed.
"""

import os
import sys
from pathlib import Path

import numpy as np
import tiny_galleries as tiny
from killing import Fuse, killed

from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade.migration.journal import Journal, Progress
from fct_jax.upgrade.migration.upgrade import Upgrade

BATCH = 16  # rows translated together
ITEMS = 23  # re-embedded together


def run(gallery, new, workdir, max_batches=None):
    """The upgrade of the tests, or the first batches of it."""
    new = new if callable(new) else str(new)
    return Upgrade(workdir).apply(
        tiny.plain_map(),
        gallery,
        reembed=new,
        batch_size=BATCH,
        batch_items=ITEMS,
        max_batches=max_batches,
    )


def work(gallery, new, workdir):
    """Seven batches, back to the third, on to the end, and what failed: what is still to do.

    Every seventh item cannot be embedded until the end.
    """
    found = EmbeddingSet.read(new)
    row = {i: r for r, i in enumerate(found.ids)}

    def some(ids):
        return [found.vectors[row[i]] if row[i] % 7 else None for i in ids]

    records = Journal(workdir / "journal.jsonl").records
    turned = any(r["kind"] == "rollback" for r in records)
    if not turned:
        if len(Progress(records).stops) < 7:
            run(gallery, some, workdir, 7 - len(Progress(records).stops))
        Upgrade(workdir).rollback(3, map=tiny.plain_map())
    run(gallery, some, workdir)
    run(gallery, new, workdir)


def dies(moment: int, gallery, new, workdir) -> None:
    """The work in a process that kills itself when it changes a file for the n-th time."""
    fuse, pwrite = Fuse(moment), os.pwrite

    def half(file, data, at):
        pwrite(file, bytes(data)[: len(bytes(data)) // 2], at)

    os.pwrite = fuse.on(pwrite, half)
    fuse.on_methods(os, "fsync", "rename", "replace")
    work(gallery, new, workdir)


def kill_until_done(gallery: Path, new: Path, workdir: Path, seed: int) -> int:
    """How many children were killed before one of them came to the end."""
    rng, count = np.random.default_rng(seed), 0
    while True:
        # Far enough that a rollback, which is one step, can come to its end.
        if not killed(dies, int(rng.integers(1, 400)), gallery, new, workdir):
            return count
        count += 1


def main() -> None:
    """The command."""
    gallery, new, workdir = map(Path, sys.argv[1:4])
    for seed in sys.argv[4:]:
        print(kill_until_done(gallery, new, workdir / seed, int(seed)), flush=True)


if __name__ == "__main__":
    main()
