"""Losses of λ-orthogonality: near-orthogonality of a map, and a supervised contrastive loss.

Source: "λ-Orthogonality Regularization for Compatible Representation Learning", NeurIPS 2025,
https://arxiv.org/abs/2509.16664.
"""

import jax
import jax.numpy as jnp

from fct_jax.errors import UserError
from fct_jax.losses.numerics import safe_sqrt
from fct_jax.losses.precision import floating, unit


def lambda_orthogonality(
    weight: jax.Array, limit: float = 12.0, steepness: float = 1.0
) -> jax.Array:
    """Penalise a square matrix for being further than ``limit`` from orthogonal. Scalar.

    The loss is ``σ(steepness · (r - limit)) · r`` with ``r = ‖W Wᵀ - I‖_F``: it is almost zero
    while r stays below the limit, and approaches r far above it. For an exactly orthogonal matrix
    value and gradient are 0.

    Args:
      weight: (D, D), applied to rows as ``x @ weight`` or ``x @ weight.T``; r is the same for both.
      limit: λ, an absolute Frobenius norm; published: 12 at D = 1024. For other sizes
        ``12 · sqrt(D / 1024)`` keeps the same root mean square error per row (our advice, not
        the paper's). With a limit of 0 the factor σ still varies between ½ and 1.
      steepness: α; the paper gives no value, only that a larger one is steeper.

    Raises UserError if the matrix is not square.

    Example: ``lambda_orthogonality(jnp.eye(4)) == 0``.

    Source: https://arxiv.org/abs/2509.16664, the regulariser L_λ.

    >>> [round(float(lambda_orthogonality(scale * jnp.eye(2), 1.0)), 3) for scale in (1.0, 3.0)]
    [0.0, 11.313]
    """
    weight = floating(weight)
    if weight.ndim != 2 or weight.shape[0] != weight.shape[1]:
        raise UserError(f"lambda_orthogonality: the weight must be square, not {weight.shape}")
    gram = jnp.matmul(weight, weight.T, precision="highest")
    norm = safe_sqrt(jnp.sum(jnp.square(gram - jnp.eye(len(weight), dtype=weight.dtype))))
    return jax.nn.sigmoid(steepness * (norm - limit)) * norm


def multi_positive_contrastive(
    anchors: jax.Array,
    candidates: jax.Array,
    anchor_labels: jax.Array,
    candidate_labels: jax.Array,
    temperature: float = 0.1,
) -> jax.Array:
    """Contrast every anchor with all candidates; those of its class share the target evenly. (N,)

    The loss of anchor i is the cross-entropy between softmax_j(``â_i · ĉ_j / temperature``) and
    the distribution that is uniform over the candidates of its label. Both sides are normalised
    here. It is not symmetrised, and an anchor's own item counts as a positive. An anchor without
    a candidate of its label has loss 0 and no gradient.

    Args:
      anchors: (N, D), raw.
      candidates: (M, D), raw; they get a gradient too (stop it in the caller if unwanted).
      anchor_labels, candidate_labels: (N,), (M,) integers. Without labels, pass item numbers:
        each anchor's only positive is then its own item (as in CLIP).
      temperature: above 0; the paper gives no value, 0.1 is that of the loss it cites.

    Example: if all have the same class, identical candidates give ``log(M)`` for every anchor.

    Source: https://arxiv.org/abs/2509.16664 (L_contr), after Khosla et al., "Supervised
    Contrastive Learning", NeurIPS 2020, https://arxiv.org/abs/2004.11362.
    """
    logits = jnp.matmul(unit(anchors), unit(candidates).T, precision="highest") / temperature
    positive = jnp.asarray(anchor_labels)[:, None] == jnp.asarray(candidate_labels)[None, :]
    count = jnp.sum(positive, axis=-1)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    total = jnp.sum(jnp.where(positive, log_probs, 0.0), axis=-1)
    return jnp.where(count > 0, -total / jnp.maximum(count, 1), 0.0)
