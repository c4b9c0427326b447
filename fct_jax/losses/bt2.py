"""BT²: an orthogonal change of basis that keeps the old space in the first do numbers.

Source: Zhou et al., "BT²: Backward-compatible Training with Basis Transformation", ICCV 2023,
https://arxiv.org/abs/2211.03989, and its public code.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fct_jax.errors import UserError
from fct_jax.losses.class_means import class_mean_cross_entropy
from fct_jax.losses.precision import cosine, floating, smoothed_cross_entropy, unit

BT2_SCALE = 2.0  # C, the length of the new model's part; the extra part has length 1


class Bt2Embedding(NamedTuple):
    """The vectors that BT² serves: ``full`` (N, dn + k) and its first do, ``compatible``."""

    full: jax.Array
    compatible: jax.Array


class Bt2Parts(NamedTuple):
    """Four parts, each with one number per sample (N,), or the weights of these parts."""

    classification: jax.Array | float
    teacher: jax.Array | float
    compatibility: jax.Array | float
    alignment: jax.Array | float


# The last three are λ1 … λ3 of the published configs. An early trainer has 10 as the last one; it
# is not known which of the two produced the published numbers.
BT2_WEIGHTS = Bt2Parts(1.0, 1.0, 10.0, 5.0)


def bt2_embedding(
    new: jax.Array,
    old_branch: jax.Array,
    new_basis: jax.Array,
    old_basis: jax.Array,
    extra: int = 32,
    scale: float = BT2_SCALE,
) -> Bt2Embedding:
    """Combine the new vector and ``extra`` further numbers in a basis that contains the old space.

    ``z = [ŝ[:k] / ‖ŝ[:k]‖, O_p (C â)]``, ``b = O_o z[:do]`` and the result is ``[b, z[do:]]``.
    Nothing is lost, because both bases are orthogonal: the squared length is always 1 + C².

    Args:
      new: (N, dn), raw; a is its direction.
      old_branch: (N, do), raw, s, the output of the branch for the extra numbers.
      new_basis: (dn, dn) orthogonal, O_p.
      old_basis: (do, do) orthogonal, O_o.
      extra: k, at most do.
      scale: C.

    Raises UserError unless 1 ≤ k ≤ do ≤ dn + k.

    Example: with identity bases, k = 1 and do = 1, ``compatible`` is ±1.

    Source: https://arxiv.org/abs/2211.03989, section 3, in the order of the public code.
    """
    dim_old, dim_new = old_branch.shape[-1], new.shape[-1]
    if not 1 <= extra <= dim_old or dim_old > dim_new + extra:
        raise UserError(
            f"bt2: extra must be at least 1 and at least {dim_old - dim_new} (old size minus new "
            f"size), and at most the old size {dim_old}, not {extra}"
        )
    turned = jnp.matmul(scale * unit(new), floating(new_basis).T, precision="highest")
    z = jnp.concatenate([unit(unit(old_branch)[:, :extra]), turned], axis=-1)
    compatible = jnp.matmul(z[:, :dim_old], floating(old_basis).T, precision="highest")
    return Bt2Embedding(jnp.concatenate([compatible, z[:, dim_old:]], axis=-1), compatible)


def bt2(
    logits: jax.Array,
    new: jax.Array,
    teacher: jax.Array,
    compatible: jax.Array,
    old_embedding: jax.Array,
    labels: jax.Array,
    old_means: jax.Array,
) -> Bt2Parts:
    """Return BT²'s four parts for each sample; their weighted sum is the loss.

    Args:
      logits: (N, C), the new classifier's output on the normalised new vector.
      new: (N, dn), the model's own vector, raw.
      teacher: (N, dn), vectors of a new model that was trained without regard to the old one;
        constants.
      compatible: (N, do), as `bt2_embedding` returns it.
      old_embedding: (N, do), the old model's vectors of the same images; constants.
      labels: (N,) integers. Classes without an old mean add no ``compatibility``.
      old_means: (C, do), means of the old model's unit vectors, see `class_means`.

    Returns ``classification`` (plain cross-entropy), ``teacher`` (1 - cosine with the teacher),
    ``compatibility`` (cross-entropy with the old means as classifier) and ``alignment``
    (1 - cosine with the old vector), each (N,).

    Example: ``sum(w * p.mean() for w, p in zip(BT2_WEIGHTS, bt2(...)))``.

    Source: https://arxiv.org/abs/2211.03989 and its public trainer, which ignores the label
    smoothing of the config.
    """
    return Bt2Parts(
        smoothed_cross_entropy(logits, labels),
        1.0 - cosine(new, jax.lax.stop_gradient(teacher)),
        class_mean_cross_entropy(compatible, labels, old_means),
        1.0 - cosine(compatible, jax.lax.stop_gradient(old_embedding)),
    )
