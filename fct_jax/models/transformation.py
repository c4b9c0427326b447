"""The transformation from old embeddings to new ones.

FCT: "Forward Compatible Training for Large-Scale Embedding Retrieval Systems", CVPR 2022,
https://arxiv.org/abs/2112.02805. FastFill adds the uncertainty: "FastFill: Efficient Compatible
Model Update", ICLR 2023, https://arxiv.org/abs/2303.04766.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fct_jax.models.batch_norm import BatchNorm
from fct_jax.models.layers import Layers, block_diagonal, folded
from fct_jax.models.linear import Linear


class Layer(nn.Module):
    """Linear without bias, BatchNorm, ReLU: ``(N, in) -> (N, features)``."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = Linear(self.features, use_bias=False, dtype=self.dtype, name="linear")(x)
        return nn.relu(BatchNorm(dtype=self.dtype, name="bn")(x, not train))


class Transformation(nn.Module):
    """``apply(variables, old (N, do), side (N, ds), train=False) -> (embedding, log_variance)``.

    ``embedding`` (N, embedding_dim) approximates the new model's; ``log_variance`` (N,) is
    FastFill's uncertainty, one number per sample, or None without ``uncertainty``. Both are
    float32. ``side`` is the side information; if it is None, the old embedding replaces it.

    The log-variance is not clamped here; the loss keeps it finite.
    ``train=False`` is also the mode of the second half of training: BatchNorm then uses its
    running statistics without updating them, while every parameter continues to learn.
    ``remat`` recomputes the layers in the backward pass, to save memory in training.
    """

    embedding_dim: int
    inner_dim: int = 2048
    uncertainty: bool = False
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, old: jax.Array, side: jax.Array | None = None, train: bool = False
    ) -> tuple[jax.Array, jax.Array | None]:
        side = old if side is None else side
        # static_argnums: self, x, train
        layer = nn.remat(Layer, static_argnums=(2,)) if self.remat else Layer
        projected = []
        for name, x in (("p1", old), ("p2", side)):
            x = layer(2 * x.shape[-1], self.dtype, name=f"{name}_0")(x, train)
            projected.append(layer(2 * self.embedding_dim, self.dtype, name=f"{name}_1")(x, train))
        x = jnp.concatenate(projected, -1)
        x = layer(self.inner_dim, self.dtype, name="mixer_0")(x, train)
        x = layer(self.inner_dim, self.dtype, name="mixer_1")(x, train)
        x = Linear(self.embedding_dim, dtype=self.dtype, name="mixer_2")(x)
        embedding = x.astype(jnp.float32)
        if not self.uncertainty:
            return embedding, None
        # Not detached: the uncertainty's loss also shapes the embedding, as published.
        return embedding, Linear(1, name="uncertainty_head")(embedding)[:, 0]

    def as_layers(self, variables) -> Layers:
        """Return the map of old vectors, without side information, as plain layers.

        Both branches read the old vector, so their weights are put side by side. The uncertainty
        is left out.
        """
        variables = jax.device_get(variables)

        def layer(name: str):
            params, stats = variables["params"][name], variables["batch_stats"][name]
            return folded(params["linear"]["kernel"], params["bn"], stats["bn"])

        (w1, b1), (w2, b2) = layer("p1_0"), layer("p2_0")
        (v1, c1), (v2, c2) = layer("p1_1"), layer("p2_1")
        last = variables["params"]["mixer_2"]
        return [
            (np.hstack([w1, w2]), np.concatenate([b1, b2])),
            (block_diagonal(v1, v2), np.concatenate([c1, c2])),
            layer("mixer_0"),
            layer("mixer_1"),
            (last["kernel"], last["bias"]),
        ]
