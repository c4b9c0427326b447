"""Runs an upgrade in child processes that kill themselves (signal 9) at a given moment.

    python tests/helpers/kill_apply.py GALLERY NEW WORKDIR SEED...

A moment is the n-th time that something is written, synced or renamed; a write is cut in the
middle. After every death the next child goes on and dies later, until one reaches the end; on the
way the upgrade is also rolled back once. Every seed has its own directory, WORKDIR/SEED, and its
own line of output, which says how many children were killed.
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

BATCH = 16  # rows that are translated together
ITEMS = 23  # items that are re-embedded together


def run(gallery, new, workdir, max_batches=None):
    """Run the upgrade of the tests, or its first batches."""
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
    """Do what is left of: seven batches, back to the third, on to the end, and the failed items.

    Every seventh item cannot be embedded until the last step.
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
    """Do the work in a process that kills itself when it changes a file for the n-th time."""
    fuse, pwrite = Fuse(moment), os.pwrite

    def half(file, data, at):
        pwrite(file, bytes(data)[: len(bytes(data)) // 2], at)

    os.pwrite = fuse.on(pwrite, half)
    fuse.on_methods(os, "fsync", "rename", "replace")
    work(gallery, new, workdir)


def kill_until_done(gallery: Path, new: Path, workdir: Path, seed: int) -> int:
    """Return how many children were killed before one of them reached the end."""
    rng, count = np.random.default_rng(seed), 0
    while True:
        # Far enough that a rollback, which is one step, can finish.
        if not killed(dies, int(rng.integers(1, 400)), gallery, new, workdir):
            return count
        count += 1


def main() -> None:
    """Run the command."""
    gallery, new, workdir = map(Path, sys.argv[1:4])
    for seed in sys.argv[4:]:
        print(kill_until_done(gallery, new, workdir / seed, int(seed)), flush=True)


if __name__ == "__main__":
    main()
