"""The one device mesh, and how arrays lie on it."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fct_jax.errors import UserError


def make_mesh() -> Mesh:
    """All devices in a row; batches are split over the axis "data"."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


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
    devices = mesh.size
    if batch_size < 1 or batch_size % devices:
        nearest = max(round(batch_size / devices), 1) * devices
        raise UserError(
            f"batch_size {batch_size} does not divide over {devices} devices; nearest: {nearest}"
        )
