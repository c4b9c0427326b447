"""Small pieces that the losses share, each with finite values and gradients everywhere."""

import jax
import jax.numpy as jnp

# This is added to logits that must not count. It is finite, so that a row without an allowed
# column still has a finite loss and a zero gradient.
MASKED = -1e9

_SMALLEST_NORM = 1e-12


def normalize(x: jax.Array) -> jax.Array:
    """Return the rows of ``x`` (..., D) divided by their Euclidean norm, in float32.

    A row without direction (norm below 1e-12) becomes zero with zero gradient; the published
    code divides such rows by 1e-12, which gives gradients of 1e12.
    """
    return unit_as_given(jnp.asarray(x, jnp.float32))


def unit_as_given(x: jax.Array) -> jax.Array:
    """Return `normalize` of floats ``x`` in their own precision."""
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    has_direction = squared > _SMALLEST_NORM**2
    norm = jnp.sqrt(jnp.where(has_direction, squared, 1.0))
    return jnp.where(has_direction, x / norm, 0.0)


def safe_sqrt(x: jax.Array) -> jax.Array:
    """Return the square root of max(x, 0), with zero gradient for x ≤ 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return row-wise Euclidean distances of ``a`` and ``b`` (..., D), zero gradient at zero."""
    return safe_sqrt(jnp.sum(jnp.square(a - b), axis=-1))


def angle(cosine: jax.Array) -> jax.Array:
    """Return the arccos of a cosine, in radians; at or beyond ±1: 0 or π with zero gradient.

    The published code takes the arccos of the raw product, which is NaN as soon as rounding makes
    the product exceed one.
    """
    inside = jnp.abs(cosine) < 1.0
    at_the_end = jnp.where(cosine > 0, 0.0, jnp.pi)
    return jnp.where(inside, jnp.arccos(jnp.where(inside, cosine, 0.0)), at_the_end)


def known_labels(labels: jax.Array, num_classes: int) -> tuple[jax.Array, jax.Array]:
    """Return which labels lie in [0, num_classes), and the labels with the others replaced by 0."""
    labels = jnp.asarray(labels)
    known = (labels >= 0) & (labels < num_classes)
    return known, jnp.where(known, labels, 0)


def own_class(labels: jax.Array, num_classes: int) -> jax.Array:
    """Return a mask (N, num_classes) of each sample's own column; a label outside selects none."""
    return jnp.asarray(labels)[:, None] == jnp.arange(num_classes)[None, :]


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the mean of the ``values`` (N,) that ``mask`` selects; 0 without gradient if none."""
    total = jnp.sum(jnp.where(mask, values, 0.0))
    return total / jnp.maximum(jnp.sum(mask), 1)


def result(value, selected: jax.Array, with_share: bool):
    """Return ``value`` alone, or ``(value, share of the batch that it was averaged over)``."""
    return (value, jnp.mean(selected.astype(jnp.float32))) if with_share else value
