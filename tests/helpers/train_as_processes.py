"""Trains, resumes, embeds and evaluates; test_multiprocess.py runs it as several processes.

Usage: train_as_processes.py FOLDER PORT INDEX COUNT; at the end it trains until SIGTERM comes.
"""

import sys
from pathlib import Path

import jax
import numpy as np
import tiny_runs
from patience import LONG

from fct_jax import config as configs
from fct_jax.embed.command import embed
from fct_jax.evaluate.command import evaluate
from fct_jax.runtime import processes
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.train.loop import train


def streamed(**changes):
    """Return the config of a BatchNorm backbone on streamed images: two epochs of 3 steps."""
    config = tiny_runs.backbone(
        data__in_memory="no",
        data__classes="",
        batch_size=320,
        optimizer__lr=1e-3,
        evaluate_every_epochs=1,
        log_every_steps=1,
        keep_checkpoints=9,
        checkpoint_every_steps=2,  # in the middle of an epoch
        keep_best="min loss",
    )
    return tiny_runs.changed(config, changes)


def resident(folder, **changes):
    """Return the config of FastFill on resident embeddings, with its own classifier."""
    sets = folder / "sets"
    config = tiny_runs.transformation(sets / "old", sets / "new", "fastfill", epochs=1)
    config.classifier = str(sets / "classifier.npy")
    config.batch_size = 64
    config.log_every_steps = 4
    config.optimizer.schedule.warmup_epochs = 0
    config.validation_old, config.validation_new = str(sets / "old"), str(sets / "new")
    return tiny_runs.changed(config, changes)


def endless(folder, **changes):
    """Return the config of a resident training that ends only by a signal."""
    return resident(folder, epochs=100_000, checkpoint_every_steps=8, **changes)


def write_sets(folder: Path) -> None:
    """Write old and new vectors of the same 512 items."""
    rng = np.random.default_rng(0)
    old = rng.standard_normal((512, 8), np.float32)
    new = np.tanh(old @ rng.standard_normal((8, 8), np.float32))
    ids, labels = np.arange(512), rng.integers(0, 5, 512)
    for name, vectors in (("old", old), ("new", new)):
        EmbeddingSet(vectors, ids, labels, meta={"fingerprint": name}).write(folder / name)
    np.save(folder / "classifier.npy", rng.standard_normal((5, 8), np.float32))


def stages(folder: Path) -> None:
    """Run everything that is compared: the same calls on any number of processes."""
    train(streamed(), folder / "streamed")
    train(resident(folder), folder / "resident")
    images = tiny_runs.changed(
        configs.embed(), {"model": str(folder / "streamed"), "batch_size": 64, "shard_size": 128}
    )
    embed(images, folder / "set")
    moved = f"fastfill={folder / 'resident'}"
    sets = folder / "sets"
    evaluate(tiny_runs.evaluation(sets / "old", sets / "new", moved), folder / "report")


def main(folder: Path, port: str, index: int, count: int) -> None:
    jax.config.update("jax_default_matmul_precision", "highest")
    processes.start(f"localhost:{port}", index, count, timeout=LONG)
    stages(folder)
    train(streamed(), folder / "continued")
    try:
        train(endless(folder), folder / "endless")
    except SystemExit as ended:
        print("ended with", ended.code, flush=True)
    processes.barrier("end")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
