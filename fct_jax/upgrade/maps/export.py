"""A map as plain layers, for services that have NumPy and no JAX.

The safetensors file holds ``0.weight`` (in, out), ``0.bias`` (out,), ``1.weight``, …, with a ReLU
between layers, and ``unit`` (1,): whether results are scaled to unit length. Each `Function` gives
its own layers.
"""

from pathlib import Path

import numpy as np
import safetensors.numpy

from fct_jax.upgrade.maps.functions import Layers


def write_numpy(path: Path, layers: Layers, unit_output: bool) -> None:
    """Write the file; ``unit_output`` says whether results are scaled to unit length."""
    flat = {"unit": np.array([unit_output], np.float32)}
    for i, (weight, bias) in enumerate(layers):
        flat[f"{i}.weight"] = np.ascontiguousarray(weight, np.float32)
        flat[f"{i}.bias"] = np.ascontiguousarray(bias, np.float32)
    safetensors.numpy.save_file(flat, path)
