"""Convolution as the residual networks use it: square kernel, symmetric padding, no bias."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fct_jax.models.linear import torch_uniform

# Up to this many output pixels per image, multiplying patches by a matrix is faster on CPUs than
# XLA's convolution (ResNet-50, 14 -> 7 px: 1.3 times; 2 x 2 px: 200 times). On larger maps copying
# patches costs more than it saves.
_PATCHES_MAX_PIXELS = 49


class Conv(nn.Module):
    """``(N, H, W, in) -> (N, H', W', features)``; parameter kernel (k, k, in, features).

    The padding is ``k // 2`` on every side, as in PyTorch. XLA's "SAME" would pad even sizes on
    one side only, which gives other values when the stride is 2.
    """

    features: int
    kernel_size: int
    stride: int = 1
    dtype: Any = jnp.float32

    def __call__(self, x: jax.Array, signs: jax.Array | None = None) -> jax.Array:
        """Return the convolution, with channels multiplied by ``signs`` (features,) of ±1."""
        kernel = self.kernel(x.shape[-1])
        if signs is not None:
            kernel = kernel * signs
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)

    @nn.compact
    def kernel(self, channels: int) -> jax.Array:
        """Return the kernel for inputs of so many channels, in float32."""
        shape = (self.kernel_size, self.kernel_size, channels, self.features)
        return self.param("kernel", torch_uniform, shape, jnp.float32)


def convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Return the convolution in the form that is fastest for the platform and the map's size.

    x is (N, H, W, in), kernel (k, k, in, out). The choice is made when the program is compiled for
    its platform; GPUs and TPUs always get XLA's own convolution.
    """
    size = kernel.shape[0]
    pixels = _out_size(x.shape[1], stride) * _out_size(x.shape[2], stride)
    if size > 1 and pixels > _PATCHES_MAX_PIXELS:
        return plain(x, kernel, stride)
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: as_matrix_product(x, kernel, stride),
        default=lambda x, kernel: plain(x, kernel, stride),
    )


def plain(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Return XLA's own convolution."""
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def as_matrix_product(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Return the same values as patches (N·H'·W', k·k·in) times the kernel (k·k·in, out)."""
    size, features = kernel.shape[0], kernel.shape[-1]
    pad = size // 2
    height, width = (_out_size(side, stride) for side in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    shifted = [
        x[:, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride]
        for i in range(size)
        for j in range(size)
    ]
    patches = jnp.concatenate(shifted, -1)
    # Two axes, not four: for a product over three axes XLA would transpose the operands in memory
    # in the backward pass, which takes longer than the product itself.
    product = patches.reshape(-1, patches.shape[-1]) @ kernel.reshape(-1, features)
    return product.reshape(*patches.shape[:3], features)


def _out_size(side: int, stride: int) -> int:
    return (side - 1) // stride + 1
