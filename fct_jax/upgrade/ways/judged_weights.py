"""Learning the calibration's weights from judged queries."""

import dataclasses
import itertools

import numpy as np

from fct_jax.storage import spilled
from fct_jax.upgrade.ways.calibration import Calibration, Weights, calibrate
from fct_jax.upgrade.ways.relevance import Relevance
from fct_jax.upgrade.ways.scores import chosen_metric, crowding
from fct_jax.upgrade.ways.serving import search

_CANDIDATES = 100  # best items of each space and of both together
_SHARES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)  # randomly re-embedded shares of the galleries
_BALANCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # weight of the new space when fused
_DAMPINGS = (0.0, 0.25, 0.5)
_FEW_CANDIDATES = 1.645  # standard errors needed if there are only two alternatives
_TOGETHER = 1 << 14  # rows read together
_SCALES = (0.6, 0.8, 1.0, 1.25, 1.6)
_SHIFTS = (-1.0, -0.5, 0.0, 0.5, 1.0)


def fit_weights(
    pairs,
    query_old,
    query_new,
    old,
    new,
    relevance: Relevance,
    *,
    metric: str = "",
    old_metric: str | None = None,
    own=None,
    seed: int = 0,
) -> Weights:
    """Return the weights that rank judged items of half-migrated galleries highest.

    A grid search maximises the mean reciprocal rank over random migrations of 0 to 100 %, among
    the best candidates of each query: first of the damping, then of the other weights. The result
    is taken only if it beats the default weights by more than two standard errors over the
    queries (for the damping 1.6), because the best of many looks better than it is.

    Args:
      pairs: (R, do), (R, dn) other items by both models, for the calibration.
      query_old, query_new: (Q, do), (Q, dn) judged queries.
      old, new: (N, do), (N, dn) the gallery by both models; anything that gives rows as an array
        does, such as a memory map. Only some blocks of rows are held.
      relevance: relevance of the Q queries.
      metric, old_metric: as in `calibrate`.
      own: (Q,) rows that do not count.
      seed: seed of the migrations.
    """
    both = _Both(pairs[0], old), _Both(pairs[1], new)
    old_metric, _ = chosen_metric(old_metric or metric, both[0])
    metric, _ = chosen_metric(metric, both[1])

    def made(weights: Weights) -> Calibration:
        return calibrate(*both, metric=metric, old_metric=old_metric, weights=weights)

    plain, damped = made(Weights()), made(Weights(damping=_DAMPINGS[-1]))
    rows = _candidates(plain, query_old, query_new, old, new, own)
    raw = _raw_scores(plain, query_old, query_new, old, new, rows)
    some, place = np.unique(np.maximum(rows, 0), return_inverse=True)
    place = place.reshape(rows.shape)
    crowded = [_crowding(s, v, some)[place] for s, v in ((damped.old, old), (damped.new, new))]
    relevant = relevance.gains(rows) > 0
    rng = np.random.default_rng(seed)
    masks = [(rng.random(len(old)) < share)[rows] for share in _SHARES]

    def scores(weights: Weights):
        """Return standardised scores (Q, n): of the old space, of the new one, and fused."""
        tails = made(weights).standardised(query_old, query_new)
        z = [
            (s - weights.damping * c - tail.mean[:, None]) / tail.spread[:, None]
            for s, c, tail in zip(raw, crowded, tails[:2], strict=True)
        ]
        fused = weights.fused_old * z[0] + weights.fused_new * z[1]
        return *z, (fused - tails[2].mean[:, None]) / tails[2].spread[:, None]

    def quality(z_old: np.ndarray, moved: np.ndarray) -> np.ndarray:
        """Return the quality (Q,) if re-embedded items score ``moved`` (Q, n), others z_old."""
        found = [
            _reciprocal_rank(np.where(mask, moved, z_old), relevant, rows >= 0) for mask in masks
        ]
        return np.mean(found, axis=0)

    found = {}
    for damping in _DAMPINGS:
        z_old, _, fused = scores(Weights(damping=damping))
        found[damping] = quality(z_old, fused)
    weights = Weights(damping=_clearly_best(found, 0.0, _FEW_CANDIDATES))

    z_old, z_new, _ = scores(weights)
    found = {(scale, shift): quality(z_old, scale * z_new + shift) for scale, shift in _grid()}
    scale, shift = _clearly_best(found, (1.0, 0.0))
    weights = dataclasses.replace(weights, dual_new=scale, dual_shift=shift)

    found = {}
    for balance in _BALANCES:
        z_old, _, fused = scores(_balanced(weights, balance))
        for scale, shift in _grid():
            found[balance, scale, shift] = quality(z_old, scale * fused + shift)
    balance, scale, shift = _clearly_best(found, (0.5, 1.0, 0.0))
    weights = _balanced(weights, balance)
    return dataclasses.replace(weights, fused_scale=scale, fused_shift=shift)


class _Both:
    """Vectors (M, D) and the rows of a gallery (N, D) after them, which are read when wanted."""

    def __init__(self, first: np.ndarray, second):
        self._first, self._second = first, second
        self.shape = len(first) + len(second), second.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows) -> np.ndarray:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        kind = np.result_type(self._first.dtype, self._second.dtype)
        found, other = np.empty((len(rows), self.shape[1]), kind), rows >= len(self._first)
        found[~other] = self._first[rows[~other]]
        found[other] = self._second[rows[other] - len(self._first)]
        return found


def _crowding(space, vectors, rows: np.ndarray) -> np.ndarray:
    """Return `crowding` of some rows (n,) of a gallery, (n,)."""
    parts = (rows[part] for part in spilled.blocks(len(rows), _TOGETHER))
    return np.concatenate([crowding(space, vectors[part]) for part in parts])


def _balanced(weights: Weights, balance: float) -> Weights:
    # Doubled, so that equal shares give the weights 1 and 1.
    return dataclasses.replace(weights, fused_old=2 * (1 - balance), fused_new=2 * balance)


def _grid():
    return itertools.product(_SCALES, _SHIFTS)


def _clearly_best(found: dict, default, errors: float = 2.0):
    """Return the best key that beats the default by ``errors`` standard errors, or the default."""
    gains = {key: values - found[default] for key, values in found.items()}
    clear = [k for k, g in gains.items() if g.mean() > errors * g.std() / len(g) ** 0.5]
    return max(clear, key=lambda key: gains[key].mean(), default=default)


def _candidates(calibration, query_old, query_new, old, new, own) -> np.ndarray:
    """Return the rows (Q, n) that can come first in some migration, each once, −1 for none."""
    none, every = np.zeros(len(old), bool), np.ones(len(old), bool)
    found = [
        search(way, query_old, query_new, old, new, state, _CANDIDATES, calibration, own=own)[1]
        for way, state in (("dual", none), ("dual", every), ("fused", every))
    ]
    rows = np.sort(np.hstack(found), axis=1)
    rows[:, 1:][rows[:, 1:] == rows[:, :-1]] = -1
    return rows


def _raw_scores(calibration, query_old, query_new, old, new, rows) -> list[np.ndarray]:
    """Return the candidates' scores (Q, n) in each space; the score of row −1 is meaningless."""
    return [
        np.stack(
            [space.items(vectors[r]) @ q for q, r in zip(space.queries(queries), rows, strict=True)]
        )
        for space, queries, vectors in (
            (calibration.old, query_old, old),
            (calibration.new, query_new, new),
        )
    ]


def _reciprocal_rank(scores, relevant, used) -> np.ndarray:
    """Return the reciprocal rank (Q,) of the first relevant candidate, 0 without one."""
    scores = np.where(used, scores, -np.inf)
    first = np.where(relevant & used, scores, -np.inf).max(axis=1)
    rank = 1 + (scores > first[:, None]).sum(axis=1)
    return np.where(np.isneginf(first), 0.0, 1 / rank)
