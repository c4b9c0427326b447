"""OCA: extra channels, an orthogonal layer for the new classes, and the old class means.

The backbone has do + k output channels and ``z`` is its normalised output. The new classes are
classified from ``O z + b`` (O orthogonal), while the first do channels of z stay compatible with
the old index. Serving needs no map: z is the new vector, and ``z[:do]`` searches old vectors.

Source: "Backward-Compatible Aligned Representations via an Orthogonal Transformation Layer" (OCA),
ECCV Workshops 2024, https://arxiv.org/abs/2408.08793, and its public code.
"""

from typing import NamedTuple

import jax

from fct_jax.losses.class_means import class_mean_alignment, class_mean_cross_entropy
from fct_jax.losses.precision import smoothed_cross_entropy

SMOOTHING = 0.1  # as in the published trainer


class OcaParts(NamedTuple):
    """Three parts, each with one number per sample (N,), or the weights of these parts."""

    classification: jax.Array | float
    compatibility: jax.Array | float
    alignment: jax.Array | float


# The published trainer's weights; its config file names others, which the trainer does not read.
OCA_WEIGHTS = OcaParts(5.0, 10.0, 5.0)


def oca(
    logits: jax.Array,
    embedding: jax.Array,
    labels: jax.Array,
    old_means: jax.Array,
    smoothing: float = SMOOTHING,
) -> OcaParts:
    """Return OCA's three parts for each sample; their weighted sum is the loss.

    Args:
      logits: (N, C), the new classifier's output on ``O z + b``.
      embedding: (N, do + k), the backbone's output; its first do channels are compatible.
      labels: (N,) integers. Classes without an old mean take part only in the classification.
      old_means: (C, do), means of the old model's unit vectors, see `class_means`.
      smoothing: label smoothing of both cross-entropies.

    Returns ``classification`` (cross-entropy of the logits), ``compatibility`` (cross-entropy of
    the compatible part with the old means as classifier) and ``alignment`` (1 - cosine of the
    compatible part and the class's mean), each (N,).

    Example: ``sum(w * p.mean() for w, p in zip(OCA_WEIGHTS, oca(logits, z, labels, means)))``.

    Source: https://arxiv.org/abs/2408.08793 and its public trainer.
    """
    compatible = embedding[:, : old_means.shape[1]]
    return OcaParts(
        smoothed_cross_entropy(logits, labels, smoothing),
        class_mean_cross_entropy(compatible, labels, old_means, smoothing),
        class_mean_alignment(compatible, labels, old_means),
    )
