"""The device mesh, and the placement of arrays on it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fct_jax.errors import UserError
from fct_jax.runtime import processes

AXES = ("data", "model")  # both split the batch


def make_mesh(data: int = -1, model: int = 1) -> Mesh:
    """Return all devices as a grid: all share a batch, those along "model" a large classifier.

    Args:
      data: devices along "data"; -1: as many as there are.
      model: devices along "model".

    Raises:
      UserError: the grid does not take all devices.
    """
    devices = jax.device_count()
    if data == -1 and model > 0 and devices % model == 0:
        data = devices // model
    if data * model != devices or data < 1:
        raise UserError(
            f"config.mesh data={data}, model={model} does not fit {devices} devices; "
            f"nearest: data={devices}, model=1"
        )
    mesh = jax.make_mesh((data, model), AXES, axis_types=(AxisType.Auto,) * 2)
    if processes.count() > 1:
        _connect(mesh)
    return mesh


def _connect(mesh: Mesh) -> None:
    """Connect the processes' devices for the first time while all of them are waiting here.

    CPUs allow 30 seconds for that, and one process may compile for longer than another.
    """
    processes.barrier("mesh")
    for axes in (AXES, ("data",), ("model",)):
        ones = np.ones(math.prod(mesh.shape[axis] for axis in axes), np.float32)
        split = NamedSharding(mesh, PartitionSpec(axes))
        array = jax.make_array_from_callback(ones.shape, split, ones.__getitem__)
        jax.block_until_ready(jax.jit(jnp.sum, out_shardings=replicated(mesh))(array))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that puts the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def class_axis(path) -> int | None:
    """Return the axis of a parameter, or its momentum, with an entry per class, or None.

    Args:
      path: path of ``jax.tree_util``. Found by their names are ``classifier/kernel`` (D, C) and the
        ``centers`` (C, D) of the centre loss.
    """
    names = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
    if names[-2:] == ["classifier", "kernel"]:
        return 1
    return 0 if names[-1:] == ["centers"] else None


def of_state(state, mesh: Mesh):
    """Return the shardings of a state: classifiers, with their momentum, are split over "model".

    Args:
      state: pytree of arrays or shapes. Classes that "model" does not divide are replicated, as
        is everything without a class axis.
      mesh: mesh of ``make_mesh``.
    """

    def place(path, array):
        axis = class_axis(path)
        if axis is None or array.shape[axis] % mesh.shape["model"]:
            return replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "model"))

    return jax.tree_util.tree_map_with_path(place, state)


def split_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Return the sharding that splits ``axis`` over all devices, in the order of the mesh."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXES))


def batch_parts(size: int) -> int:
    """Return the number of devices that share a batch of ``size``, for use in a traced step.

    One outside of a mesh (``jax.set_mesh``), or if the devices do not divide the batch.
    """
    parts = math.prod(jax.sharding.get_abstract_mesh().shape.values())
    return 1 if size % parts else parts


def for_classes(samples: jax.Array) -> jax.Array:
    """Return samples (N, …) as a classifier needs them whose classes are split over "model".

    Devices along "model" get each other's samples, and their gradients' sums go back to each
    sample's own device. Use it in a traced step under ``jax.set_mesh``; elsewhere, and where
    classifiers are whole, it changes nothing.
    """
    whole = jax.sharding.get_abstract_mesh().shape.get("model", 1) == 1
    if whole or batch_parts(samples.shape[0]) == 1:
        return samples
    return jax.lax.with_sharding_constraint(samples, PartitionSpec("data"))


def gathered(array: jax.Array) -> jax.Array:
    """Return the array whole on every device, inside a traced step under ``jax.set_mesh``."""
    return jax.lax.with_sharding_constraint(array, PartitionSpec())


def put_global(array, mesh: Mesh, axis: int = 0) -> jax.Array:
    """Split an array that every process holds whole over the devices along ``axis``."""
    array = np.asarray(array)
    return jax.make_array_from_callback(
        array.shape, split_batch(mesh, axis), lambda index: array[index]
    )


def put_rows(array, rows: np.ndarray, batch_size: int, mesh: Mesh) -> jax.Array:
    """Put this process's rows of a global batch on its devices; return the whole (B, …).

    Args:
      array: (R, …).
      rows: (R,) their ascending numbers in the batch: all that this process's devices hold.
      batch_size: B.
      mesh: mesh of ``make_mesh``.
    """

    def part(index):
        first, last = np.searchsorted(rows, index[0].indices(batch_size)[:2])
        return array[first:last]

    shape = (batch_size, *array.shape[1:])
    return jax.make_array_from_callback(shape, split_batch(mesh), part)


def put_replicated(tree, mesh: Mesh):
    """Put arrays that every process holds whole onto every device.

    ``jax.device_put`` would first send them to all processes to compare them. Shapes
    (``jax.ShapeDtypeStruct``) stay shapes.
    """

    def put(array):
        if isinstance(array, jax.ShapeDtypeStruct):
            return array
        if isinstance(array, jax.Array) and array.sharding == replicated(mesh):
            return array
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, replicated(mesh), array.__getitem__)

    return jax.tree.map(put, tree)
