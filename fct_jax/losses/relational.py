"""Losses of mapped vectors that compare *relations* between items: cosines and distances.

The neighbours of an item are searched for in the batch; if the batch has fewer than requested, all
others count. Every result is per sample (N,), and the caller takes the mean.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fct_jax.losses.numerics import distance
from fct_jax.losses.precision import cosine, floating, pairwise_distances, unit

_SMALLEST_ENERGY = 1e-8  # as published


class ConverterParts(NamedTuple):
    """The three parts of `embedding_converter`, each (N,), or the weights of these parts."""

    prediction: jax.Array | float
    global_relation: jax.Array | float
    local_relation: jax.Array | float


CONVERTER_WEIGHTS = ConverterParts(1.0, 0.1, 0.1)


def embedding_converter(
    mapped: jax.Array, target: jax.Array, neighbours: int = 100, squared: bool = False
) -> ConverterParts:
    """Return the Embedding-Converter's three parts for each sample of a batch.

    ``prediction`` is the L1 distance, summed over dimensions; ``global_relation`` is the mean
    change of the cosine distances to the other samples of the batch; ``local_relation`` is the
    same over the ``neighbours`` nearest samples in the *target* space.

    Args:
      mapped, target: (N, D), raw.
      neighbours: k.
      squared: compare relations by the square of their difference instead of its absolute value
        (the paper does not say which; we consider the absolute value about 75 % likely).

    Example: the published total is ``sum(w * p.mean() for w, p in zip(CONVERTER_WEIGHTS, parts))``.

    Source: "Embedding-Converter: A Unified Framework for Cross-Model Embedding Transformation",
    ACL 2025, https://aclanthology.org/2025.acl-long.1237. Whether its relations are taken within
    the batch is not stated.
    """
    mapped, target = floating(mapped), floating(target)
    change = _change(_cosines(mapped), wanted := _cosines(target), squared)
    near = _nearest(1.0 - wanted, neighbours)
    return ConverterParts(
        jnp.sum(jnp.abs(mapped - target), axis=-1),
        _mean_of(change, _nearest(1.0 - wanted, len(wanted))),
        _mean_of(change, near),
    )


def relation_change(
    mapped: jax.Array,
    other_mapped: jax.Array,
    target: jax.Array,
    other_target: jax.Array,
    squared: bool = False,
) -> jax.Array:
    """Return how much the cosine distance of given pairs changed. Four arrays (N, D) -> (N,).

    This is the relation of `embedding_converter` for partners that are drawn beforehand, for
    example from each sample's nearest neighbours in the whole training set.
    """
    return _change(cosine(mapped, other_mapped), cosine(target, other_target), squared)


def hmoe_regression(mapped: jax.Array, target: jax.Array) -> jax.Array:
    """Return ``½ (1 - cosine) + mean squared error`` of each row. (N, D), (N, D) -> (N,).

    Source: H-MoE (ICML 2026), public code.
    """
    mapped, target = floating(mapped), floating(target)
    return 0.5 * (1.0 - cosine(mapped, target)) + jnp.mean(jnp.square(mapped - target), axis=-1)


def distance_preservation(
    source: jax.Array, mapped: jax.Array, target: jax.Array, neighbours: int = 100
) -> jax.Array:
    """Return how much distances to the nearest *source* neighbours differ from the target's. (N,)

    The loss of item i is the mean over its ``neighbours`` nearest j of
    ``|‖f_i - f_j‖ - ‖y_i - y_j‖|``.

    source (N, do), mapped f (N, dn) and target y (N, dn) are raw vectors of the same items.

    Source: H-MoE (ICML 2026), public code, L_local with 100 neighbours in the batch.
    """
    near = _nearest(pairwise_distances(source), neighbours)
    rows = jnp.arange(len(near))[:, None]
    mapped, target = floating(mapped), floating(target)
    kept = distance(mapped[rows], mapped[near])
    change = jnp.abs(kept - distance(target[rows], target[near]))
    return jnp.mean(change, axis=-1) if near.shape[1] else jnp.zeros(len(near), change.dtype)


def off_axis_share(residual: jax.Array, axis: jax.Array) -> jax.Array:
    """Return the share of each residual's energy off a direction. (N, D), (D,) -> (N,).

    The share is 1 for a residual perpendicular to ``axis`` (which is normalised here), and 0 for a
    residual along the axis or of zero length. A map can lower the share by *adding* error along
    the axis; `off_axis_energy` cannot be gamed this way.

    Source: H-MoE (ICML 2026), public code, L_dir; the axis is `principal_axis` of the targets.
    """
    residual = floating(residual)
    energy = jnp.sum(jnp.square(residual), axis=-1)
    return _off_axis(residual, axis) / (energy + _SMALLEST_ENERGY)


def off_axis_energy(residual: jax.Array, axis: jax.Array, variance: float = 1.0) -> jax.Array:
    """Return each residual's energy off a direction, over ``variance``. (N, D), (D,) -> (N,).

    Source: the alternative to `off_axis_share` that H-MoE's public code offers.
    """
    return _off_axis(floating(residual), axis) / variance


def principal_axis(targets: jax.Array) -> jax.Array:
    """Return the first principal direction (D,) of the centred targets (N, D), a constant.

    Its sign is chosen so that the entry of largest magnitude is positive.
    """
    targets = floating(targets)
    centred = targets - jnp.mean(targets, axis=0)
    first = jnp.linalg.svd(centred, full_matrices=False)[2][0]
    return jax.lax.stop_gradient(first * jnp.sign(first[jnp.argmax(jnp.abs(first))]))


def _off_axis(residual, axis):
    axis = jax.lax.stop_gradient(unit(axis)).astype(residual.dtype)
    along = jnp.sum(residual * axis, axis=-1, keepdims=True)
    return jnp.sum(jnp.square(residual - along * axis), axis=-1)


def _cosines(x):
    rows = unit(x)
    return jnp.matmul(rows, rows.T, precision="highest")


def _change(got, wanted, squared):
    return jnp.square(got - wanted) if squared else jnp.abs(got - wanted)


def _nearest(distances, neighbours: int):
    """Return columns (N, k) of each row's k ≤ N − 1 nearest others; ties go to the first."""
    count = min(neighbours, len(distances) - 1)
    others = jnp.where(jnp.eye(len(distances), dtype=bool), jnp.inf, distances)
    return jnp.argsort(jax.lax.stop_gradient(others), axis=-1)[:, :count]


def _mean_of(values, columns):
    chosen = jnp.take_along_axis(values, columns, axis=-1)
    return jnp.mean(chosen, axis=-1) if columns.shape[1] else jnp.zeros(len(values), values.dtype)
