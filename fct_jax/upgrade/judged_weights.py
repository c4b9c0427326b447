"""The calibration's weights from judged queries."""

import dataclasses
import itertools

import numpy as np

from fct_jax.upgrade.calibration import Calibration, Weights, with_spread
from fct_jax.upgrade.relevance import Relevance
from fct_jax.upgrade.serving import search

_CANDIDATES = 100  # best items of each space and of both
_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)  # re-embedded, at random, in what is learnt from
_BALANCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of the new space in a fused score
_SCALES = (0.6, 0.8, 1.0, 1.25, 1.6)
_SHIFTS = (-1.0, -0.5, 0.0, 0.5, 1.0)


def fit_weights(
    calibration: Calibration,
    query_old,
    query_new,
    old,
    new,
    relevance: Relevance,
    *,
    own=None,
    seed: int = 0,
) -> Calibration:
    """The calibration with the weights that find judged items of half-migrated galleries first.

    The weights of a grid that give the highest mean reciprocal rank over random migrations of
    10 to 100 %, ranked among the best candidates of each query. They are taken only where they
    beat the weights that need no judgements by more than two standard errors over the queries:
    the best of many looks better than it is.

    Args:
      calibration: to start from.
      query_old, query_new: (Q, do), (Q, dn) judged queries.
      old, new: (N, do), (N, dn) the gallery by both models.
      relevance: of the Q queries.
      own: (Q,) rows that do not count.
      seed: of the migrations.
    """
    plain = _with(calibration, Weights(), query_old, query_new)
    rows = _candidates(plain, query_old, query_new, old, new, own)
    z_old, z_new = _standard_scores(plain, query_old, query_new, old, new, rows)
    relevant = relevance.gains(rows) > 0
    rng = np.random.default_rng(seed)
    masks = [(rng.random(len(old)) < share)[rows] for share in _SHARES]

    def quality(moved: np.ndarray) -> np.ndarray:
        """(Q,) where re-embedded items score ``moved`` (Q, n) and the others z_old."""
        found = [
            _reciprocal_rank(np.where(mask, moved, z_old), relevant, rows >= 0) for mask in masks
        ]
        return np.mean(found, axis=0)

    dual = {(scale, shift): scale * z_new + shift for scale, shift in _grid()}
    best = _clearly_best({key: quality(moved) for key, moved in dual.items()}, (1.0, 0.0))
    weights = Weights(dual_new=best[0], dual_shift=best[1])

    fused = {}
    for balance in _BALANCES:
        # Twice, so that equal shares are the weights 1 and 1.
        shares = {"fused_old": 2 * (1 - balance), "fused_new": 2 * balance}
        made = _with(calibration, Weights(**shares), query_old, query_new)
        _, _, tail = made.standardised(query_old, query_new)
        both = shares["fused_old"] * z_old + shares["fused_new"] * z_new
        both = (both - tail.mean[:, None]) / tail.spread[:, None]
        for scale, shift in _grid():
            fused[balance, scale, shift] = quality(scale * both + shift)
    balance, scale, shift = _clearly_best(fused, (0.5, 1.0, 0.0))
    weights = dataclasses.replace(
        weights,
        fused_old=2 * (1 - balance),
        fused_new=2 * balance,
        fused_scale=scale,
        fused_shift=shift,
    )
    return _with(calibration, weights, query_old, query_new)


def _grid():
    return itertools.product(_SCALES, _SHIFTS)


def _clearly_best(found: dict, default: tuple) -> tuple:
    best = max(found, key=lambda key: found[key].mean())
    better = found[best] - found[default]
    return best if better.mean() > 2 * better.std() / len(better) ** 0.5 else default


def _with(calibration: Calibration, weights: Weights, query_old, query_new) -> Calibration:
    return with_spread(dataclasses.replace(calibration, weights=weights), query_old, query_new)


def _candidates(calibration, query_old, query_new, old, new, own) -> np.ndarray:
    """Rows (Q, n) that may come first in some migration, each once, −1 for none."""
    none, every = np.zeros(len(old), bool), np.ones(len(old), bool)
    found = [
        search(way, query_old, query_new, old, new, state, _CANDIDATES, calibration, own=own)[1]
        for way, state in (("dual", none), ("dual", every), ("fused", every))
    ]
    rows = np.sort(np.hstack(found), axis=1)
    rows[:, 1:][rows[:, 1:] == rows[:, :-1]] = -1
    return rows


def _standard_scores(calibration, query_old, query_new, old, new, rows) -> list[np.ndarray]:
    """z (Q, n) of the candidates in each space; that of row −1 means nothing."""
    first, second, _ = calibration.standardised(query_old, query_new)
    scores = []
    for space, queries, vectors, tail in (
        (calibration.old, query_old, old, first),
        (calibration.new, query_new, new, second),
    ):
        asked = space.queries(queries)
        raw = np.stack([space.items(vectors[r]) @ q for q, r in zip(asked, rows, strict=True)])
        scores.append((raw - tail.mean[:, None]) / tail.spread[:, None])
    return scores


def _reciprocal_rank(scores, relevant, used) -> np.ndarray:
    """(Q,) one over the rank of the first relevant candidate, 0 without one."""
    scores = np.where(used, scores, -np.inf)
    first = np.where(relevant & used, scores, -np.inf).max(axis=1)
    rank = 1 + (scores > first[:, None]).sum(axis=1)
    return np.where(np.isneginf(first), 0.0, 1 / rank)
