"""Losses as pure functions on arrays; scalars unless a shape is given. They run under ``jit``."""

from fct_jax.losses.adversarial import (
    adversarial,
    adversarial_strength,
    adversarial_weight,
    gradient_reversal,
)
from fct_jax.losses.alignment import alignment, uncertainty_weighted
from fct_jax.losses.boundary import advbct_boundary, advbct_point, elastic_radius, lce
from fct_jax.losses.classification import (
    arcface,
    cosface,
    cosine_logits,
    cross_entropy,
    focal_distillation,
    label_smoothed_cross_entropy,
    lwf,
)
from fct_jax.losses.compatibility import bct, bct_ract, unibct
from fct_jax.losses.heads import BASE_LOSSES, HEADS, base_logits
from fct_jax.losses.pairs import contrastive, hot_refresh, l2, triplet, triplet_ract
from fct_jax.losses.reid import batch_hard_triplet, center_loss
from fct_jax.losses.self_supervised import nt_xent

__all__ = [
    "BASE_LOSSES",
    "HEADS",
    "advbct_boundary",
    "advbct_point",
    "adversarial",
    "adversarial_strength",
    "adversarial_weight",
    "alignment",
    "arcface",
    "base_logits",
    "batch_hard_triplet",
    "bct",
    "bct_ract",
    "center_loss",
    "contrastive",
    "cosface",
    "cosine_logits",
    "cross_entropy",
    "elastic_radius",
    "focal_distillation",
    "gradient_reversal",
    "hot_refresh",
    "l2",
    "label_smoothed_cross_entropy",
    "lce",
    "lwf",
    "nt_xent",
    "triplet",
    "triplet_ract",
    "uncertainty_weighted",
    "unibct",
]
