"""d-Simplex classifiers and the HOC loss, for models that are replaced again and again.

They are useful only if the deployed old model was already trained with such a classifier.

Source: Biondi et al., "Stationary Representations: Optimally Approximating Compatibility and
Implications for Improved Model Replacements", CVPR 2024, https://arxiv.org/abs/2405.02581, and
its extension https://arxiv.org/abs/2606.12488.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fct_jax.errors import UserError
from fct_jax.losses.numerics import MASKED
from fct_jax.losses.precision import unit

# Weights of the fixed classifier's cross-entropy and of HOC in fine-tuning.
HOC_WEIGHTS = (0.1, 0.9)


def hoc(
    embedding: jax.Array,
    old_embedding: jax.Array,
    labels: jax.Array,
    scale: float = 10.0,
    as_published: bool = True,
) -> jax.Array:
    """Pull each new vector to its own old one, and push other classes' new vectors away. (N,)

    The loss of old vector i is ``-scale · ô_i·n̂_i + log Σ_j exp(scale · ô_i·n̂_j)``, where the sum
    is over the samples j of other labels. The public code sets similarities within the class to
    zero instead of leaving them out, so that each adds exp(0) = 1 to the sum; ``as_published``
    does the same. Otherwise an anchor without a negative has only the first term.

    Args:
      embedding, old_embedding: (N, D) new and old vectors of the same images, raw. The old ones
        get no gradient.
      labels: (N,) integers.
      scale: μ.
      as_published: whether to sum as the public code does, see above.

    Example: ``HOC_WEIGHTS[0] * cross_entropy + HOC_WEIGHTS[1] * hoc(new, old, labels).mean()``.

    Source: https://arxiv.org/abs/2405.02581, and https://arxiv.org/abs/2606.12488.
    """
    new, old = unit(embedding), jax.lax.stop_gradient(unit(old_embedding))
    similarity = scale * jnp.matmul(old, new.T, precision="highest")
    labels = jnp.asarray(labels)
    other = labels[:, None] != labels[None, :]
    masked = jnp.where(other, similarity, 0.0 if as_published else MASKED)
    push = jax.nn.logsumexp(masked, axis=-1)
    if not as_published:
        push = jnp.where(jnp.any(other, axis=-1), push, 0.0)
    return push - jnp.diagonal(similarity)


def simplex_vertices(count: int) -> np.ndarray:
    """Return the ``count`` unit vertices (count, count − 1) of a regular simplex, float64.

    They serve as a classifier that is never trained; the cosine of any two is −1/(count − 1).

    Raises UserError for fewer than two vertices.

    Example: ``simplex_vertices(2)`` is ``[[1], [-1]]``.

    Source: https://arxiv.org/abs/2405.02581; published with 1024 vertices.
    """
    if count < 2:
        raise UserError(f"a simplex classifier needs at least 2 classes, not {count}")
    dim = count - 1
    vertices = np.full((count, dim), -1 / np.sqrt(dim))
    vertices[:-1] = (1 - np.sqrt(dim + 1)) / dim**1.5 + np.sqrt(1 + 1 / dim) * np.eye(dim)
    return vertices


def average_compatibility(accuracy: np.ndarray) -> float:
    """Return AC: the share of (newer, older) model pairs in which replacing the query model helped.

    In accuracy (T, T), entry (i, j), i ≥ j, is the accuracy with queries of model i in a gallery of
    model j; the rest is not read. A pair i > j counts if entry (i, j) exceeds entry (j, j). The
    result is NaN for a single model, which has no pairs.

    Source: https://arxiv.org/abs/2405.02581.
    """
    accuracy = _square(accuracy)
    newer, older = np.tril_indices(len(accuracy), -1)
    better = accuracy[newer, older] > np.diagonal(accuracy)[older]
    return float(better.mean()) if len(better) else float("nan")


def average_accuracy(accuracy: np.ndarray) -> float:
    """Return AA: the mean of the lower triangle of `average_compatibility`'s matrix."""
    accuracy = _square(accuracy)
    return float(accuracy[np.tril_indices(len(accuracy))].mean())


def _square(accuracy) -> np.ndarray:
    accuracy = np.asarray(accuracy, np.float64)
    if accuracy.ndim != 2 or accuracy.shape[0] != accuracy.shape[1] or not accuracy.size:
        raise UserError(f"the accuracies must be a square matrix, not {accuracy.shape}")
    return accuracy
