"""The rule that defines the weights of the golden files' networks, which do not store them."""

import zlib

import numpy as np


def rule_weights(names: list) -> dict[str, np.ndarray]:
    """Return the state dict for a list of (PyTorch name, shape); each entry has a generator."""
    return {name: _rule(name, tuple(shape)) for name, shape in names}


def _rule(name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name.endswith("num_batches_tracked"):
        return np.zeros((), np.int64)
    normal = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) == 4:
        value = normal * np.sqrt(2 / np.prod(shape[1:]))
    elif name.endswith("running_var"):
        value = 1 + 0.1 * np.abs(normal)
    elif name.endswith("weight"):
        value = 1 + 0.1 * normal
    else:  # bias, running_mean
        value = 0.1 * normal
    return value.astype(np.float32)
