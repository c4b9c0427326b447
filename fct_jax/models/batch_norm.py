"""Batch normalisation with PyTorch's semantics."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fct_jax.runtime import sharding


class BatchNorm(nn.Module):
    """Normalises each channel of the last axis over all others; the output has type ``dtype``.

    The parameters are scale and bias; the collection "batch_stats" has the running mean and var.
    As in PyTorch, the batch is normalised with its biased variance, while the running variance
    takes the unbiased one, and ``running = (1 - momentum) * running + momentum * batch``
    (Flax's own layer keeps the biased variance, and its momentum is one minus PyTorch's).

    Statistics are float32 whatever ``dtype`` is, and cover the whole array: under ``jit`` with a
    batch that is sharded over devices they are the statistics of the *global* batch. The published
    FCT code, with ``DataParallel``, computed them per GPU instead.

    A single value per channel (one sample, one pixel) is not an error, unlike in PyTorch: it
    normalises to zero and counts as a variance of zero.

    ``use_running_average=True`` normalises with the running statistics and leaves them unchanged;
    scale and bias still have gradients. Otherwise the running statistics are updated whenever the
    caller made "batch_stats" mutable.
    """

    momentum: float = 0.1
    eps: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool) -> jax.Array:
        channels = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)

        if use_running_average:
            centred = x.astype(jnp.float32) - running_mean.value
            factor = scale * jax.lax.rsqrt(running_var.value + self.eps)
            return (centred * factor + bias).astype(self.dtype)

        y, mean, var = _normalize(x, scale, bias, self.eps)
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            count = x.size // x.shape[-1]
            unbiased = var * (count / max(count - 1, 1))
            running_mean.value = self._blend(running_mean.value, mean)
            running_var.value = self._blend(running_var.value, unbiased)
        return y.astype(self.dtype)

    def _blend(self, running: jax.Array, batch: jax.Array) -> jax.Array:
        return (1 - self.momentum) * running + self.momentum * jax.lax.stop_gradient(batch)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalize(x, scale, bias, eps):
    """Return the normalised batch in float32, its mean and its biased variance.

    The gradient is written by hand, because it needs two passes over the batch where automatic
    differentiation needs four. It treats mean and variance as outputs without gradient.
    """
    mean, var = _moments(x)
    y = (x.astype(jnp.float32) - mean) * (scale * jax.lax.rsqrt(var + eps)) + bias
    return y, mean, var


def _moments(x):
    """Return mean and biased variance (C,), in float32, of an array (N, …, C)."""
    parts = sharding.batch_parts(len(x))
    # The other axes stay as they are: to merge them, an accelerator may have to copy the array.
    local = x.astype(jnp.float32).reshape(parts, -1, *x.shape[1:])
    axes = tuple(range(1, x.ndim))
    mean = jnp.mean(local, axes)
    if jnp.finfo(x.dtype).bits <= 16:
        # One pass, which a convolution can make as it writes: float32 holds the squares of such
        # values exactly, and they have lost more to their own rounding than this difference does.
        var = jnp.maximum(jnp.mean(jnp.square(local), axes) - jnp.square(mean), 0)
    else:
        # Two passes: mean(x²) - mean² would lose all digits if |mean| >> standard deviation.
        centred = local - mean.reshape(parts, *[1] * (x.ndim - 1), -1)
        var = jnp.mean(jnp.square(centred), axes)
    if parts == 1:
        return mean[0], var[0]
    # The devices exchange their moments once; the total variance is that within plus between parts.
    means, variances = jnp.split(sharding.gathered(jnp.concatenate([mean, var], -1)), 2, -1)
    mean = jnp.mean(means, 0)
    return mean, jnp.mean(variances + jnp.square(means - mean), 0)


def _normalize_forward(x, scale, bias, eps):
    y, mean, var = _normalize(x, scale, bias, eps)
    return (y, mean, var), (x, scale, mean, jax.lax.rsqrt(var + eps))


def _normalize_backward(eps, residuals, gradients):
    x, scale, mean, inverse = residuals
    gradient = gradients[0]
    axes = tuple(range(x.ndim - 1))
    count = x.size // x.shape[-1]
    centred = x.astype(jnp.float32) - mean
    by_bias = jnp.sum(gradient, axes)
    by_scale = jnp.sum(gradient * centred, axes) * inverse
    by_x = gradient - by_bias / count - centred * (inverse * by_scale / count)
    return (by_x * (scale * inverse)).astype(x.dtype), by_scale, by_bias


_normalize.defvjp(_normalize_forward, _normalize_backward)
