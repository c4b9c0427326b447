"""Losses as pure functions on arrays; scalars unless a shape is given. They run under ``jit``."""

from fct_jax.losses.adversarial import (
    adversarial,
    adversarial_strength,
    adversarial_weight,
    gradient_reversal,
)
from fct_jax.losses.alignment import alignment, uncertainty_weighted
from fct_jax.losses.boundary import advbct_boundary, advbct_point, elastic_radius, lce
from fct_jax.losses.bt2 import BT2_SCALE, BT2_WEIGHTS, bt2, bt2_embedding
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
from fct_jax.losses.hoc import (
    HOC_WEIGHTS,
    average_accuracy,
    average_compatibility,
    hoc,
    simplex_vertices,
)
from fct_jax.losses.lambda_orthogonality import lambda_orthogonality, multi_positive_contrastive
from fct_jax.losses.mixbct import credible_mask, mix_old_embeddings
from fct_jax.losses.oca import OCA_WEIGHTS, oca
from fct_jax.losses.pairs import contrastive, hot_refresh, l2, triplet, triplet_ract
from fct_jax.losses.reid import batch_hard_triplet, center_loss
from fct_jax.losses.relational import (
    CONVERTER_WEIGHTS,
    distance_preservation,
    embedding_converter,
    hmoe_regression,
    off_axis_energy,
    off_axis_share,
    principal_axis,
    relation_change,
)
from fct_jax.losses.self_supervised import nt_xent

__all__ = [
    "BASE_LOSSES",
    "BT2_SCALE",
    "BT2_WEIGHTS",
    "CONVERTER_WEIGHTS",
    "HEADS",
    "HOC_WEIGHTS",
    "OCA_WEIGHTS",
    "advbct_boundary",
    "advbct_point",
    "adversarial",
    "adversarial_strength",
    "adversarial_weight",
    "alignment",
    "arcface",
    "average_accuracy",
    "average_compatibility",
    "base_logits",
    "batch_hard_triplet",
    "bct",
    "bct_ract",
    "bt2",
    "bt2_embedding",
    "center_loss",
    "contrastive",
    "cosface",
    "cosine_logits",
    "credible_mask",
    "cross_entropy",
    "distance_preservation",
    "elastic_radius",
    "embedding_converter",
    "focal_distillation",
    "gradient_reversal",
    "hmoe_regression",
    "hoc",
    "hot_refresh",
    "l2",
    "label_smoothed_cross_entropy",
    "lambda_orthogonality",
    "lce",
    "lwf",
    "mix_old_embeddings",
    "multi_positive_contrastive",
    "nt_xent",
    "oca",
    "off_axis_energy",
    "off_axis_share",
    "principal_axis",
    "relation_change",
    "simplex_vertices",
    "triplet",
    "triplet_ract",
    "uncertainty_weighted",
    "unibct",
]
