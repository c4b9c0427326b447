"""BT²'s model: the outputs of a backbone become one vector that begins with the old space.

Zhou et al., "BT²: Backward-compatible Training with Basis Transformation", ICCV 2023,
https://arxiv.org/abs/2211.03989.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fct_jax import models
from fct_jax.losses.bt2 import bt2_embedding
from fct_jax.models.linear import Classifier, Linear


class BasisChange(nn.Module):
    """``apply(variables, images (N, H, W, 3), train=False) -> (logits (N, C), embedding (N, D))``.

    The backbone's outputs (N, dn + do) are the new model's own vector (dn), and the vector (do)
    from which the branch makes ``extra`` further numbers. D is dn + extra; the first do numbers
    search an old gallery. The classifier is linear without bias,
    ``params["classifier"]["kernel"]`` (D, C). Training uses another form of the model
    (`fct_jax.train.compatible.extended`) and exports this one.

    Attributes:
      backbone, options: name and attributes for ``fct_jax.models.build``.
      num_classes: C.
      old_dim: do.
      extra: k.
    """

    backbone: str
    options: Mapping[str, Any]
    num_classes: int
    old_dim: int
    extra: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        backbone = models.build(self.backbone, **self.options).copy(name="backbone")
        outputs = backbone(images, train)[1]
        dim_new = outputs.shape[-1] - self.old_dim
        branch = Linear(self.old_dim, name="branch")(nn.relu(outputs))
        bases = (
            self.param(name, nn.initializers.orthogonal(), (dim, dim), jnp.float32)
            for name, dim in (("new_basis", dim_new), ("old_basis", self.old_dim))
        )
        made = bt2_embedding(outputs[:, :dim_new], branch, *bases, extra=self.extra)
        logits = Classifier(self.num_classes, name="classifier")(made.full)
        return logits, made.full
