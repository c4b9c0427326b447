"""Re-identification losses added to the base loss: batch-hard triplet and learned centres."""

from typing import Any

import flax.linen as nn
import jax

from fct_jax import losses
from fct_jax.losses.numerics import normalize


class MetricLosses(nn.Module):
    """``apply(variables, embedding (B, D), labels (B,)) -> {name: weighted loss}``.

    Attributes:
      options: see ``fct_jax.config.reid``. A loss of weight 0 is left out.
      num_classes: C, the number of centres.
    """

    options: Any
    num_classes: int

    @nn.compact
    def __call__(self, embedding: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        options, found = self.options, {}
        if options.triplet_weight:
            compared = normalize(embedding) if options.triplet_normalize else embedding
            margin = None if options.triplet_soft else options.triplet_margin
            loss = losses.batch_hard_triplet(compared, labels, margin)
            found["batch_hard"] = options.triplet_weight * loss
        if options.center_weight:
            shape = (self.num_classes, embedding.shape[-1])
            centers = self.param("centers", nn.initializers.normal(1.0), shape)
            pull = losses.center_loss(embedding, labels, jax.lax.stop_gradient(centers))
            # The weight is the embedding's; centres move at their own rate, as published.
            move = losses.center_loss(jax.lax.stop_gradient(embedding), labels, centers)
            found["center"] = options.center_weight * pull + move - jax.lax.stop_gradient(move)
        return found
