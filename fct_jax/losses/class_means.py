"""Agreement of new embeddings with the old model's class means: the basis of OCA and BT².

The means M (C, do) are those of the old model's unit vectors over the *new* training set, and are
not normalised again; they are the ``center`` of :func:`fct_jax.class_statistics`. A mean of zeros
marks a class without any old vector: it is not a candidate, and its samples count as unknown to
the old model.

Sources: https://arxiv.org/abs/2408.08793 (OCA), https://arxiv.org/abs/2211.03989 (BT²).
"""

import jax
import jax.numpy as jnp

from fct_jax.losses.numerics import MASKED, known_labels
from fct_jax.losses.precision import cosine, floating, unit


def class_mean_cross_entropy(
    embedding: jax.Array, labels: jax.Array, means: jax.Array, smoothing: float = 0.0
) -> jax.Array:
    """Return the cross-entropy (N,) of unit embeddings with the old class means as classifier.

    embedding (N, do), raw; labels (N,); means (C, do), constants. A sample of an unknown class
    has loss 0 and no gradient. The smoothed share is spread over the known classes alone.
    """
    means, seen, known, labels = _prepared(labels, means)
    logits = jnp.matmul(unit(embedding), means.T, precision="highest")
    log_probs = jax.nn.log_softmax(jnp.where(seen, logits, MASKED), axis=-1)
    own = jnp.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]
    spread = jnp.sum(jnp.where(seen, log_probs, 0.0), axis=-1) / jnp.maximum(jnp.sum(seen), 1)
    return jnp.where(known, -(1.0 - smoothing) * own - smoothing * spread, 0.0)


def class_mean_alignment(embedding: jax.Array, labels: jax.Array, means: jax.Array) -> jax.Array:
    """Return ``1 - cosine`` (N,) of each embedding and the mean of its class.

    The arguments are those of `class_mean_cross_entropy`; unknown classes have loss 0.
    """
    means, _, known, labels = _prepared(labels, means)
    return jnp.where(known, 1.0 - cosine(embedding, means[labels]), 0.0)


def _prepared(labels, means):
    """Return the means as constants, masks of known classes and samples, and safe labels."""
    means = jax.lax.stop_gradient(floating(means))
    seen = jnp.any(means != 0, axis=-1)
    known, labels = known_labels(labels, len(means))
    return means, seen, known & seen[labels], labels
