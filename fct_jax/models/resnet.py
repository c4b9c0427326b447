"""Residual networks whose last block sets the size of the embedding.

Sources: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, in torchvision's
variant; for the narrow last block "Forward Compatible Training", CVPR 2022, section 5.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fct_jax.losses.numerics import normalize
from fct_jax.models.batch_norm import BatchNorm
from fct_jax.models.convolution import Conv
from fct_jax.models.linear import Classifier
from fct_jax.models.normalized_product import pays
from fct_jax.models.pooling import max_pool


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut; ``(N, H, W, in) -> (N, H/stride, W/stride, out)``.

    ``inner`` is used only by `Bottleneck`; here both convolutions have ``out`` channels.
    """

    inner: int
    out: int
    stride: int = 1
    nonlin: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = Conv(self.out, 3, self.stride, self.dtype, name="conv1")(x)
        y = nn.relu(BatchNorm(dtype=self.dtype, name="bn1")(y, not train))
        y = Conv(self.out, 3, 1, self.dtype, name="conv2")(y)
        y = BatchNorm(dtype=self.dtype, name="bn2")(y, not train)
        return _add_shortcut(self, x, y, train)


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions and a shortcut; the stride is on the 3×3."""

    inner: int
    out: int
    stride: int = 1
    nonlin: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = Conv(self.inner, 1, 1, self.dtype, name="conv1")(x)
        y = nn.relu(BatchNorm(dtype=self.dtype, name="bn1")(y, not train))
        y = Conv(self.inner, 3, self.stride, self.dtype, name="conv2")(y)
        y = nn.relu(BatchNorm(dtype=self.dtype, name="bn2")(y, not train))
        y = _normalized_product(self, "conv3", "bn3", y, 1, train)
        return _add_shortcut(self, x, y, train)


def _add_shortcut(block: nn.Module, x: jax.Array, y: jax.Array, train: bool) -> jax.Array:
    """Return ``y`` plus the block's input, which is projected if stride or width change."""
    if block.stride != 1 or x.shape[-1] != block.out:
        names = "downsample_conv", "downsample_bn"
        x = _normalized_product(block, *names, x, block.stride, train)
    y = x + y
    return nn.relu(y) if block.nonlin else y


def _normalized_product(block, conv_name, norm_name, x, stride, train):
    """Return a 1×1 convolution to ``block.out`` channels and its BatchNorm, without a ReLU."""
    conv = Conv(block.out, 1, stride, block.dtype, name=conv_name)
    norm = BatchNorm(dtype=block.dtype, name=norm_name)
    x = x.astype(block.dtype)
    if train and stride == 1 and pays(x, block.out):
        return norm.of_product(x, conv.kernel(x.shape[-1])[0, 0])
    return norm(conv(x), not train)


def rematerialised(module: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Return the module, called ``(x, train)``, recomputing activations in the backward pass."""
    return nn.remat(module, static_argnums=(2,))  # self, x, train


class Trunk(nn.Module):
    """Images (N, H, W, 3) -> last feature maps (N, h, w, D), before any pooling.

    ``embedding_dim=None`` keeps the full width of the last stage, ``8 * width * expansion``.
    It is used with ``nn.share_scope``, so that its parameters are at the top level of the model.
    ``remat`` keeps only the input of each block for the backward pass, which recomputes the rest:
    this saves most activations for a third more work. Values and parameters stay the same.
    """

    block: Callable[..., nn.Module]
    depths: tuple[int, ...]
    expansion: int
    base_width: int = 64
    embedding_dim: int | None = None
    last_nonlin: bool = True
    small_stem: bool = False
    last_stride: int = 2
    width: int = 64
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        block = rematerialised(self.block) if self.remat else self.block
        size, stride = (3, 1) if self.small_stem else (7, 2)
        conv = Conv(self.width, size, stride, self.dtype, name="conv1")
        norm = BatchNorm(dtype=self.dtype, name="bn1")
        if self.small_stem:
            x = nn.relu(norm(conv(x), not train))
        elif train:
            signs = norm.signs(self.width)
            x = nn.relu(norm.of_pooled(conv(x, signs), signs))
        else:
            x = max_pool(nn.relu(norm(conv(x), True)))

        strides = (1, *[2] * (len(self.depths) - 2), self.last_stride)
        for stage, depth in enumerate(self.depths):
            planes = self.width * 2**stage
            inner = planes * self.base_width // 64
            for index in range(depth):
                out, nonlin = planes * self.expansion, True
                if stage == len(self.depths) - 1 and index == depth - 1:
                    out, nonlin = self.embedding_dim or out, self.last_nonlin
                stride = strides[stage] if index == 0 else 1
                name = f"layer{stage + 1}_{index}"
                x = block(inner, out, stride, nonlin, self.dtype, name=name)(x, train)
        return x


class ResNet(nn.Module):
    """``apply(variables, images (N, H, W, 3), train=False) -> (logits (N, C), embedding (N, D))``.

    Images are float, already normalised, and of any size from 8 px up. The embedding is the global
    average of the last feature maps, with ``embedding_dim`` channels (None: as wide as the last
    stage); on it the classifier is linear without bias, ``params["classifier"]["kernel"]``
    (D, C). Both outputs are float32; ``dtype`` is the type of the computation in between.
    ``has_classifier=False`` leaves the classifier out, and the logits are (N, 0).

    With ``train=True`` BatchNorm uses the batch's statistics, and updates the running ones if
    "batch_stats" is mutable.

    ``last_nonlin=False`` leaves out the very last ReLU, so that embeddings may be negative.
    ``normalize_embedding`` divides the embedding by its L2 norm, before the classifier, so that
    logits are always the classifier times the returned embedding.
    ``small_stem`` replaces the 7×7/2 convolution and the pooling by one 3×3, for images of
    8 to 64 px. ``last_stride=1`` gives the last stage the resolution of the one before, as is
    usual in person re-identification. ``width`` is the number of channels of the stem (64 in the
    papers). ``remat`` saves memory in training, see `Trunk`.
    """

    block: Callable[..., nn.Module]
    depths: tuple[int, ...]
    expansion: int
    num_classes: int
    base_width: int = 64
    embedding_dim: int | None = 128
    last_nonlin: bool = True
    normalize_embedding: bool = False
    has_classifier: bool = True
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
            embedding_dim=self.embedding_dim,
            last_nonlin=self.last_nonlin,
            small_stem=self.small_stem,
            last_stride=self.last_stride,
            width=self.width,
            dtype=self.dtype,
            remat=self.remat,
        )
        nn.share_scope(self, trunk)
        maps = trunk(images, train)
        embedding = jnp.mean(maps.astype(jnp.float32), (1, 2))
        if self.normalize_embedding:
            embedding = normalize(embedding)
        if not self.has_classifier:
            return embedding[:, :0], embedding
        logits = Classifier(self.num_classes, name="classifier")(embedding)
        return logits, embedding
