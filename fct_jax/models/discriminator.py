"""AdvBCT's discriminator, which tells embeddings of the new model from those of the old one.

Source: "Boundary-Aware Backward-Compatible Representation via Adversarial Learning", CVPR 2023.
"""

import flax.linen as nn
import jax

from fct_jax.models.batch_norm import BatchNorm
from fct_jax.models.linear import Linear


class Discriminator(nn.Module):
    """``apply(variables, embedding (N, D), train=True) -> log-probabilities (N, 2)``.

    Column 0 is "new", column 1 "old". The module exists only during training, so by default its
    BatchNorm uses the statistics of the batch: call it separately for the new and for the old
    embeddings, new ones first, as published. Under ``jit`` with a sharded batch the statistics are
    those of the whole batch on all devices.
    """

    hidden: int = 100

    @nn.compact
    def __call__(self, embedding: jax.Array, train: bool = True) -> jax.Array:
        x = Linear(self.hidden, name="fc1")(embedding)
        x = nn.relu(BatchNorm(name="bn1")(x, not train))
        return nn.log_softmax(Linear(2, name="fc2")(x))
