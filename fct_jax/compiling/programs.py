"""The programs of a config: its training step, and its model's inference pass."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fct_jax import models
from fct_jax.compiling import stand_ins
from fct_jax.compiling.stand_ins import USUAL, Given, Size
from fct_jax.errors import unknown
from fct_jax.frozen.model import Embedder
from fct_jax.runtime import sharding
from fct_jax.train import batch_size as batch
from fct_jax.train.backbone import Backbone
from fct_jax.train.compatible.methods import find_method
from fct_jax.train.compatible.task import Compatible
from fct_jax.train.large_classes import with_padded_classes
from fct_jax.train.optimizer import build_optimizer
from fct_jax.train.simclr import SimCLR
from fct_jax.train.state import shapes_of
from fct_jax.train.steps import compile_steps
from fct_jax.train.transformation import TransformationTask

_EMBEDDED = 256  # images per device in a batch, as in `embed`
_TRANSFORMED = 4096  # vectors per device in a batch, as in `transform`


class Program(NamedTuple):
    """A program to compile.

    Attributes:
      name: "training step", "embedding" or "transformation".
      lower: function without arguments that returns a jax.stages.Lowered.
      items: images or vectors that it processes, on all devices together.
      unit: "images" or "vectors".
      of: number of items in an epoch; None: the program has no epochs.
      steps: number of steps in a call; ``items`` are those of one.
      parts: number of micro-batches in a step.
    """

    name: str
    lower: Callable
    items: int
    unit: str
    of: int | None = None
    steps: int = 1
    parts: int = 1

    @property
    def turns(self) -> tuple[int, ...]:
        """Return how often the nested loops of a call run."""
        return tuple(number for number in (self.steps, self.parts) if number > 1)


def programs_of(config, mesh, given: Given = USUAL, platform: str = "tpu") -> list[Program]:
    """Return the programs of a training config.

    Args:
      config: config of a training task; neither its data set nor its models need exist.
      mesh: the devices to compile for.
      given: sizes that the config does not contain.
      platform: platform of the devices.

    Raises:
      UserError: the config has a mistake, or the size of the data set is unknown.
    """
    config = batch.resolved(config, mesh)
    if config.task not in _TASKS:
        raise unknown("task to compile", config.task, _TASKS)
    size = stand_ins.size_of(config, given)
    task, using = _TASKS[config.task](config, size, given)
    return [_training(config, task, size, mesh, platform), using(task, mesh, platform)]


def _training(config, task, size: Size, mesh, platform: str) -> Program:
    task = with_padded_classes(task, mesh)
    steps_per_epoch = max(size.images // config.batch_size, 1)
    optimizer = build_optimizer(config.optimizer, config.epochs, steps_per_epoch)
    micro = batch.micro_batches(config)
    steps = compile_steps(task, optimizer, config.seed, micro, config.remat, platform, mesh)
    state = shapes_of(task, optimizer)
    everywhere = sharding.replicated(mesh)
    call = next(iter(task.feed.calls(0)))[1]

    def whole_batch(array):
        shape = (array.shape[0], config.batch_size, *array.shape[2:])
        return jax.ShapeDtypeStruct(shape, array.dtype, sharding=sharding.split_batch(mesh, 1))

    arguments = (
        _placed(state, sharding.of_state(state, mesh)),
        _everywhere(task.feed.data, everywhere),
        _everywhere(task.frozen, everywhere),
        jax.tree.map(whole_batch, call),
    )
    task.feed.close()
    unit = "vectors" if isinstance(task, TransformationTask) else "images"
    lower = functools.partial(steps.lower, *arguments, freeze=False, platform=platform)
    room = len(jax.tree.leaves(call)[0])
    return Program("training step", lower, config.batch_size, unit, size.images, room, micro.count)


def _embedding(task: Backbone, mesh, platform: str) -> Program:
    """Return the pass of the trained model over images, a batch on each device."""
    variables = jax.eval_shape(lambda key: task.export(task.init(key)), jax.random.key(0))
    zeros = jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), variables)
    embedder = Embedder({**task.describe(), "fingerprint": ""}, zeros)
    count = _EMBEDDED * math.prod(mesh.devices.shape)
    images = jax.ShapeDtypeStruct(
        (count, *embedder.preprocessing.shape, 3), np.uint8, sharding=_all_split(mesh)
    )
    run = jax.jit(lambda *arguments: embedder.forward(*arguments)[1])
    arguments = (_everywhere(variables, sharding.replicated(mesh)), images)
    return Program("embedding", _lowering(run, arguments, platform), count, "images")


def _transforming(task: TransformationTask, mesh, platform: str) -> Program:
    """Return the pass of the transformation over old vectors, a batch on each device."""
    described = task.describe()
    module = models.build(described["name"], **described["kwargs"])
    count = _TRANSFORMED * math.prod(mesh.devices.shape)
    vectors = [
        jax.ShapeDtypeStruct((count, described[key]), np.float32, sharding=_all_split(mesh))
        for key in ("old_dim", "side_dim")
    ]
    variables = jax.eval_shape(task.init, jax.random.key(0))
    arguments = (_everywhere(variables, sharding.replicated(mesh)), *vectors)
    run = jax.jit(functools.partial(module.apply, train=False))
    return Program("transformation", _lowering(run, arguments, platform), count, "vectors")


def _lowering(run, arguments, platform: str) -> Callable:
    return lambda: run.trace(*arguments).lower(lowering_platforms=(platform,))


def _small(config):
    """Return the config with the smallest batch that its sampler and micro-batches allow.

    A feed makes one such batch, whose shape is then enlarged to the whole batch.
    """
    micro = batch.micro_batches(config)
    config = config.copy_and_resolve_references()
    config.batch_size = 2 * micro.count * micro.group
    if "last_batch" in config:
        config.last_batch = "drop"  # only the program of a whole batch matters
    return config


def _one_device():
    """Return the mesh for feeds and constants; no program runs on it."""
    device = jax.local_devices(backend="cpu")[:1]
    return jax.make_mesh((1, 1), ("data", "model"), (AxisType.Auto,) * 2, devices=device)


def _backbone(config, size: Size, given: Given):
    made = stand_ins.with_noise(_small(config), size)
    kind = {"backbone": Backbone, "simclr": SimCLR}[config.task]
    return kind(made, _one_device()), _embedding


def _compatible(config, size: Size, given: Given):
    made = stand_ins.with_noise(_small(config), size)
    old = stand_ins.shaped_old_model(config, find_method(config.method), size, given)
    return Compatible(made, _one_device(), old), _embedding


def _transformation(config, size: Size, given: Given):
    made = _small(config)
    made.old = made.new = made.validation_old = made.validation_new = ""
    inputs = stand_ins.ShapedInputs(made, _one_device(), size, given)
    classifier = stand_ins.frozen_classifier(size, inputs.dims["new"])
    return TransformationTask(made, _one_device(), inputs, classifier), _transforming


# task of a config -> function (config, size, given) -> (the task, its model's inference pass)
_TASKS = {
    "backbone": _backbone,
    "simclr": _backbone,
    "compatible": _compatible,
    "transformation": _transformation,
}


def _placed(shapes, shardings):
    return jax.tree.map(
        lambda array, place: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place),
        shapes,
        shardings,
    )


def _everywhere(arrays, everywhere):
    return jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=everywhere), arrays
    )


def _all_split(mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(("data", "model")))
