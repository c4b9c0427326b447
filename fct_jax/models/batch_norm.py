"""Batch normalisation with PyTorch's semantics."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class BatchNorm(nn.Module):
    """Normalises the last axis over all others; shape and scale stay, dtype becomes ``dtype``.

    Parameters scale and bias; running statistics mean and var in the collection "batch_stats".
    As in PyTorch, the batch is normalised with its biased variance, while the running variance
    takes the unbiased one, and ``running = (1 - momentum) * running + momentum * batch``
    (Flax's own layer keeps the biased variance and means the opposite by momentum).

    Statistics are float32 whatever ``dtype`` is. They are plain means over the whole array:
    under ``jit`` with a batch that is sharded over devices they are the statistics of the
    *global* batch. The published FCT code, with ``DataParallel``, took them per GPU instead.

    A single value per channel (one sample, one pixel) is no error, unlike in PyTorch: it
    normalises to zero and counts as a variance of zero.

    ``use_running_average=True`` normalises with the running statistics and keeps them; scale
    and bias still have gradients. Otherwise the running statistics are renewed whenever the
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

        x = x.astype(jnp.float32)
        if use_running_average:
            mean, var = running_mean.value, running_var.value
        else:
            axes = tuple(range(x.ndim - 1))
            mean = jnp.mean(x, axes)
            # Two passes: mean(x²) - mean² would lose all digits where |mean| >> deviation.
            var = jnp.mean(jnp.square(x - mean), axes)
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                count = x.size // x.shape[-1]
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = self._blend(running_mean.value, mean)
                running_var.value = self._blend(running_var.value, unbiased)

        factor = scale * jax.lax.rsqrt(var + self.eps)
        return ((x - mean) * factor + bias).astype(self.dtype)

    def _blend(self, running: jax.Array, batch: jax.Array) -> jax.Array:
        return (1 - self.momentum) * running + self.momentum * jax.lax.stop_gradient(batch)
