"""Embeds in child processes that kill themselves (signal 9) at a given moment.

    python tests/helpers/kill_embed.py KIND FOLDER SEED...

KIND is "images" or "vectors". A moment is the n-th time that something is written, synced or
renamed; a write is cut in the middle. After every death the next child goes on and dies later,
until one reaches the end. Every seed has its own set, FOLDER/SEED, and its own line of output,
which says how many children were killed.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
import tiny_models
from killing import Fuse, killed

from fct_jax.embed.images import embed_images
from fct_jax.embed.transform import transform_set
from fct_jax.frozen.callable_model import CallableModel
from fct_jax.frozen.model import load_model
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.storage.rows import Columns

BATCH, SHARD = 40, 160  # 797 rows in 5 shards, the last of which is shorter
BAD = (3, 170, 171, 500)  # images that cannot be read
DEADLINE = 1200  # seconds


def embed(kind: str, folder: Path, out: Path) -> EmbeddingSet:
    """Embed the set; every child calls this."""
    if kind == "images":
        source = tiny_models.Patchy(tiny_models.digits(), BAD)
        model = CallableModel("tiny_models:pixels")
        sizes = {"batch_size": BATCH, "shard_size": SHARD}
        return embed_images(model, source, out, on_error="skip", num_classes=10, **sizes)
    old = EmbeddingSet.read(folder / "old")
    return transform_set(load_model(folder / "transformation"), old, None, out, BATCH, SHARD)


def dies(moment: int, kind: str, folder: Path, out: Path) -> None:
    """Call `embed` in a process that kills itself when it changes a file for the n-th time."""
    fuse, write = Fuse(moment), Columns.write

    def half(files, name, row, array, *_):
        write(files, name, row, array[: len(array) // 2])
        files.sync()

    Columns.write = fuse.on(write, half)
    fuse.on_methods(os, "fsync", "rename", "replace", "rmdir")
    embed(kind, folder, out)


def records(out: Path) -> dict[str, int]:
    """Return the time at which each finished shard was recorded, in nanoseconds."""
    folder = out.with_name(f".{out.name}.partial") / "shards"
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")}


def kill_until_done(kind: str, folder: Path, out: Path, seed: int) -> int:
    """Return how many children were killed before one reached the end; raise if one failed."""
    rng = np.random.default_rng(seed)
    end, count = time.monotonic() + DEADLINE, 0
    while time.monotonic() < end:
        before = records(out)
        if not killed(dies, int(rng.integers(1, 50)), kind, folder, out):
            return count
        count += 1
        after = records(out)
        if out.exists():  # it was killed after it had finished
            EmbeddingSet.read(out)
            return count
        assert all(after[name] == when for name, when in before.items()), "a shard was made again"
    raise TimeoutError(f"no child came to the end in {DEADLINE} s")


def main() -> None:
    """Run the command."""
    kind, folder = sys.argv[1], Path(sys.argv[2])
    for seed in sys.argv[3:]:
        print(kill_until_done(kind, folder, folder / seed, int(seed)), flush=True)


if __name__ == "__main__":
    main()
