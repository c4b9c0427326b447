"""Normalising a batch by its own moments, with gradients written by hand.

Moments are float32 and those of the whole batch, also where devices share it. Automatic
differentiation would read the batch four times where these functions read it twice.
"""

from functools import partial

import jax
import jax.numpy as jnp

from fct_jax.models.pooling import max_pool
from fct_jax.runtime import sharding


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalize(x, scale, bias, eps):
    """Return the normalised batch in float32, its mean and its biased variance.

    x is (N, …, C). Mean and variance count as outputs without gradient.
    """
    mean, var = moments(x)
    return _normalized(x, scale, bias, mean, var, eps), mean, var


def _normalize_forward(x, scale, bias, eps):
    y, mean, var = normalize(x, scale, bias, eps)
    return (y, mean, var), (x, scale, mean, jax.lax.rsqrt(var + eps))


def _normalize_backward(eps, residuals, gradients):
    x, _, mean, inverse = residuals
    by_scale, by_bias = _sums(gradients[0], x, mean, inverse)
    return _by_x(gradients[0], *residuals, by_scale, by_bias), by_scale, by_bias


normalize.defvjp(_normalize_forward, _normalize_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalize_pooled(x, scale, bias, eps):
    """Return ``max_pool`` of the normalised batch in float32, its mean and biased variance.

    x is (N, H, W, C), and no scale is negative: so the largest value of a window is the largest
    one before normalising, and only a quarter of the values need be normalised. The moments are
    those of the whole batch.
    """
    return _pooled_forward(x, scale, bias, eps)[0]


def _pooled_forward(x, scale, bias, eps):
    mean, var = moments(x)
    pooled = max_pool(x)
    y = _normalized(pooled, scale, bias, mean, var, eps)
    return (y, mean, var), (x, pooled, scale, mean, jax.lax.rsqrt(var + eps))


def _pooled_backward(eps, residuals, gradients):
    x, pooled, scale, mean, inverse = residuals
    by_scale, by_bias = _sums(gradients[0], pooled, mean, inverse)
    (gradient,) = jax.vjp(max_pool, x)[1](gradients[0].astype(x.dtype))
    return _by_x(gradient, x, scale, mean, inverse, by_scale, by_bias), by_scale, by_bias


normalize_pooled.defvjp(_pooled_forward, _pooled_backward)


def _normalized(x, scale, bias, mean, var, eps):
    return (x.astype(jnp.float32) - mean) * (scale * jax.lax.rsqrt(var + eps)) + bias


def _sums(gradient, x, mean, inverse):
    """Return the gradients of scale and bias."""
    axes = tuple(range(x.ndim - 1))
    centred = x.astype(jnp.float32) - mean
    return jnp.sum(gradient * centred, axes) * inverse, jnp.sum(gradient, axes)


def _by_x(gradient, x, scale, mean, inverse, by_scale, by_bias):
    """Return the gradient of ``x`` from that of its normalised values."""
    count = x.size // x.shape[-1]
    centred = x.astype(jnp.float32) - mean
    by_x = gradient - by_bias / count - centred * (inverse * by_scale / count)
    return (by_x * (scale * inverse)).astype(x.dtype)


def moments(x):
    """Return mean and biased variance (C,), in float32, of an array (N, …, C)."""
    parts = sharding.batch_parts(len(x))
    # The other axes stay as they are: to merge them, an accelerator may have to copy the array.
    local = x.astype(jnp.float32).reshape(parts, -1, *x.shape[1:])
    axes = tuple(range(1, x.ndim))
    means = jnp.mean(local, axes)
    if jnp.finfo(x.dtype).bits <= 16:
        # One pass, which a convolution can make as it writes: float32 holds the squares of such
        # values exactly, and they have lost more to their own rounding than this difference does.
        mean_squares = jnp.mean(jnp.square(local), axes)
        variances = jnp.maximum(mean_squares - jnp.square(means), 0)
    else:
        # Two passes: mean(x²) - mean² would lose all digits if |mean| >> standard deviation.
        centred = local - means.reshape(parts, *[1] * (x.ndim - 1), -1)
        variances = jnp.mean(jnp.square(centred), axes)
    return combined(means, variances)


def combined(means, variances):
    """Return mean and variance (C,) of a batch from those of its equal parts (parts, C).

    Devices exchange their moments once; the total variance is that within plus between parts.
    """
    if len(means) == 1:
        return means[0], variances[0]
    both = sharding.gathered(jnp.concatenate([means, variances], -1))
    # Unless told, XLA may split these again over the devices, and sum them in two more exchanges.
    means, variances = map(sharding.gathered, jnp.split(both, 2, -1))
    mean = jnp.mean(means, 0)
    return mean, jnp.mean(variances + jnp.square(means - mean), 0)
