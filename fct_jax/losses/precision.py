"""The losses' building blocks in the precision of their input: float64 stays float64.

They are `numerics.normalize` and `classification.label_smoothed_cross_entropy` without the cast
to float32, for losses that are also used to fit maps in float64.
"""

import jax
import jax.numpy as jnp

from fct_jax.losses.numerics import safe_sqrt, unit_as_given


def floating(x: jax.Array) -> jax.Array:
    """Return ``x`` as float32, or as float64 if it has that type."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def unit(x: jax.Array) -> jax.Array:
    """Divide the rows of ``x`` (..., D) by their Euclidean norm; a row below 1e-12 becomes 0."""
    return unit_as_given(floating(x))


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the row-wise cosine (...,) of ``a`` and ``b`` (..., D); 0 for a row of zeros."""
    return jnp.sum(unit(a) * unit(b), axis=-1)


def pairwise_distances(x: jax.Array) -> jax.Array:
    """Return all Euclidean distances (N, N) between the rows of ``x`` (N, D).

    The gradient is zero where two rows are equal, as on the diagonal. The (N, N, D) differences
    are squared directly, because expanding the square loses the digits of small distances.
    """
    x = floating(x)
    return safe_sqrt(jnp.sum(jnp.square(x[:, None] - x[None, :]), axis=-1))


def smoothed_cross_entropy(
    logits: jax.Array, labels: jax.Array, smoothing: float = 0.0
) -> jax.Array:
    """Return the cross-entropy (N,) of logits (N, C) with a smoothed one-hot target.

    The share ``smoothing`` of the target is spread evenly over all C classes. The labels (N,)
    must lie in [0, C).
    """
    log_probs = jax.nn.log_softmax(floating(logits), axis=-1)
    own = jnp.take_along_axis(log_probs, jnp.asarray(labels)[:, None], axis=-1)[:, 0]
    return -(1.0 - smoothing) * own - smoothing * jnp.mean(log_probs, axis=-1)
