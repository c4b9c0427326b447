"""A transformation as plain NumPy layers, as its module's ``as_layers`` returns them.

Layers are ``[(weight (in, out), bias (out,)), …]`` with a ReLU between consecutive ones. BatchNorm
is folded into the layer before it.
"""

import numpy as np

from fct_jax.models.batch_norm import BatchNorm

Layers = list[tuple[np.ndarray, np.ndarray]]


def folded(kernel, norm_params, norm_stats, bias=None) -> tuple[np.ndarray, np.ndarray]:
    """Return weight and bias of a linear layer merged with the BatchNorm that follows it.

    The BatchNorm uses its running statistics.

    Args:
      kernel: (in, out); bias: (out,) or None.
      norm_params: scale and bias (out,); norm_stats: mean and var (out,).
    """
    factor = norm_params["scale"] / np.sqrt(norm_stats["var"] + BatchNorm.eps)
    mean = norm_stats["mean"] - (0 if bias is None else bias)
    return kernel * factor, norm_params["bias"] - mean * factor


def block_diagonal(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the block-diagonal matrix (a + c, b + d) of matrices (a, b) and (c, d)."""
    upper = np.hstack([first, np.zeros((len(first), second.shape[1]), first.dtype)])
    lower = np.hstack([np.zeros((len(second), first.shape[1]), second.dtype), second])
    return np.vstack([upper, lower])
