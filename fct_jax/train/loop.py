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

import signal
from pathlib import Path

import jax
import jax.numpy as jnp

from fct_jax import config as configs
from fct_jax import sharding
from fct_jax.errors import unknown
from fct_jax.frozen import read_description, write_model
from fct_jax.progress import Bar
from fct_jax.train.backbone import Backbone
from fct_jax.train.checkpoint import Checkpoints
from fct_jax.train.compatible import Compatible
from fct_jax.train.metrics_log import MetricsLog
from fct_jax.train.optimizer import build_optimizer
from fct_jax.train.running_means import RunningMeans
from fct_jax.train.simclr import SimCLR
from fct_jax.train.state import State
from fct_jax.train.steps import compile_steps
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


def _on_sigterm() -> list:
    """A list that is filled when the process is asked to end."""
    received = []
    try:
        signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    except ValueError:  # not the main thread (under a test runner, say): nothing to catch
        return received
    return received
