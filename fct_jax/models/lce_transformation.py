"""LCE's optional transformation of old embeddings and class centres into the new space.

Meng et al., "Learning Compatible Embeddings", ICCV 2021, https://arxiv.org/abs/2108.01958.
"""

import flax.linen as nn
import jax
import numpy as np

from fct_jax.models.batch_norm import BatchNorm
from fct_jax.models.layers import Layers, folded
from fct_jax.models.linear import Linear


class LCETransformation(nn.Module):
    """``apply(variables, x (N, D), train=False) -> (N, D)``: ``blocks`` residual blocks.

    Each block adds to x the output of three layers of linear, BatchNorm and ReLU,
    D -> inner -> inner -> D. Because of the last ReLU a block can only increase x, as published.
    Without blocks x is returned unchanged.
    """

    blocks: int
    inner: int = 16

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for block in range(self.blocks):
            y = x
            for layer, width in enumerate((self.inner, self.inner, x.shape[-1])):
                y = Linear(width, name=f"block{block}_fc{layer}")(y)
                y = nn.relu(BatchNorm(name=f"block{block}_bn{layer}")(y, not train))
            x = x + y
        return x


class GalleryTransformation(nn.Module):
    """`LCETransformation` with the interface of every transformation of an old gallery.

    ``apply(variables, old (N, D), side, train=False) -> (embedding (N, D), None)``; the variables
    are those of `LCETransformation`, and ``side`` is ignored.
    """

    blocks: int
    inner: int = 16

    @nn.compact
    def __call__(self, old: jax.Array, side: jax.Array, train: bool = False):
        del side
        transform = LCETransformation(self.blocks, self.inner)
        nn.share_scope(self, transform)
        return transform(old, train), None

    def as_layers(self, variables) -> Layers:
        """Return the map as plain layers, each of which also passes on its block's input.

        A vector x passes through a ReLU as relu(x) and relu(−x), whose difference is x.
        """
        variables = jax.device_get(variables)
        # Each block has three layers.
        dim = variables["params"]["block0_fc2"]["kernel"].shape[1] if self.blocks else 0
        identity, layers = np.eye(dim, dtype=np.float32), []
        # x is a linear function of the layer before, with this matrix.
        reader = identity
        for block in range(self.blocks):
            carry = reader @ np.hstack([identity, -identity])
            for number in range(3):
                fc = variables["params"][f"block{block}_fc{number}"]
                name = f"block{block}_bn{number}"
                norm = variables["params"][name], variables["batch_stats"][name]
                weight, bias = folded(fc["kernel"], *norm, fc["bias"])
                if number == 0:
                    weight = np.hstack([reader @ weight, carry])
                else:  # the passed-on input follows the block's own part
                    own, kept = weight.shape[1], 2 * dim
                    padded = np.zeros((len(weight) + kept, own + kept), np.float32)
                    padded[: len(weight), :own] = weight
                    padded[len(weight) :, own:] = np.eye(kept)
                    weight = padded
                layers.append((weight, np.concatenate([bias, np.zeros(2 * dim, np.float32)])))
            reader = np.vstack([identity, identity, -identity])
        return [*layers, (reader, np.zeros(dim, np.float32))] if layers else []
