"""A standard residual network whose pooled features are projected to the embedding.

It is the model of "Boundary-Aware Backward-Compatible Representation via Adversarial Learning"
(AdvBCT, CVPR 2023) and of the methods that the paper compares.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fct_jax.models.batch_norm import BatchNorm
from fct_jax.models.linear import Classifier, Linear
from fct_jax.models.resnet import Trunk


class ProjectionHead(nn.Module):
    """``features (N, F), train -> (logits (N, C), embedding (N, D))``, in float32.

    The embedding is the output of a linear layer without bias and a BatchNorm, and is *not*
    normalised. On it the classifier is linear without bias, ``params["classifier"]["kernel"]``
    (D, C). The input of the BatchNorm is kept as "projected" if "intermediates" is mutable.
    """

    num_classes: int
    embedding_dim: int = 256

    @nn.compact
    def __call__(self, features: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        projected = Linear(self.embedding_dim, use_bias=False, name="projection")(features)
        self.sow("intermediates", "projected", projected)
        embedding = BatchNorm(name="projection_bn")(projected, not train)
        logits = Classifier(self.num_classes, name="classifier")(embedding)
        return logits, embedding


class ProjectionResNet(nn.Module):
    """``apply(variables, images (N, H, W, 3), train=False) -> (logits (N, C), embedding (N, D))``.

    The trunk is torchvision's, so that published ImageNet weights fit it; its pooled features
    (512 or 2048 for ``width=64``) go through `ProjectionHead`. The other options, and the
    outputs, are those of `fct_jax.models.resnet.ResNet`.
    """

    block: Callable[..., nn.Module]
    depths: tuple[int, ...]
    expansion: int
    num_classes: int
    base_width: int = 64
    embedding_dim: int = 256
    small_stem: bool = False
    last_stride: int = 2
    width: int = 64
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        trunk = Trunk(
            block=self.block,
            depths=self.depths,
            expansion=self.expansion,
            base_width=self.base_width,
            small_stem=self.small_stem,
            last_stride=self.last_stride,
            width=self.width,
            dtype=self.dtype,
            remat=self.remat,
        )
        nn.share_scope(self, trunk)
        features = jnp.mean(trunk(images, train).astype(jnp.float32), (1, 2))
        head = ProjectionHead(self.num_classes, self.embedding_dim)
        nn.share_scope(self, head)
        return head(features, train)
