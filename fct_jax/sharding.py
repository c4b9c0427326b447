"""The one device mesh, and how arrays lie on it."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fct_jax.errors import UserError


def make_mesh(data: int = -1, model: int = 1) -> Mesh:
    """All devices as a grid: batches are split over "data", large classifiers over "model".

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
    return jax.make_mesh((data, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def of_state(state, mesh: Mesh):
    """Shardings of a state's arrays: classifiers, with their momentum, over "model".

    Args:
      state: pytree of arrays or shapes. A classifier is found by its path, ``classifier/kernel``
        of shape (D, C); where "model" does not divide C it is replicated like the rest.
      mesh: of ``make_mesh``.
    """

    def place(path, array):
        names = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
        if names[-2:] == ["classifier", "kernel"] and array.shape[-1] % mesh.shape["model"] == 0:
            return NamedSharding(mesh, PartitionSpec(None, "model"))
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, state)


def split_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """``axis`` is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def put_batch(batch, mesh: Mesh, axis: int = 0):
    """This process's rows of a global batch, onto its devices.

    Args:
      batch: pytree of arrays; every process gives its own share along ``axis``.
      mesh: of ``make_mesh``.
      axis: the batch axis, which the number of devices must divide.
    """
    sharding = split_batch(mesh, axis)
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(sharding, np.asarray(array)), batch
    )


def put_global(array, mesh: Mesh, axis: int = 0) -> jax.Array:
    """An array that every process holds whole, split over the devices along ``axis``."""
    array = np.asarray(array)
    return jax.make_array_from_callback(
        array.shape, split_batch(mesh, axis), lambda index: array[index]
    )


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """The devices divide the global batch. Raises UserError with the nearest size that fits."""
    parts = mesh.shape["data"]
    if batch_size < 1 or batch_size % parts:
        nearest = max(round(batch_size / parts), 1) * parts
        raise UserError(
            f"batch_size {batch_size} does not divide over {parts} devices; nearest: {nearest}"
        )
