"""The chips that programs are compiled for, with their published peaks.

Sources: https://cloud.google.com/tpu/docs/v5e, …/v5p, …/v6e and …/v4, and for the links of v4
Jouppi et al., "TPU v4", ISCA 2023, https://arxiv.org/abs/2304.01433.
"""

import importlib.util
import os
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from fct_jax.errors import UserError, unknown


class Chip(NamedTuple):
    """The published peaks of one chip.

    Attributes:
      flops: bfloat16 operations per second.
      memory: bytes.
      memory_bandwidth: bytes per second.
      link_bandwidth: bytes per second over all of its links to other chips.
      configuration: its name for the compiler where JAX does not take the compiler's default; a
        v4's two cores are one device of JAX.
    """

    flops: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    configuration: str = ""


CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 300e9, "megacore"),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9),
    "v6e": Chip(918e12, 32 * 2**30, 1638e9, 400e9),
}


def find_chip(topology: str) -> Chip:
    """Return the chip of a topology such as ``v5e:4x4``. Raises UserError if it is unknown."""
    name = topology.partition(":")[0]
    if name not in CHIPS:
        raise unknown("chip", name, CHIPS)
    return CHIPS[name]


def topology_mesh(topology: str, model: int = 1) -> Mesh:
    """Return the chips of a topology as the mesh that a training would use.

    Args:
      topology: ``CHIP:AxB`` or ``CHIP:AxBxC``; see `CHIPS`.
      model: number of devices that share a large classifier.

    Raises:
      UserError: the chip or shape is unknown, ``model`` does not divide the number of chips, or
        libtpu is not installed.
    """
    chip = find_chip(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("this needs libtpu, the compiler of TPUs: pip install 'fct_jax[tpu]'")
    from jax.experimental import topologies

    # Compiling needs no chip: several processes may load libtpu, and it need not query for chips.
    os.environ.pop("TPU_LIBRARY_PATH", None)
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    options = {"chip_config_name": chip.configuration} if chip.configuration else {}
    try:
        devices = topologies.get_topology_desc(topology, "tpu", **options).devices
    except Exception as error:  # the compiler raises various types
        said = str(error).splitlines()[0]
        raise UserError(f"no topology {topology}, such as v5e:4x4 or v4:2x2x2: {said}") from None
    if model < 1 or len(devices) % model:
        raise UserError(f"config.mesh.model={model} does not divide the {len(devices)} chips")
    grid = np.array(devices).reshape(len(devices) // model, model)
    return Mesh(grid, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def cpu_only() -> None:
    """Keep this process off accelerators: an installed libtpu would look for chips."""
    jax.config.update("jax_platforms", "cpu")
