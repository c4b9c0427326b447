"""The depth of a cascade: its gap to the new model, reuse of candidates, and rules of thumb.

Source of the definitions and thresholds: two public projects on staged migrations
(arnsri33/embedflow and batuhanzorbeyzengin/rebasis).
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from fct_jax.errors import UserError
from fct_jax.upgrade.ways.cascade import reranked

WORTH = 1.025  # a way is recommended above this advantage
NOT_WORTH = 0.975  # and not recommended at or below this one
SHELLS = (50, 100, 200, 500)  # depths that `ranking_stability` compares
_TOP = 10
_COMPARED = 1 << 24  # pairs of rows compared at a time


@dataclasses.dataclass(frozen=True)
class GapCurve:
    """The gap to the new model at each depth of a cascade, per query to allow intervals.

    Attributes:
      depths: (D,) ascending.
      quality: (Q, D) quality of the cascade.
      gap: (Q, D) quality of the new model in the whole gallery minus that of the cascade. The mean
        may be slightly below 0.
      containment: (Q, D) share of the new model's own first k that are among the candidates.
    """

    depths: np.ndarray
    quality: np.ndarray
    gap: np.ndarray
    containment: np.ndarray

    def smallest_depth(self, epsilon: float = 0.01) -> int | None:
        """Return K*: the first tested depth with a mean gap of at most ``epsilon``, or None.

        Raises UserError for a negative epsilon.
        """
        if epsilon < 0:
            raise UserError(f"epsilon must be at least 0, not {epsilon}")
        fitting = np.flatnonzero(self.gap.mean(axis=0) <= epsilon)
        return int(self.depths[fitting[0]]) if len(fitting) else None


def gap_curve(
    candidates: np.ndarray,
    new_scores: np.ndarray,
    native: np.ndarray,
    quality: Callable[[np.ndarray], np.ndarray],
    depths: Sequence[int],
    k: int,
) -> GapCurve:
    """Compare cascades of several depths with the new model over the whole gallery.

    Args:
      candidates: (Q, K) rows of the old index, best first, −1 for none.
      new_scores: (Q, K) of these candidates by the new model.
      native: (Q, ≥ k) the new model's own ranking of the gallery.
      quality: computes one number per query from ranked rows (Q, k); more is better, as in nDCG.
      depths: depths to test.
      k: number of results that are judged.

    Raises UserError for a depth below 1 or beyond the candidates, or a native ranking that is too
    short.

    Example: ``gap_curve(rows, scores, native, ndcg, (20, 50, 100), 10).smallest_depth()``.
    """
    depths = np.unique(np.asarray(depths, np.int64))
    if not len(depths) or depths[0] < 1 or depths[-1] > candidates.shape[1]:
        raise UserError(
            f"depths must be between 1 and the {candidates.shape[1]} candidates per query, "
            f"not {depths.tolist()}"
        )
    if native.shape[1] < k and not np.any(native < 0):
        raise UserError(
            f"the new model's ranking has {native.shape[1]} rows per query; it must have {k}"
        )
    native = native[:, :k]
    best = np.asarray(quality(native), np.float64)
    reached, contained = [], []
    for depth in depths:
        first = candidates[:, :depth]
        _, rows = reranked(first, new_scores[:, :depth], k)
        reached.append(np.asarray(quality(rows), np.float64))
        contained.append(_shared(native, first) / np.maximum((native >= 0).sum(axis=1), 1))
    reached = np.stack(reached, axis=1)
    return GapCurve(depths, reached, best[:, None] - reached, np.stack(contained, axis=1))


def candidate_reuse(candidates: np.ndarray) -> float:
    """Return ``1 − |union| / Σ sizes``: the share of candidates that an earlier query also had.

    candidates (Q, K), distinct for each query, −1 for none. The result is NaN without candidates.
    """
    rows = candidates[candidates >= 0]
    return 1 - len(np.unique(rows)) / len(rows) if len(rows) else float("nan")


def embeddings_per_query(candidates: np.ndarray) -> float:
    """Return the average number of new vectors per query, if each vector is made once and kept."""
    return len(np.unique(candidates[candidates >= 0])) / max(1, len(candidates))


def cascade_advantage(gain: float, retention: float) -> float:
    """Return ``gain · retention``: the expected quality of a cascade relative to today's.

    gain: recall@10 of the new model divided by that of the old one. retention: the share of that
    recall that remains if the old index recalls the candidates (recall at that depth). The
    same product with a single stage's retention is the advantage of a bridge or translation.
    """
    return gain * retention


def worth(advantage: float) -> str:
    """Return "recommended" above 1.025, "not recommended" up to 0.975, else "borderline"."""
    if advantage > WORTH:
        return "recommended"
    return "borderline" if advantage > NOT_WORTH else "not recommended"


@dataclasses.dataclass(frozen=True)
class Stability:
    """The change of the first ten results with the depth of a cascade.

    Attributes:
      tail50: mean share of the first ten at depth 500 that depth 50 misses.
      stab50: mean share of the first ten at depth 500 that depth 50 has.
      deepest_p90: 90th percentile of the deepest old rank (from 1) among the first ten at 500.
      late: mean number of entrants in the steps 50 → 100 → 200 → 500, together, divided by ten.
      last_shell: share of queries with an entrant from the old ranks 201 to 500.
      margin: share of queries whose tenth score at depth 50 is not above the best of ranks 51 to
        100.
    """

    tail50: float
    stab50: float
    deepest_p90: float
    late: float
    last_shell: float
    margin: float

    @property
    def verdict(self) -> str:
        """Return "SAFE", "EXPAND" (look deeper) or "UNSAFE_OR_UNCERTAIN".

        The thresholds are those of a published heuristic; they guarantee nothing.
        """
        if self.tail50 > 0.10 or self.stab50 < 0.90 or self.last_shell > 0.25 or self.margin > 0.50:
            return "UNSAFE_OR_UNCERTAIN"
        safe = self.tail50 <= 0.05 and self.deepest_p90 <= 200 and self.late <= 0.20
        return "SAFE" if safe else "EXPAND"


def ranking_stability(new_scores: np.ndarray) -> Stability:
    """Measure ranking stability on probe queries, without a new index and without judgements.

    new_scores (Q, 500): the new model's scores of each probe query's first 500 candidates, in the
    order of the old index; −inf if the gallery has fewer.

    Our reading of the source is that ``late`` adds up the three steps.

    Raises UserError for fewer than 500 columns or no queries.

    Example: ``ranking_stability(scores).verdict``.
    """
    if new_scores.ndim != 2 or not len(new_scores) or new_scores.shape[1] < SHELLS[-1]:
        raise UserError(
            f"ranking_stability needs scores of shape (Q, {SHELLS[-1]}), not {new_scores.shape}"
        )
    places = np.broadcast_to(np.arange(SHELLS[-1]), (len(new_scores), SHELLS[-1]))
    first, tenth = {}, None
    for depth in SHELLS:
        scores, found = reranked(places[:, :depth], new_scores[:, :depth], _TOP)
        first[depth] = found
        tenth = scores[:, -1] if depth == SHELLS[0] else tenth
    kept = _shared(first[500], first[50]) / _TOP
    entrants = sum(_TOP - _shared(first[b], first[a]) for a, b in itertools.pairwise(SHELLS))
    return Stability(
        tail50=float(1 - kept.mean()),
        stab50=float(kept.mean()),
        deepest_p90=float(np.percentile(first[500].max(axis=1) + 1, 90)),
        late=float(entrants.mean() / _TOP),
        last_shell=float(np.any(first[500] >= 200, axis=1).mean()),
        margin=float(np.mean(tenth <= new_scores[:, 50:100].max(axis=1))),
    )


def _shared(wanted: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Count the wanted rows (Q, k) among the found ones (Q, K), giving (Q,); −1 never counts."""
    counts = np.empty(len(wanted), np.int64)
    size = max(1, _COMPARED // max(1, wanted.shape[1] * found.shape[1]))
    for start in range(0, len(wanted), size):
        rows = slice(start, start + size)
        same = (wanted[rows, :, None] == found[rows, None, :]).any(axis=2)
        counts[rows] = np.count_nonzero(same & (wanted[rows] >= 0), axis=1)
    return counts
