"""The training loop, the same for every task.

A task (``backbone.py``, ``transformation.py``, …) is a class with

    feed                            a ResidentFeed or StreamFeed
    frozen                          pytree of arrays that a step reads and never changes
    init(key) -> variables          fresh parameters and running statistics
    warm_start(variables)           the same with pretrained weights, where the config names some
    loss(variables, frozen, batch, step, key, freeze_batch_norm)
        -> (loss, (new batch_stats, metrics))       one traced step; ``step`` counts from 0
    freeze_batch_norm(epoch)        whether BatchNorm runs in inference mode
    evaluate(variables) -> metrics  on the validation split
    describe() -> dict              what ``model.json`` says of the model
    export(variables) -> variables  of the model alone, without what only its training needs
    finish(workdir, fingerprint, variables)      writes what the run leaves beside its model
"""

import functools
import math
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp

from fct_jax import config as configs
from fct_jax import sharding
from fct_jax.errors import UserError, unknown
from fct_jax.frozen import read_description, write_model
from fct_jax.progress import Bar
from fct_jax.train.backbone import Backbone
from fct_jax.train.checkpoint import Checkpoints
from fct_jax.train.compatible import Compatible
from fct_jax.train.metrics_log import MetricsLog
from fct_jax.train.optimizer import build_optimizer
from fct_jax.train.simclr import SimCLR
from fct_jax.train.state import State
from fct_jax.train.transformation import TransformationTask
from fct_jax.workdir import claim_workdir

TASKS = {
    "backbone": Backbone,
    "transformation": TransformationTask,
    "compatible": Compatible,
    "simclr": SimCLR,
}


def train(config, workdir, allow_config_change: bool = False) -> None:
    """Trains until the end, from the last checkpoint where there is one, and exports the model.

    Args:
      config: an ml_collections ConfigDict of ``fct_jax.config``.
      workdir: the run's directory.
      allow_config_change: go on although the directory holds another config.

    Raises:
      UserError: a mistake in the config, the data or the directory; or a loss that is not finite.
    """
    workdir = Path(workdir)
    configs.check(config)
    if config.task not in TASKS:
        raise unknown("task to train", config.task, TASKS)
    mesh = sharding.make_mesh(**config.mesh)
    sharding.check_batch_size(config.batch_size, mesh)
    if (workdir / "model").is_dir():
        claim_workdir(config, workdir, allow_config_change)
        print(f"{workdir} is finished: model {read_description(workdir)['fingerprint']}")
        return
    task = TASKS[config.task](config, mesh)
    claim_workdir(config, workdir, allow_config_change)

    steps_per_epoch = task.feed.steps_per_epoch
    optimizer = build_optimizer(config.optimizer, config.epochs, steps_per_epoch)
    checkpoints = Checkpoints(workdir / "checkpoints", config.keep_checkpoints)
    state = _start(task, optimizer, config.seed, checkpoints, mesh)
    log = MetricsLog(workdir, int(state.step))
    try:
        state = _epochs(config, task, optimizer, state, checkpoints, log)
    finally:
        checkpoints.close()
        log.close()
    count = sum(array.size for array in jax.tree.leaves(state.params))
    model = task.export(state.variables)
    fingerprint = write_model(workdir / "model", task.describe(), model)
    task.finish(workdir, fingerprint, state.variables)
    print(f"{workdir}: {count:,} parameters, model {fingerprint}")


def _start(task, optimizer, seed: int, checkpoints: Checkpoints, mesh) -> State:
    """Fresh parameters, made on the devices in their sharding, or the last checkpoint."""

    def fresh(key) -> State:
        variables = task.init(key)
        params = variables["params"]
        return State(jnp.int32(0), params, variables.get("batch_stats", {}), optimizer.init(params))

    key = jax.random.key(seed)
    shardings = sharding.of_state(jax.eval_shape(fresh, key), mesh)
    state = jax.jit(fresh, out_shardings=shardings)(key)
    found = checkpoints.restore(state)
    if found is None:
        variables = task.warm_start(state.variables)
        return state._replace(params=variables["params"], batch_stats=variables["batch_stats"])
    state, position = found
    task.feed.seek(position)
    print(f"going on from step {int(state.step)}")
    return state


def _epochs(config, task, optimizer, state, checkpoints, log) -> State:
    """The loop itself: calls, metrics, checkpoints, evaluation."""
    run = compile_steps(task, optimizer, config.seed)
    per_epoch = task.feed.steps_per_epoch
    step, end = int(state.step), config.epochs * per_epoch
    save_every = config.checkpoint_every_steps or per_epoch
    running = RunningMeans(checkpoints)
    terminated = _on_sigterm()

    with Bar("training", end, "steps", done=step) as bar:
        while step < end:
            epoch = step // per_epoch
            freeze = task.freeze_batch_norm(epoch)
            for steps, call in running.timed(task.feed.calls(step)):
                state, sums = run(state, task.feed.data, task.frozen, call, steps, freeze=freeze)
                before, step = step, step + steps
                running.add(sums, steps, step)
                bar.advance(steps, running.note)
                if terminated or step // save_every > before // save_every or step == end:
                    running.fetch()  # never save after a loss that is not finite
                    checkpoints.save(step, state, task.feed.position())
                due = step // config.log_every_steps > before // config.log_every_steps
                if due or step == end:
                    log.write(step, running.means("train/"))
                if terminated:
                    checkpoints.wait()
                    print(f"terminated: saved at step {step}; the same command goes on from there")
                    raise SystemExit(0)
            epoch += 1
            if epoch % config.evaluate_every_epochs == 0 or step == end:
                metrics = task.evaluate(state.variables)
                log.write(step, {f"validation/{name}": value for name, value in metrics.items()})
                said = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
                print(f"epoch {epoch}/{config.epochs}: {said}", flush=True)
    return state


def compile_steps(task, optimizer, seed: int):
    """The compiled call ``(state, data, frozen, call, steps, freeze=) -> (state, metric sums)``.

    A call of several steps runs them inside one loop on the device; ``steps``, which may be
    fewer than the call has room for, varies without compiling again.
    """
    key = jax.random.key(seed + 1)  # not the key of the initial parameters

    def update(state: State, data, frozen, element, key, freeze):
        pick_key, loss_key = jax.random.split(jax.random.fold_in(key, state.step))
        batch = task.feed.pick(data, element, pick_key)

        def objective(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            return task.loss(variables, frozen, batch, state.step, loss_key, freeze)

        (loss, (batch_stats, metrics)), gradients = jax.value_and_grad(objective, has_aux=True)(
            state.params
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p + u, state.params, updates)
        return State(state.step + 1, params, batch_stats, opt_state), {"loss": loss, **metrics}

    @functools.partial(jax.jit, donate_argnums=0, static_argnames="freeze")
    def run(state, data, frozen, call, steps, *, key, freeze):
        def element(i):
            return jax.tree.map(lambda array: array[i], call)

        if jax.tree.leaves(call)[0].shape[0] == 1:
            return update(state, data, frozen, element(0), key, freeze)

        def body(i, carry):
            state, sums = carry
            state, metrics = update(state, data, frozen, element(i), key, freeze)
            return state, jax.tree.map(jnp.add, sums, metrics)

        shapes = jax.eval_shape(
            lambda s: update(s, data, frozen, element(0), key, freeze)[1], state
        )
        zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        return jax.lax.fori_loop(0, steps, body, (state, zeros))

    # The key is an argument, so that a compilation cache serves every seed.
    return functools.partial(run, key=key)


class RunningMeans:
    """Means of the steps' metrics since the last log entry, rate and time spent waiting for data.

    The sums of a call are fetched while the next call runs, so that the device never waits.
    """

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints
        self._waiting = None
        self._sums, self._steps = {}, 0
        self._since, self._waited = time.perf_counter(), 0.0
        self.note = ""

    def timed(self, calls: Iterable) -> Iterator:
        """The feed's calls; the time that each one is waited for is counted."""
        calls = iter(calls)
        while True:
            start = time.perf_counter()
            call = next(calls, None)
            self._waited += time.perf_counter() - start
            if call is None:
                return
            yield call

    def add(self, sums: dict, steps: int, step: int) -> None:
        """Takes a call's sums over ``steps`` steps; ``step`` is the count after it."""
        self.fetch()
        self._waiting = sums, steps, step

    def fetch(self) -> None:
        """Waits for the last call. Raises UserError on a loss that is not finite."""
        if self._waiting is None:
            return
        sums, steps, step = self._waiting
        self._waiting = None
        sums = {name: float(value) for name, value in sums.items()}
        if not math.isfinite(sums["loss"]):
            self._checkpoints.wait()
            saved = self._checkpoints.latest_step
            kept = "no checkpoint was made yet" if saved is None else f"checkpoint {saved} is kept"
            raise UserError(
                f"the loss is no longer finite by step {step}; {kept}; "
                "a smaller config.optimizer.lr often helps"
            )
        self.note = f"loss {sums['loss'] / steps:.4f}"
        self._sums = {name: self._sums.get(name, 0.0) + value for name, value in sums.items()}
        self._steps += steps

    def means(self, prefix: str) -> dict[str, float]:
        """The means since the last time by prefixed name; "data_wait" is a share of the time."""
        self.fetch()
        found = {name: value / self._steps for name, value in self._sums.items()}
        elapsed = time.perf_counter() - self._since
        found |= {"steps_per_second": self._steps / elapsed, "data_wait": self._waited / elapsed}
        self._sums, self._steps = {}, 0
        self._since, self._waited = time.perf_counter(), 0.0
        return {prefix + name: value for name, value in found.items()}


def _on_sigterm() -> list:
    """A list that is filled when the process is asked to end."""
    received = []
    try:
        signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    except ValueError:  # not the main thread (under a test runner, say): nothing to catch
        return received
    return received
