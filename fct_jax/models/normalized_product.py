"""A 1×1 convolution with its BatchNorm, as one function that never stores the convolution."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from fct_jax.models.convolution import convolve
from fct_jax.models.normalizing import combined
from fct_jax.runtime import sharding

_matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def pays(x, features: int) -> bool:
    """Return whether `normalized_product` takes less time than a convolution and its BatchNorm.

    x is (N, H, W, in). In float32 the two would not agree to its last digits.
    """
    channels = x.shape[-1]
    pixels = x.size // channels // sharding.batch_parts(len(x))
    # Every device multiplies kernels with kernels, whatever its share of the batch: with so many
    # pixels, that is at most a quarter of the convolution's and its gradients' operations.
    return jnp.finfo(x.dtype).bits <= 16 and features >= 2 * channels and pixels >= 16 * channels


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def normalized_product(x, kernel, scale, bias, eps):
    """Normalise ``x @ kernel``; return it in float32 (N, H, W, out), its mean and biased variance.

    x is (N, H, W, in), of a type of 16 bits; the kernel (in, out) is float32, and rounded to that
    type for the product. Mean and variance count as outputs without gradient.

    With mean m and covariance C of x, output channel w of the kernel has mean m·w and variance
    wᵀCw: known beforehand, so the product is normalised as it is made. Nor do gradients need it,
    since what BatchNorm subtracts from a gradient is linear in x. Where the kernel widens x, this
    saves one write and four reads of the wider array.
    """
    return _forward(x, kernel, scale, bias, eps)[0]


def _forward(x, kernel, scale, bias, eps):
    kernel = kernel.astype(x.dtype)
    exact = kernel.astype(jnp.float32)
    local = _in_parts(x)
    means = jnp.mean(local.astype(jnp.float32), (1, 2, 3))
    # Products of such values are exact in float32, as in `normalizing.moments`.
    squares = _products(local, local) / (x.size // x.shape[-1] // len(local))
    covariances = squares - means[:, :, None] * means[:, None, :]
    shared = _matmul(covariances, exact)  # covariance of input and output channels
    variances = jnp.maximum(jnp.sum(shared * exact, 1), 0)
    mean, var = combined(_matmul(means, exact), variances)
    inverse = jax.lax.rsqrt(var + eps)
    product = convolve(x, kernel[None, None], 1).astype(jnp.float32)
    y = (product - mean) * (scale * inverse) + bias
    return (y, mean, var), (x, kernel, scale, mean, inverse, means, shared)


def _backward(eps, residuals, gradients):
    x, kernel, scale, mean, inverse, means, shared = residuals
    gradient = gradients[0].astype(x.dtype)
    exact = kernel.astype(jnp.float32)
    count = x.size // x.shape[-1]
    products = _products(_in_parts(x), _in_parts(gradient))
    by_bias = jnp.sum(gradient.astype(jnp.float32), (0, 1, 2))
    by_scale = (jnp.sum(products * exact, (0, 1)) - mean * by_bias) * inverse

    # The product's gradient is factor * (gradient - share - (product - mean) * slope).
    factor, share, slope = scale * inverse, by_bias / count, inverse * by_scale / count
    constant = _matmul(means, exact) * slope + (share - mean * slope)
    subtracted = means[:, :, None] * constant[:, None, :] + shared * slope
    by_kernel = (products - count // len(means) * subtracted) * factor
    # Devices exchange it in x's type, as they do the gradients of other kernels.
    by_kernel = jax.lax.reduce(by_kernel.astype(x.dtype), np.array(0, x.dtype), jax.lax.add, (0,))

    back = (exact * factor).T.astype(x.dtype)
    again = _matmul(exact * (factor * slope), exact.T).astype(x.dtype)
    constant = _matmul(share, back.astype(jnp.float32))
    constant -= _matmul(jnp.mean(means, 0), again.astype(jnp.float32))
    by_x = convolve(gradient, back[None, None], 1).astype(jnp.float32)
    by_x -= convolve(x, again[None, None], 1).astype(jnp.float32) + constant
    return by_x.astype(x.dtype), by_kernel.astype(jnp.float32), by_scale, by_bias


normalized_product.defvjp(_forward, _backward)


def _in_parts(x):
    """Return (N, H, W, C) as (parts, N / parts, H, W, C), a part on each device."""
    return x.reshape(sharding.batch_parts(len(x)), -1, *x.shape[1:])


def _products(a, b):
    """Return the sums over images and pixels of the products of channels (parts, C, D)."""
    return jnp.einsum("pnhwc,pnhwd->pcd", a, b, preferred_element_type=jnp.float32)
