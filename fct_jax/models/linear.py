"""A fully connected layer that is initialised like PyTorch's."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fct_jax.runtime import sharding

# U(-1/sqrt(fan_in), 1/sqrt(fan_in)): kaiming_uniform with a = sqrt(5), PyTorch's default.
# Flax counts all axes but the last as inputs, which is right for (in, out) and (h, w, in, out).
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Linear(nn.Module):
    """``(…, in) -> (…, features)``; parameters kernel (in, features) and, if asked, bias."""

    features: int
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs = x.shape[-1]
        kernel = self.param("kernel", torch_uniform, (inputs, self.features), jnp.float32)
        x = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.use_bias:
            bound = inputs**-0.5  # the bias has the fan-in of the kernel

            def uniform(key, shape):
                return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

            x = x + self.param("bias", uniform, (self.features,)).astype(self.dtype)
        return x


class Classifier(nn.Module):
    """Embeddings (N, D) -> logits (N, C), linear without bias; parameter kernel (D, C).

    A module of the name "classifier" is split by classes where ``config.mesh.model`` asks for it.
    """

    num_classes: int

    @nn.compact
    def __call__(self, embedding: jax.Array) -> jax.Array:
        shape = embedding.shape[-1], self.num_classes
        kernel = self.param("kernel", torch_uniform, shape, jnp.float32)
        return sharding.for_classes(embedding) @ kernel
