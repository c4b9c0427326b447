"""MixBCT: replaces part of the new embeddings by the old ones of the same images.

Source: Liang et al., "MixBCT: Towards Self-Adapting Backward-Compatible Training", 2023,
https://arxiv.org/abs/2308.06948, and its public code.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from fct_jax.errors import UserError
from fct_jax.evaluate.distances import unit_rows
from fct_jax.losses.precision import unit


def credible_mask(
    old_embeddings: np.ndarray, labels: np.ndarray, share: float = 0.9
) -> tuple[np.ndarray, np.ndarray]:
    """Find the samples whose old vector lies near the mean of its class.

    In a class with n samples, the ``ceil(share · n)`` nearest to the mean of its unit old vectors
    are credible; ties go to the first. The sample of a class of one is credible. This is a
    preparation in NumPy, done once for the whole training set.

    Args:
      old_embeddings: (N, D), raw.
      labels: (N,) of any sortable type.
      share: T, above 0 and at most 1.

    Returns ``credible`` (N,) bool, and the distances (N,) float64 to the class's mean.

    Raises UserError if the lengths differ or the share is out of range.

    Example: with ``share=0.8`` a class of five loses the sample furthest from its mean.

    Source: https://arxiv.org/abs/2308.06948. The public code also normalises every column first;
    we do not, because the result would then depend on the other classes.
    """
    labels = np.asarray(labels)
    if np.ndim(old_embeddings) != 2 or labels.shape != (len(old_embeddings),):
        raise UserError(
            f"credible_mask: embeddings {np.shape(old_embeddings)} and labels {labels.shape} must "
            "be (N, D) and (N,)"
        )
    if not 0 < share <= 1:
        raise UserError(f"credible_mask: share must be above 0 and at most 1, not {share}")
    rows = unit_rows(old_embeddings)
    credible, distance = np.zeros(len(rows), bool), np.zeros(len(rows))
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.r_[True, labels[order][1:] != labels[order][:-1]])
    for members in np.split(order, starts[1:]) if len(order) else ():
        distance[members] = np.linalg.norm(rows[members] - rows[members].mean(axis=0), axis=1)
        # In floating point 0.55 · 100 is a little more than 55, but 55 is meant.
        kept = math.ceil(share * len(members) - 1e-9)
        credible[members[np.argsort(distance[members], kind="stable")[:kept]]] = True
    return credible, distance


def mix_old_embeddings(
    embedding: jax.Array,
    old_embedding: jax.Array,
    credible: jax.Array,
    key: jax.Array,
    share: float = 0.3,
) -> tuple[jax.Array, jax.Array]:
    """Replace a random part of a batch's new embeddings by the old model's unit vectors.

    ``round(share · N)`` of the credible samples are drawn without replacement; if fewer are
    credible, all of them are taken (the public code stops with an error). The result goes into an
    ordinary ArcFace loss (published: scale 64, margin 0.5), and no other loss is added.

    Args:
      embedding: (N, D) of the new model; the replaced rows get no gradient.
      old_embedding: (N, D) of the old model for the same images, raw; constants.
      credible: (N,) bool, see `credible_mask`.
      key: random key of `jax.random`.
      share: r, from 0 to 1.

    Returns the mixed batch (N, D) and ``replaced`` (N,) bool.

    Raises UserError if the shapes differ.

    Example: ``mix_old_embeddings(f, o, np.ones(10, bool), key)`` replaces three of ten rows.

    Source: https://arxiv.org/abs/2308.06948.
    """
    if embedding.shape != old_embedding.shape:
        raise UserError(
            f"MixBCT needs old vectors of the new size: {old_embedding.shape} and "
            f"{embedding.shape} differ"
        )
    count = round(share * len(embedding))
    # Uniform numbers lie below 1, so credible samples come first, in random order.
    draw = jax.random.uniform(key, (len(embedding),)) + jnp.where(jnp.asarray(credible), 0.0, 2.0)
    place = jnp.argsort(jnp.argsort(draw))
    replaced = jnp.asarray(credible) & (place < count)
    old = jax.lax.stop_gradient(unit(old_embedding)).astype(embedding.dtype)
    return jnp.where(replaced[:, None], old, embedding), replaced
