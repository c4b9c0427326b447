"""A map as plain layers, for services that have NumPy and no JAX.

One safetensors file: ``0.weight`` (in, out), ``0.bias`` (out,), ``1.weight``, … with an activation
between layers, and ``unit`` (1,): whether results are scaled to unit length. What only some maps
need is there for these alone:

    activation (2,)      scale and slope of SELU; without it, the activation is ReLU
    gate (do + 1, K)     float64: the last layer has the results of K maps side by side, and these
                         are averaged by softmax of ``old @ gate[:-1] + gate[-1]``
    length (1,)          instead of ``unit``: the length that results are scaled to, 0 for none

A reader that knows ``unit`` alone thus stops at a file that it would misread. Which layers they are
is known to each `Function`.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.numpy

Layers = list[tuple[np.ndarray, np.ndarray]]  # weight (in, out), bias (out,)


class Plain(NamedTuple):
    """A function of vectors (n, do) as plain layers.

    Attributes:
      layers: with an activation between two of them.
      activation: scale s and slope a of ``s · (x if x > 0 else a (exp x − 1))``; (1, 0) is ReLU.
      gate: (do + 1, K) float64, by which the K maps that the last layer holds are averaged.
      length: that results are scaled to; 0 leaves them as they are.
    """

    layers: Layers
    activation: tuple[float, float] = (1.0, 0.0)
    gate: np.ndarray | None = None
    length: float = 0.0


def write_numpy(path: Path, plain: Plain | Layers, unit_output: bool) -> None:
    """Write the file; ``unit_output``: results are scaled to unit length."""
    plain = plain if isinstance(plain, Plain) else Plain(plain)
    length = 1.0 if unit_output else plain.length
    flat = {}
    for i, (weight, bias) in enumerate(plain.layers):
        flat[f"{i}.weight"] = np.ascontiguousarray(weight, np.float32)
        flat[f"{i}.bias"] = np.ascontiguousarray(bias, np.float32)
    if plain.activation != (1.0, 0.0):
        flat["activation"] = np.array(plain.activation, np.float64)
    if plain.gate is not None:
        flat["gate"] = np.ascontiguousarray(plain.gate, np.float64)
    simple = not {"activation", "gate"} & set(flat) and length in (0.0, 1.0)
    flat["unit" if simple else "length"] = np.array([length], np.float32)
    safetensors.numpy.save_file(flat, path)
