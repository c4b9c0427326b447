"""Blending the old model's query with the new model's query mapped to the old space.

The old index is searched unchanged. The *combination* brings the gain: in the published comparison
the plain midpoint was compatible in 72 of 90 configurations, SLERP with a chosen weight in 85,
and the map alone in 45.

Source: "SLERP" on the query side, NeurIPS 2026, https://arxiv.org/abs/2609.39836, and its public
code.
"""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
import scipy.special

from fct_jax.errors import UserError
from fct_jax.evaluate.distances import as_vectors, check_same_length, unit_rows
from fct_jax.upgrade.maps.common_space import nearest_orthogonal
from fct_jax.upgrade.ways import slerp_factors

GRID = tuple(round(0.1 * step, 1) for step in range(11))


def orthogonal_bridge(new: np.ndarray, old: np.ndarray) -> np.ndarray:
    """Return the matrix (dn, do) that rotates unit new vectors towards their items' old vectors.

    new (N, dn), old (N, do): vectors of the same items. They are scaled to unit length here, but
    not centred. If dn > do, the matrix has orthonormal columns, and a bridged vector is *shorter*
    than 1: it is the projection of a unit vector in the space of zero-padded old ones. If dn < do,
    the rows are orthonormal.

    Raises UserError for unequal numbers of rows, NaN or infinity.

    Example: ``bridged = unit_rows(query_new) @ orthogonal_bridge(new, old)``.
    """
    new, old = as_vectors("new", new), as_vectors("old", old)
    check_same_length("new", new, "old", old)
    return nearest_orthogonal(unit_rows(new).T @ unit_rows(old))


def slerp(old_query: np.ndarray, bridged_query: np.ndarray, weight) -> np.ndarray:
    """Return the point at the share ``weight`` of the arc from the old to the bridged query.

    It is ``[sin((1-w)θ) u + sin(wθ) v] / sin θ`` with ``θ = arccos⟨u, v⟩``. u is the old query at
    unit length. v is the bridged query, scaled down to unit length if it is longer; a shorter one
    is unchanged (see `orthogonal_bridge`), and the result is then the projection of the arc between
    padded vectors. (Scale the results of a ridge bridge to unit length first.) If both queries are
    equal the result is u. Opposite queries have no unique arc; the result is also u.

    Args:
      old_query, bridged_query: (Q, D).
      weight: α from 0 (old) to 1 (bridged), a number or (Q,).

    Returns (Q, D) float64, to be compared with the old gallery by cosine.

    Raises UserError for different shapes or a weight out of range.

    Example: ``slerp(query_old, unit_rows(query_new) @ bridge, 0.5)``.

    Source: Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985.
    """
    u, v, weight = _prepared(old_query, bridged_query, weight)
    product = np.sum(u * v, axis=1)
    ours, theirs = slerp_factors(product, weight)
    return ours[:, None] * u + theirs[:, None] * v


def midpoint(old_query: np.ndarray, bridged_query: np.ndarray) -> np.ndarray:
    """Return the middle of the arc, ``slerp(…, 0.5)``, (Q, D); it needs no choice of a weight.

    >>> midpoint(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])).round(3).tolist()
    [[0.707, 0.707]]
    """
    return slerp(old_query, bridged_query, 0.5)


def nlerp(old_query: np.ndarray, bridged_query: np.ndarray, weight) -> np.ndarray:
    """Mix both queries linearly and scale to unit length, (Q, D). The arguments are `slerp`'s.

    It ranks exactly like `summed_scores` of the two queries' own cosines.
    """
    u, v, weight = _prepared(old_query, bridged_query, weight)
    return unit_rows((1 - weight)[:, None] * u + weight[:, None] * v)


def summed_scores(old_scores: np.ndarray, bridged_scores: np.ndarray, weight) -> np.ndarray:
    """Mix the scores (Q, N) of both queries: ``(1 - w) · old + w · bridged``.

    The weight is a number or (Q,).
    """
    weight = np.asarray(weight, np.float64)
    weight = weight[:, None] if weight.ndim else weight
    return (1 - weight) * old_scores + weight * bridged_scores


def per_query_weight(
    old_query: np.ndarray, bridged_query: np.ndarray, bias: float, slope: float
) -> np.ndarray:
    """Return a weight for each query from the agreement of its two vectors, (Q,).

    It is ``σ(bias + slope · cosine)``. The published candidates are bias −3, −1.5, 0, 1.5, 3 and
    slope −3, 0, 3, 6, chosen on the support set; this was compatible in 88 of 90 configurations.
    """
    cosine = np.sum(unit_rows(old_query) * unit_rows(bridged_query), axis=1)
    return scipy.special.expit(bias + slope * cosine)


@dataclasses.dataclass(frozen=True)
class WeightChoice:
    """A weight chosen on a support set.

    Attributes:
      weight: the chosen weight; 0 means that the old query alone is best.
      candidates: (A,) the tried weights, ascending.
      quality: (A,) the mean quality of each.
      gain: mean gain over weight 0.
      gain_low: the mean gain minus ``caution`` standard errors.
    """

    weight: float
    candidates: np.ndarray
    quality: np.ndarray
    gain: float
    gain_low: float


def choose_weight(
    quality: Callable[[float], np.ndarray], candidates: Iterable[float] = GRID, caution: float = 0.0
) -> WeightChoice:
    """Choose the weight with the best mean quality on a support set (the smallest if equal).

    Weight 0 is always a candidate, so on this set the choice is never worse than the old query.

    Args:
      quality: returns the quality (Q,) of each support query at a weight, for example whether the
        right item comes first. More is better.
      candidates: weights from 0 to 1.
      caution: 0 as published. Above 0, a weight is taken only if its mean gain minus this number
        of standard errors of the paired differences is above 0; 1.645 is a one-sided 95 % bound.

    Raises UserError for a weight out of range or no support queries.

    Example: ``choose_weight(lambda w: recall_at_1(slerp(u, v, w)), caution=1.645).weight``.
    """
    tried = np.unique(np.append(np.asarray(list(candidates), np.float64), 0.0))
    if not (tried[0] >= 0 and tried[-1] <= 1):
        raise UserError(f"weights must be between 0 and 1, not {tried[0]} to {tried[-1]}")
    found = np.array([np.asarray(quality(float(weight)), np.float64) for weight in tried])
    if found.ndim != 2 or not found.shape[1]:
        raise UserError(
            f"quality must return one number per support query, not shape {found.shape[1:]}"
        )
    means = found.mean(axis=1)
    gains = found - found[0]
    error = gains.std(axis=1) / np.sqrt(found.shape[1])
    low = gains.mean(axis=1) - caution * error
    allowed = low > 0 if caution > 0 else np.ones(len(tried), bool)
    allowed[0] = True
    best = int(np.argmax(np.where(allowed, means, -np.inf)))
    return WeightChoice(
        float(tried[best]), tried, means, float(means[best] - means[0]), float(low[best])
    )


def _prepared(old_query, bridged_query, weight):
    u, v = unit_rows(old_query), np.asarray(bridged_query, np.float64)
    if u.shape != v.shape or u.ndim != 2:
        raise UserError(
            f"old queries {u.shape} and bridged queries {v.shape} must have one shape (Q, D); "
            "bridge the new ones first"
        )
    weight = np.broadcast_to(np.asarray(weight, np.float64), (len(u),))
    if not np.all((weight >= 0) & (weight <= 1)):
        raise UserError("the weight of a blend must be between 0 and 1")
    length = np.linalg.norm(v, axis=1, keepdims=True)
    return u, v / np.maximum(length, 1.0), weight
