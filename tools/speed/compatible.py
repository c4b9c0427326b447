"""Measures the time that a compatibility method adds to a training step.

    python tools/benchmark.py --only compatible [--full]

The same step runs with each of five methods and with none, on ResNet-18 with batch 128 and 64 px
(--full), or on a narrower network and smaller images. The rounds alternate, so that all methods
meet the same load.
"""

import contextlib
import io
import tempfile
import time
from pathlib import Path

import jax

from fct_jax import config as configs
from fct_jax.frozen.model import write_model
from fct_jax.runtime import sharding
from fct_jax.train.compatible.task import Compatible
from fct_jax.train.optimizer import build_optimizer
from fct_jax.train.state import State
from fct_jax.train.steps import compile_steps
from tools.speed.common import figure, peak_mb

METHODS = ("bct", "lce", "hot_refresh", "unibct", "advbct")


def run(quick: bool) -> list[dict]:
    """Return a figure per method; see ``tools.speed.common.figure``. ``quick``: under a minute."""
    width, size, batch, rounds = (16, 32, 64, 12) if quick else (64, 64, 128, 12)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        old = _old_run(Path(folder))
        steps = {name: _Step(_config(name, old, width, size, batch)) for name in ("none", *METHODS)}
        times: dict[str, list[float]] = {name: [] for name in steps}
        peak = peak_mb()
        for number in range(rounds):
            # Every second round runs in reverse, so that no method always follows the same one.
            for name in list(steps)[:: -1 if number % 2 else 1]:
                times[name].append(steps[name]())
    # Other programs disturbed the fastest step least.
    best = {name: min(found) for name, found in times.items()}
    note = f"ResNet-18 of width {width}, batch {batch}, {size} px; fastest of {rounds} steps"
    return [
        figure(
            f"training step with {name}",
            best[name],
            best["none"],
            peak_mb() - peak,
            f"{best[name] / best['none'] - 1:+.1%} over the same step without; {note}",
        )
        for name in METHODS
    ]


class _Step:
    """A compiled training step; a call runs it and returns the seconds."""

    def __init__(self, config):
        mesh = sharding.make_mesh()
        self._task = Compatible(config, mesh)
        optimizer = build_optimizer(config.optimizer, config.epochs, 1)
        variables = jax.jit(self._task.init)(jax.random.key(0))
        params = variables["params"]
        fresh = State(jax.numpy.int32(0), params, variables["batch_stats"], optimizer.init(params))
        self._state = jax.device_put(fresh, sharding.replicated(mesh))
        self._run = compile_steps(self._task, optimizer, 0)
        _, self._call = next(iter(self._task.feed.calls(0)))
        self()  # compiles

    def __call__(self) -> float:
        task = self._task
        start = time.perf_counter()
        self._state, _ = self._run(
            self._state, task.feed.data, task.frozen, self._call, 1, freeze=False
        )
        jax.block_until_ready(self._state.params)
        return time.perf_counter() - start


def _config(method: str, old: str, width: int, size: int, batch: int):
    config = configs.compatible()
    config.method, config.old = method, old
    config.model.width, config.preprocessing.size = width, size
    config.batch_size = batch
    return config


def _old_run(folder: Path) -> str:
    """Export a narrow model with random weights that resemble a trained one's."""
    task = Compatible(_config("none", "", 8, 16, 100), sharding.make_mesh())
    variables = task.export(jax.jit(task.init)(jax.random.key(1)))
    write_model(folder / "old" / "model", task.describe(), variables)
    return str(folder / "old")
