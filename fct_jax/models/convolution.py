"""Convolution as the residual networks use it: square kernel, symmetric padding, no bias."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fct_jax.models.linear import torch_uniform


class Conv(nn.Module):
    """``(N, H, W, in) -> (N, H', W', features)``; parameter kernel (k, k, in, features).

    The padding is ``k // 2`` on every side, as PyTorch pads. XLA's "SAME" would pad even sizes
    on one side only and give other values when the stride is 2.
    """

    features: int
    kernel_size: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", torch_uniform, shape, jnp.float32)
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)


def plain(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """XLA's own convolution; x NHWC, kernel HWIO."""
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


convolve = plain
