"""LCE's optional transformation of old embeddings and class centres into the new space.

Meng et al., "Learning Compatible Embeddings", ICCV 2021.
"""

import flax.linen as nn
import jax

from fct_jax.models.batch_norm import BatchNorm
from fct_jax.models.linear import Linear


class LCETransformation(nn.Module):
    """``apply(variables, x (N, D), train=False) -> (N, D)``: ``blocks`` residual blocks.

    Each adds to x three layers of linear, BatchNorm and ReLU, D -> inner -> inner -> D. Because
    of the last ReLU a block can only add, as published. Without blocks x comes back as it is.
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
    """`LCETransformation` called like every transformation of an old gallery.

    ``apply(variables, old (N, D), side, train=False) -> (embedding (N, D), None)``; the variables
    are those of `LCETransformation`, and ``side`` is not used.
    """

    blocks: int
    inner: int = 16

    @nn.compact
    def __call__(self, old: jax.Array, side: jax.Array, train: bool = False):
        del side
        transform = LCETransformation(self.blocks, self.inner)
        nn.share_scope(self, transform)
        return transform(old, train), None
