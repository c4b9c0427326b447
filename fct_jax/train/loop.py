"""The training loop, the same for every task.

A task (``backbone.py``, ``transformation.py``, …) is a class with

    feed                            a ResidentFeed or StreamFeed
    frozen                          pytree of arrays that a step reads and never changes
    init(key) -> variables          fresh parameters and running statistics
    warm_start(variables)           the same with pretrained weights, if the config names some
    loss(variables, frozen, batch, step, key, freeze_batch_norm)
        -> (loss, (new batch_stats, metrics))       one traced step; ``step`` counts from 0
    freeze_batch_norm(epoch)        whether BatchNorm runs in inference mode
    metrics                         names of evaluate's metrics; () without a validation split
    evaluate(variables) -> metrics  on the validation split; with a large classifier also
                                    ``cut``, to be called on the variables in compiled code
    summary() -> [str]              lines about models and images, printed before training starts
    describe() -> dict              the entries of ``model.json``
    export(variables) -> variables  of the model alone, without those that only training needs
    finish(workdir, fingerprint, variables)      writes the run's other results beside its model;
                                    called again if the run was killed before it had its model

With several processes each of them calls all of this, except ``finish`` and the file
operations of this module, which are the writer's.
"""

import contextlib
import functools
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from fct_jax import config as configs
from fct_jax.errors import unknown
from fct_jax.frozen.model import read_description, write_model
from fct_jax.runtime import processes, sharding
from fct_jax.runtime.progress import Bar
from fct_jax.runtime.workdir import claim_workdir, usable
from fct_jax.storage.files import Lock
from fct_jax.storage.partial import wait_for
from fct_jax.train import batch_size as batch
from fct_jax.train.backbone import Backbone
from fct_jax.train.best import Best, check_rule
from fct_jax.train.checkpoint import Checkpoints, check_space
from fct_jax.train.compatible.task import Compatible
from fct_jax.train.large_classes import with_padded_classes
from fct_jax.train.metrics_log import MetricsLog
from fct_jax.train.optimizer import build_optimizer
from fct_jax.train.pretrained import check_readable
from fct_jax.train.running_means import RunningMeans
from fct_jax.train.simclr import SimCLR
from fct_jax.train.state import State, fresh_state, shapes_of
from fct_jax.train.steps import compile_steps
from fct_jax.train.termination import Termination
from fct_jax.train.transformation import TransformationTask

TASKS = {
    "backbone": Backbone,
    "transformation": TransformationTask,
    "compatible": Compatible,
    "simclr": SimCLR,
}


def train(config, workdir, allow_config_change: bool = False) -> None:
    """Train to the end, from the last checkpoint if there is one, and export the model.

    With several processes (``fct_jax.runtime.processes``), each of them makes the same call.

    Args:
      config: an ml_collections ConfigDict of ``fct_jax.config``.
      workdir: the run's directory.
      allow_config_change: continue although the directory holds another config.

    Raises:
      UserError: a mistake in the config, the data or the directory; or a loss that is not finite.
    """
    workdir = usable(workdir)
    config = configs.at_home(config)
    configs.check(config)
    if config.task not in TASKS:
        raise unknown("task to train", config.task, TASKS)
    with Termination() as termination, contextlib.ExitStack() as at_end:
        _run(config, workdir, allow_config_change, termination, at_end)


def _run(config, workdir: Path, allow_config_change: bool, termination, at_end) -> None:
    mesh = sharding.make_mesh(**config.mesh)
    config = batch.resolved(config, mesh)

    def claim():
        claim_workdir(config, workdir, allow_config_change, configs.defaults(config.task))

    def finished() -> str | None:
        if not (workdir / "model").is_dir():
            return None
        claim()
        return read_description(workdir)["fingerprint"]

    if fingerprint := processes.from_writer(finished, "finished"):
        processes.say(f"{workdir} is finished: model {fingerprint}")
        return
    lock = Lock(workdir)

    def begin() -> None:
        workdir.parent.mkdir(parents=True, exist_ok=True)
        lock.take()
        claim()

    at_end.enter_context(processes.finally_calling(lock.remove))
    task = with_padded_classes(TASKS[config.task](config, mesh), mesh)
    check_rule(config.keep_best, config.export, task.metrics)
    optimizer = build_optimizer(config.optimizer, config.epochs, task.feed.steps_per_epoch)
    if not (workdir / "checkpoints").is_dir():
        check_readable(config.get("pretrained", ""))
    processes.from_writer(begin, "claim the work directory")
    wait_for(workdir / "config.json")
    for line in (*task.summary(), batch.summary(config, mesh)):
        processes.say(line)
    state = _trained(config, task, optimizer, workdir, mesh, termination)
    count = sum(array.size for array in jax.tree.leaves(state.params))
    variables = _on_host(state.variables)

    def export() -> str:
        def finish(fingerprint: str) -> None:
            task.finish(workdir, fingerprint, variables)

        model = task.export(variables)
        return write_model(workdir / "model", task.describe(), model, finish)

    fingerprint = processes.from_writer(export, "export")
    processes.say(f"{workdir}: {count:,} parameters, model {fingerprint}")


class _Records(NamedTuple):
    """The records of a running training."""

    checkpoints: Checkpoints
    best: Best
    running: RunningMeans
    log: MetricsLog


def _trained(config, task, optimizer, workdir: Path, mesh, termination: Termination) -> State:
    """Return the state to export: the last one, or the best."""
    check_space(workdir, shapes_of(task, optimizer), config)
    checkpoints = Checkpoints(workdir / "checkpoints", config.keep_checkpoints)
    best = Best(config.keep_best, checkpoints)
    running = RunningMeans(checkpoints)
    state = _start(task, optimizer, config.seed, checkpoints, running, mesh)
    best.go_on_from(int(state.step))
    log = MetricsLog(workdir, int(state.step))
    micro = batch.micro_batches(config)
    steps = compile_steps(task, optimizer, config.seed, micro, config.remat, mesh=mesh)
    frozen = sharding.put_replicated(task.frozen, mesh)

    def run(state: State, call, count: int, freeze: bool):
        return steps(state, task.feed.data, frozen, call, count, freeze=freeze)

    def close() -> None:
        for part in (checkpoints, best, log, task.feed):
            part.close()

    try:
        records = _Records(checkpoints, best, running, log)
        asked = functools.partial(termination.asked, mesh)
        state = _epochs(config, task, run, state, records, asked)
        if config.export == "best":
            state = best.restore(state)
            processes.say(f"exporting step {best.step}: {best.metric} {best.value:.4f}")
    except BaseException:
        if processes.count() == 1:  # the other processes may never reach this point
            close()
        raise
    close()
    return state


def _on_host(variables):
    """Return NumPy arrays, whole on every process, even if a process holds only a part."""

    def fetch(array):
        if array.is_fully_addressable or array.is_fully_replicated:
            return np.asarray(array)
        return multihost_utils.process_allgather(array, tiled=True)

    return jax.tree.map(fetch, variables)


def _start(task, optimizer, seed: int, checkpoints, running, mesh) -> State:
    """Return fresh parameters, made on the devices in their sharding, or the last checkpoint."""
    state = fresh_state(task, optimizer, seed, mesh)
    found = checkpoints.restore(state)
    if found is None:
        variables = task.warm_start(state.variables)
        return state._replace(params=variables["params"], batch_stats=variables["batch_stats"])
    state, position = found
    task.feed.seek(position["feed"])
    running.restore(position["running"])
    processes.say(f"resuming from step {int(state.step)}")
    return state


def _epochs(config, task, run, state: State, records: _Records, asked_to_stop) -> State:
    """Run the loop itself: calls, metrics, checkpoints, evaluation."""
    checkpoints, best, running, log = records
    per_epoch = task.feed.steps_per_epoch
    step, end = int(state.step), config.epochs * per_epoch
    trained = {}  # means of the epoch that ended last
    save_every = config.checkpoint_every_steps or per_epoch

    def evaluate_if_due() -> None:
        epoch = step // per_epoch
        if epoch % config.evaluate_every_epochs and step < end:
            return
        metrics = task.evaluate(state.variables)
        best.offer(step, metrics, state)
        if metrics:
            log.write(step, {f"validation/{name}": value for name, value in metrics.items()})
        said = [f"{name} {value:.4f}" for name, value in metrics.items()]
        if "loss" in trained:
            said.append(f"training loss {trained['loss']:.4f}")
        processes.say(f"epoch {epoch}/{config.epochs}" + (f": {', '.join(said)}" if said else ""))

    # If a run was killed between the save and the evaluation of an epoch, evaluate now.
    if step and step % per_epoch == 0 and not log.validated:
        evaluate_if_due()
    with Bar("training", end, "steps", done=step) as bar:
        while step < end:
            freeze = task.freeze_batch_norm(step // per_epoch)
            for steps, call in running.timed(task.feed, step):
                state, sums = run(state, call, steps, freeze)
                before, step = step, step + steps
                running.add(sums, steps, step)
                bar.advance(steps, running.note)
                terminated = asked_to_stop()
                due = step // config.log_every_steps > before // config.log_every_steps
                # Log before saving: entries after the last checkpoint are logged again later.
                if due or step == end:
                    log.write(step, running.means("train/"))
                if step % per_epoch == 0:
                    trained = running.epoch_means()
                    means = {f"epoch/{name}": value for name, value in trained.items()}
                    log.write(step, {"epoch/number": step // per_epoch, **means})
                if terminated or step // save_every > before // save_every or step == end:
                    running.fetch()  # never save after a loss that is not finite
                    position = {"feed": task.feed.position(), "running": running.position()}
                    checkpoints.save(step, state, position)
                if terminated:
                    checkpoints.wait()
                    processes.say(
                        f"terminated: saved at step {step}; the same command resumes from there"
                    )
                    raise SystemExit(0)
            evaluate_if_due()
    return state
