"""The calibration's weights from judged pairs."""

import dataclasses

import numpy as np
import scipy.optimize

from fct_jax.upgrade.relevance import Relevance, per_query
from fct_jax.upgrade.serving import Calibration, Weights, search, with_spread

_CANDIDATES = 100  # best items of each space
_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # re-embedded, at random, in what is learnt from
_NEVER = -1e9  # score of a place that holds no candidate
_PULL = 0.01  # towards the weights that need no judgements


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
    """The calibration with weights that rank the judged items of half-migrated galleries best.

    A softmax over the best candidates of each query, with relevant ones as its targets, summed
    over random migrations of 10 to 90 % (conditional logit; McFadden 1974). The result is taken
    only where it ranks these queries better than the weights at hand.

    Args:
      calibration: to start from.
      query_old, query_new: (Q, do), (Q, dn) judged queries.
      old, new: (N, do), (N, dn) the gallery by both models.
      relevance: of the Q queries.
      own: (Q,) rows that do not count.
      seed: of the migrations.
    """
    rng = np.random.default_rng(seed)
    every, none = np.ones(len(old), bool), np.zeros(len(old), bool)
    migrations = [rng.random(len(old)) < share for share in _SHARES]
    arguments = (query_old, query_new, old, new)
    found = [
        search(way, *arguments, state, _CANDIDATES, calibration, own=own)[1]
        for way, state in (("dual", none), ("dual", every), ("fused", every))
    ]
    rows = _distinct(np.hstack(found))
    z_old, z_new = _standard_scores(calibration, query_old, query_new, old, new, rows)
    target = relevance.gains(rows)
    useful = target.sum(axis=1) > 0
    if not useful.any():
        return calibration
    rows, z_old, z_new, target = (a[useful] for a in (rows, z_old, z_new, target))
    target = target / target.sum(axis=1, keepdims=True)
    masks = np.stack([state[rows] for state in migrations])
    unused = rows < 0

    def loss(x, fused: bool, start):
        temperature, w_new, w_old, shift = x
        moved = w_new * z_new + (w_old * z_old if fused else 0.0) + shift
        logits = np.exp(temperature) * np.where(masks, moved, z_old)
        logits = np.where(unused, _NEVER, logits)
        top = logits.max(axis=2, keepdims=True)
        log_sum = np.log(np.exp(logits - top).sum(axis=2)) + top[:, :, 0]
        gained = (logits * target).sum(axis=2)
        pull = _PULL * ((w_new - start[1]) ** 2 + (w_old - start[2]) ** 2 + shift**2)
        return float((log_sum - gained).mean()) + pull

    def learnt(fused: bool, start) -> np.ndarray:
        start = np.array(start)
        return scipy.optimize.minimize(loss, start, args=(fused, start), method="L-BFGS-B").x

    dual, fused = learnt(False, [0.0, 1.0, 0.0, 0.0]), learnt(True, [0.0, 0.5, 0.5, 0.0])
    w = max(fused[1], 0.0), max(fused[2], 0.0)
    if not dual[1] > 0 or not sum(w) > 0:
        return calibration

    proposed = dataclasses.replace(
        calibration.weights,
        dual_new=float(dual[1]),
        dual_shift=float(dual[3]),
        fused_old=float(w[1]),
        fused_new=float(w[0]),
    )
    candidate = _with(calibration, proposed, query_old, query_new)
    # The tail of the fused score is standardised once more: what is left is a factor and a shift.
    _, _, both = candidate.standardised(query_old, query_new)
    candidate = dataclasses.replace(
        candidate,
        weights=dataclasses.replace(
            proposed,
            fused_scale=float(np.mean(both.spread)),
            fused_shift=float(np.mean(both.mean) + fused[3]),
        ),
    )

    def quality(made: Calibration, way: str) -> float:
        ranked = [search(way, *arguments, m, _CANDIDATES, made, own=own)[1] for m in migrations]
        return float(np.mean([per_query(r, relevance)["mrr"].mean() for r in ranked]))

    weights = Weights()
    if quality(candidate, "dual") > quality(calibration, "dual"):
        weights = dataclasses.replace(
            weights, dual_new=proposed.dual_new, dual_shift=float(dual[3])
        )
    if quality(candidate, "fused") > quality(calibration, "fused"):
        better = {k: v for k, v in vars(candidate.weights).items() if k.startswith("fused")}
        weights = dataclasses.replace(weights, **better)
    return _with(calibration, weights, query_old, query_new)


def _with(calibration: Calibration, weights: Weights, query_old, query_new) -> Calibration:
    return with_spread(dataclasses.replace(calibration, weights=weights), query_old, query_new)


def _distinct(rows: np.ndarray) -> np.ndarray:
    """Rows (Q, n) with every repetition in a line replaced by −1."""
    rows = np.sort(rows, axis=1)
    rows[:, 1:][rows[:, 1:] == rows[:, :-1]] = -1
    return rows


def _standard_scores(calibration, query_old, query_new, old, new, rows):
    """z (Q, n) of the candidates in each space; that of row −1 means nothing."""
    first, second, _ = calibration.standardised(query_old, query_new)
    scores = []
    spaces = (
        (calibration.old, query_old, old, first),
        (calibration.new, query_new, new, second),
    )
    for space, queries, vectors, tail in spaces:
        asked = space.queries(queries)
        raw = np.stack([space.items(vectors[r]) @ q for q, r in zip(asked, rows, strict=True)])
        scores.append((raw - tail.mean[:, None]) / tail.spread[:, None])
    return scores
