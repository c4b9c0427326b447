"""Batch normalisation with PyTorch's semantics."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fct_jax.models.normalized_product import normalized_product
from fct_jax.models.normalizing import normalize, normalize_pooled


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

    def __call__(self, x: jax.Array, use_running_average: bool) -> jax.Array:
        own = self.own(x.shape[-1])
        if use_running_average:
            centred = x.astype(jnp.float32) - own.mean.value
            factor = own.scale * jax.lax.rsqrt(own.var.value + self.eps)
            return (centred * factor + own.bias).astype(self.dtype)
        y, mean, var = normalize(x, own.scale, own.bias, self.eps)
        return self._updated(own, y, mean, var, x)

    def of_product(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Return ``self(x @ kernel, False)`` without storing the product.

        x is (N, H, W, in), of a type of 16 bits, and kernel (in, C) float32.
        """
        own = self.own(kernel.shape[-1])
        y, mean, var = normalized_product(x, kernel, own.scale, own.bias, self.eps)
        return self._updated(own, y, mean, var, x)

    def of_pooled(self, signed: jax.Array, signs: jax.Array) -> jax.Array:
        """Return ``max_pool(self(signed * signs, False))``; ``signs`` (C,) is `signs`'s result."""
        own = self.own(signed.shape[-1])
        y, mean, var = normalize_pooled(signed, own.scale * signs, own.bias, self.eps)
        return self._updated(own, y, mean * signs, var, signed)

    def signs(self, channels: int) -> jax.Array:
        """Return -1 for channels with a negative scale, 1 for others: (C,)."""
        return jnp.where(self.own(channels).scale < 0, -1.0, 1.0)

    @nn.compact
    def own(self, channels: int) -> "Own":
        """Return the layer's parameters and running statistics."""
        return Own(
            self.param("scale", nn.initializers.ones, (channels,), jnp.float32),
            self.param("bias", nn.initializers.zeros, (channels,), jnp.float32),
            self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32),
            self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32),
        )

    def _updated(self, own: "Own", y, mean, var, x) -> jax.Array:
        """Return ``y`` in the layer's type, and update the running statistics."""
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            count = x.size // x.shape[-1]
            unbiased = var * (count / max(count - 1, 1))
            own.mean.value = self._blend(own.mean.value, mean)
            own.var.value = self._blend(own.var.value, unbiased)
        return y.astype(self.dtype)

    def _blend(self, running: jax.Array, batch: jax.Array) -> jax.Array:
        return (1 - self.momentum) * running + self.momentum * jax.lax.stop_gradient(batch)


class Own(NamedTuple):
    """Parameters (C,) and running statistics of a BatchNorm."""

    scale: jax.Array
    bias: jax.Array
    mean: nn.Variable
    var: nn.Variable
