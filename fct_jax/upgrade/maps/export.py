"""A map as plain layers, for services that have NumPy and no JAX.

One safetensors file: ``0.weight`` (in, out), ``0.bias`` (out,), ``1.weight``, … with a ReLU between
layers, and ``unit`` (1,): whether results are scaled to unit length. BatchNorm is folded into the
layers, and the two branches of a transformation are put side by side.
"""

from pathlib import Path

import jax
import numpy as np
import safetensors.numpy
import scipy.linalg

BATCH_NORM_EPS = 1e-5  # as in models/batch_norm.py


def write_numpy(path: Path, weights: dict, transformer, unit_output: bool) -> None:
    """Writes the file; arguments as of ``maps.Map``."""
    if transformer is None:
        layers = [(weights["scale"] * weights["weight"], weights["bias"])]
    else:
        layers = _layers(jax.device_get(transformer.variables), weights["scale"])
    flat = {"unit": np.array([unit_output], np.float32)}
    for i, (weight, bias) in enumerate(layers):
        flat[f"{i}.weight"] = np.ascontiguousarray(weight, np.float32)
        flat[f"{i}.bias"] = np.ascontiguousarray(bias, np.float32)
    safetensors.numpy.save_file(flat, path)


def _layers(variables, scale) -> list[tuple[np.ndarray, np.ndarray]]:
    def folded(name: str):
        params, stats = variables["params"][name], variables["batch_stats"][name]["bn"]
        factor = params["bn"]["scale"] / np.sqrt(stats["var"] + BATCH_NORM_EPS)
        return params["linear"]["kernel"] * factor, params["bn"]["bias"] - stats["mean"] * factor

    # Without side information both branches read the old vector.
    (w1, b1), (w2, b2) = folded("p1_0"), folded("p2_0")
    (v1, c1), (v2, c2) = folded("p1_1"), folded("p2_1")
    last = variables["params"]["mixer_2"]
    return [
        (np.hstack([w1, w2]), np.concatenate([b1, b2])),
        (scipy.linalg.block_diag(v1, v2), np.concatenate([c1, c2])),
        folded("mixer_0"),
        folded("mixer_1"),
        (last["kernel"] * scale, last["bias"] * scale),
    ]
