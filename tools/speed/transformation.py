"""Measures training transformations and translating galleries, against bare compiled code.

    python tools/benchmark.py --only transformation

It uses random vectors of 128 dimensions and the published sizes (batch 1024, inner width 2048).
"""

import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fct_jax import config as configs
from fct_jax import models
from fct_jax.embed.transform import transform_set
from fct_jax.frozen.model import Transformer
from fct_jax.runtime import sharding
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.train.checkpoint import Checkpoints
from fct_jax.train.optimizer import build_optimizer
from fct_jax.train.running_means import RunningMeans
from fct_jax.train.state import fresh_state
from fct_jax.train.steps import compile_steps
from fct_jax.train.transformation import TransformationTask
from tools.speed.accelerators import accelerator, device_peak_mb
from tools.speed.common import figure, peak_mb, seconds

DIMS, CLASSES, EPOCHS = 128, 100, 80


def run(quick: bool) -> list[dict]:
    """Return all figures; see ``tools.speed.common.figure``. ``quick``: under a minute."""
    with tempfile.TemporaryDirectory() as folder:
        epoch = _epoch(Path(folder), 8_192 if quick else 50_000)
        return [
            epoch,
            _whole_training(epoch["ours_s"], 8_192 if quick else 50_000, 4 if quick else 16),
            _translation(Path(folder), 40_000 if quick else 400_000),
        ]


def _task(folder: Path, samples: int):
    """Return a FastFill task on random EmbeddingSets, as the train command builds it."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, samples)
    for name in ("old", "new"):
        vectors = rng.standard_normal((samples, DIMS), np.float32)
        EmbeddingSet.of(vectors, labels=labels).write(folder / name)
    np.save(folder / "classifier.npy", rng.standard_normal((CLASSES, DIMS), np.float32))
    config = configs.transformation()
    config.model.name = "fastfill"
    config.loss.discriminative_weight = 1.0
    config.old, config.new = str(folder / "old"), str(folder / "new")
    config.classifier = str(folder / "classifier.npy")
    mesh = sharding.make_mesh()
    return config, TransformationTask(config, mesh), mesh


def _epoch(folder: Path, samples: int) -> dict:
    """Compare one epoch through the parts of the training loop with only its compiled steps."""
    config, task, mesh = _task(folder, samples)
    steps_per_epoch = task.feed.steps_per_epoch
    optimizer = build_optimizer(config.optimizer, EPOCHS, steps_per_epoch)
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    state = fresh_state(task, optimizer, 0, mesh)
    steps_of = compile_steps(task, optimizer, 0)
    calls = list(task.feed.calls(0))
    for steps, call in calls[:1]:  # compiles
        state, _ = steps_of(state, task.feed.data, task.frozen, call, steps, freeze=False)
    jax.block_until_ready(state.params)

    start = time.perf_counter()
    for steps, call in calls:
        state, _ = steps_of(state, task.feed.data, task.frozen, call, steps, freeze=False)
    jax.block_until_ready(state.params)
    bare = time.perf_counter() - start

    running = RunningMeans(checkpoints)
    start = time.perf_counter()
    step = 0
    for steps, call in task.feed.calls(0):
        state, sums = steps_of(state, task.feed.data, task.frozen, call, steps, freeze=False)
        step += steps
        running.add(sums, steps, step)
    running.means("")
    jax.block_until_ready(state.params)
    ours = time.perf_counter() - start
    checkpoints.close()
    share = min(bare / ours, 1)
    note = f"{100 * share:.0f} % of the time inside compiled code; {steps_per_epoch} steps"
    if device := accelerator():
        operations = _operations_of_a_step(steps_of, state, task, calls[0][1]) * steps_per_epoch
        note += f"; {samples / ours:,.0f} vectors/s, {device.share(operations, ours)}"
    peak = device_peak_mb() or peak_mb()
    return figure(f"FastFill epoch, {samples:,} samples", ours, bare, peak, note)


def _operations_of_a_step(steps_of, state, task, call) -> float:
    """Return the operations of a training step; XLA counts the body of a loop over steps once."""
    lowered = steps_of.lower(
        state, task.feed.data, task.frozen, call, freeze=False, platform=jax.default_backend()
    )
    return lowered.cost_analysis()["flops"]


def _whole_training(epoch_s: float, samples: int, images: int) -> dict:
    """Compare 80 epochs on cached embeddings with recomputing three ResNet-50s in each step."""
    module = models.build("resnet50", num_classes=CLASSES)
    batch = jnp.zeros((images, 224, 224, 3))
    variables = jax.jit(module.init)(jax.random.key(0), batch)
    forward = jax.jit(lambda v, x: module.apply(v, x)[1])
    forward(variables, batch).block_until_ready()
    image_s = seconds(lambda: forward(variables, batch).block_until_ready()) / images
    training = EPOCHS * epoch_s
    caching = 2 * 3 * samples * image_s  # two views, three models
    recomputing = EPOCHS * 3 * samples * image_s + training
    note = (
        f"both scaled: {EPOCHS} × the epoch above, and {1000 * image_s:.0f} ms for an image's "
        f"embedding at 224 px, measured on {images}; caching included ({caching:.0f} s)"
    )
    name = f"{EPOCHS} epochs from cached embeddings, {samples:,} images"
    return figure(name, training + caching, recomputing, peak_mb(), note)


def _translation(folder: Path, rows: int) -> dict:
    """Compare translating a mapped gallery by FastFill with only the compiled forward pass."""
    rng = np.random.default_rng(0)
    EmbeddingSet.of(rng.standard_normal((rows, DIMS), np.float32)).write(folder / "gallery")
    module = models.build("fastfill", embedding_dim=DIMS)
    block = jnp.asarray(rng.standard_normal((4096, DIMS), np.float32))
    variables = jax.jit(module.init)(jax.random.key(0), block, block)
    description = {
        "name": "fastfill",
        "kwargs": {"embedding_dim": DIMS},
        "dim": DIMS,
        "old_dim": DIMS,
        "needs_side": False,
        **dict.fromkeys(
            ("fingerprint", "old_fingerprint", "new_fingerprint", "side_fingerprint"), None
        ),
    }
    transformer = Transformer(description, variables)
    jax.block_until_ready(transformer.run(block))
    before = peak_mb()
    gallery = EmbeddingSet.read(folder / "gallery")
    ours = seconds(lambda: transform_set(transformer, gallery, None, folder / "moved"))
    peak = peak_mb() - before

    def bare() -> None:
        for _ in range(rows // 4096):
            result = transformer.run(block)
        jax.block_until_ready(result)

    baseline = seconds(bare) * rows / (rows // 4096 * 4096)
    note = f"{rows / ours:,.0f} vectors/s, read from and written to disk, uncertainties included"
    if device := accelerator():
        weights = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim == 2)
        note += f"; {device.share(2 * weights * rows, ours)}"
        peak = device_peak_mb() or peak
    return figure(f"translating {rows:,} vectors", ours, baseline, peak, note)
