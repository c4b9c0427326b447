"""Trains a classifier over many classes, split or whole; test_large_classes.py runs it.

Usage: train_large_classes.py FOLDER, on 8 devices; results.json has the results for each number of
classes.
"""

import json
import re
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fct_jax import config as configs
from fct_jax import losses
from fct_jax.data.sampling import Shuffled
from fct_jax.models.linear import Classifier, Linear
from fct_jax.runtime import sharding
from fct_jax.train.checkpoint import Checkpoints
from fct_jax.train.feeds import ResidentFeed
from fct_jax.train.large_classes import with_padded_classes
from fct_jax.train.optimizer import build_optimizer
from fct_jax.train.state import fresh_state
from fct_jax.train.steps import compile_steps

DIM, BATCH, STEPS = 8, 32, 3
CASES = {  # classes -> base loss, optimizer
    100_003: ("arcface", "sgd"),
    81_313: ("softmax", "adam"),
    93_431: ("circle", "lars"),
}


class Model(nn.Module):
    """Vectors (N, 6) -> (logits, embedding)."""

    classes: int

    @nn.compact
    def __call__(self, x):
        embedding = Linear(DIM, name="projection")(x)
        return Classifier(self.classes, name="classifier")(embedding), embedding


class Task:
    """Base loss, label smoothing and a centre loss, on random vectors."""

    def __init__(self, classes: int, kind: str, mesh):
        rng = np.random.default_rng(0)
        data = {
            "x": rng.standard_normal((2 * BATCH, 6)).astype(np.float32),
            "label": rng.integers(0, classes, 2 * BATCH).astype(np.int32),
        }
        data["label"][::5] = classes - 1  # the last class, next to the padding
        self._model, self._kind, self._classes = Model(classes), kind, classes
        self.feed = ResidentFeed(
            data,
            2 * BATCH,
            lambda data, rows, key: {name: value[rows] for name, value in data.items()},
            sampler=Shuffled(2 * BATCH, BATCH),
            mesh=mesh,
            steps_per_call=1,
        )

    def init(self, key):
        params = self._model.init(key, jnp.zeros((1, 6)))["params"]
        centers = jax.random.normal(key, (self._classes, DIM))
        return {"params": {**params, "metric": {"centers": centers}}, "batch_stats": {}}

    def loss(self, variables, frozen, batch, step, key, freeze):
        params = variables["params"]
        assert params["classifier"]["kernel"].shape == (DIM, self._classes)
        logits, embedding = self._model.apply(variables, batch["x"])
        assert logits.shape == (BATCH, self._classes)
        kernel = params["classifier"]["kernel"]
        embedding, labels = map(sharding.for_classes, (embedding, batch["label"]))
        logits = losses.base_logits(self._kind, embedding, kernel.T, labels, 30.0, 0.3)
        loss = losses.label_smoothed_cross_entropy(logits, labels, 0.1).mean()
        loss += 1e-3 * losses.center_loss(embedding, labels, params["metric"]["centers"])
        return loss, ({}, {"accuracy": jnp.mean(jnp.argmax(logits, -1) == labels)})

    def export(self, variables):
        return variables


def run(classes: int, data: int, model: int, folder: Path) -> tuple[dict, dict]:
    """Return (exported parameters, observations) of a few steps on data x model devices."""
    devices = jax.devices()[: data * model]
    axes = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((data, model), ("data", "model"), axes, devices=devices)
    kind, optimizer = CASES[classes]
    options = configs.optimizer()
    options.name, options.lr = optimizer, 1e-3 if optimizer == "adam" else 0.1
    options.schedule.warmup_epochs = 0
    task = with_padded_classes(Task(classes, kind, mesh), mesh)
    optimizer = build_optimizer(options, 4, 2)
    steps = compile_steps(task, optimizer, 0, mesh=mesh)
    state = fresh_state(task, optimizer, 0, mesh)
    seen = {"shards": {}, "losses": [], "collectives": []}
    for path, array in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if sharding.class_axis(path) is not None:
            part = array.addressable_shards[0].data.size
            seen["shards"][name] = array.size / part
    step = 0
    while step < STEPS:
        for count, call in task.feed.calls(step):
            arguments = state, task.feed.data, (), call
            if not step:
                program = steps.lower(*arguments, freeze=False, platform="cpu")
                seen["collectives"] = collectives(program.compile().as_text())
            state, sums = steps(*arguments, count, freeze=False)
            seen["losses"].append(float(sums["loss"]))
            step += count
    if model > 1:  # a checkpoint of this mesh
        checkpoints = Checkpoints(folder / str(classes), 1)
        checkpoints.save(step, state, {})
        checkpoints.close()
    else:  # restored on another
        checkpoints = Checkpoints(folder / str(classes), 1)
        like = fresh_state(task, optimizer, 1, mesh)
        restored = checkpoints.restore(like)[0]
        checkpoints.close()
        kernel = restored.params["classifier"]["kernel"]
        seen["restored"] = float(jnp.abs(kernel - state.params["classifier"]["kernel"]).max())
    exported = task.export(jax.device_get(state.variables))["params"]
    return exported, seen


def collectives(text: str) -> list[tuple[str, int]]:
    """Return (operation, elements of its result) of every collective in a program."""
    found = []
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    for line in text.splitlines():
        match = re.search(rf"= (.*?) ({kinds})(-start)?\(", line)
        if match:
            shapes = re.findall(r"\[([\d,]*)\]", match[1])
            sizes = [int(np.prod([int(n) for n in s.split(",") if n])) for s in shapes]
            found.append((match[2], max(sizes)))
    return found


def main(folder: Path) -> None:
    jax.config.update("jax_default_matmul_precision", "highest")
    results = {}
    for classes in CASES:
        split, seen = run(classes, 2, 4, folder)
        whole, alone = run(classes, 1, 1, folder)
        difference = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), split, whole)
        results[classes] = {
            "seen": seen,
            "alone": alone,
            "difference": max(jax.tree.leaves(difference)),
            "shape": split["classifier"]["kernel"].shape,
        }
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
