"""Recalibration of a service's cut-off on scores when the model changes.

Isotonic regression, the best increasing function, relates the scores of two models. It is used
for thresholds only. Ranking uses raw scores, because an isotonic fit is a step function that makes
different scores equal.

The procedure is that of the public project krish1925/isotrieve; the direction from old to new
scores and the held-out figures are ours.
"""

import dataclasses

import numpy as np
import scipy.optimize

from fct_jax.errors import UserError

FEWEST = 10  # pairs of scores
_FOLDS = 5


@dataclasses.dataclass(frozen=True)
class Isotonic:
    """An increasing function through knots, linear between them and constant outside.

    knots (K,) ascending, values (K,) not descending.
    """

    knots: np.ndarray
    values: np.ndarray

    def __call__(self, scores) -> np.ndarray:
        """Apply it to scores of any shape; float64."""
        return np.interp(np.asarray(scores, np.float64), self.knots, self.values)


def fit_isotonic(scores_from, scores_to) -> Isotonic:
    """Fit the increasing function with the least squared error by pooling adjacent violators.

    Args:
      scores_from, scores_to: (N,) scores of the same query–item pairs. Equal ``scores_from`` are
        pooled first, so that the order of the pairs does not matter.

    Raises UserError for different lengths, no pairs, NaN or infinity.

    Example: ``fit_isotonic(mapped, true)(0.8)``.

    Source: Barlow et al., "Statistical inference under order restrictions", 1972.
    """
    scores_from, scores_to = _scores(scores_from, scores_to)
    knots, which, weights = np.unique(scores_from, return_inverse=True, return_counts=True)
    means = np.bincount(which, scores_to) / weights
    fitted = scipy.optimize.isotonic_regression(means, weights=weights.astype(np.float64))
    return Isotonic(knots, np.asarray(fitted.x))


def agreement(scores, truth, threshold: float, truth_threshold: float | None = None) -> float:
    """Return the share of pairs on the same side of the threshold by both scores.

    scores, truth (N,); ``scores >= threshold`` is compared with ``truth >= truth_threshold``
    (None: the same number).
    """
    kept, wanted = _sides(scores, truth, threshold, truth_threshold)
    return float(np.mean(kept == wanted))


def recall(scores, truth, threshold: float, truth_threshold: float | None = None) -> float:
    """Return the share of the pairs above the threshold in truth that the score also puts above it.

    The arguments are those of `agreement`. The result is NaN if no pair is above it in truth.
    """
    kept, wanted = _sides(scores, truth, threshold, truth_threshold)
    return float(np.mean(kept[wanted])) if wanted.any() else float("nan")


@dataclasses.dataclass(frozen=True)
class RecalibratedThreshold:
    """The cut-off for another model's scores, and its effect on held-out pairs.

    A pair is a result of the old service if ``scores_from >= threshold``. "Before"
    applies the unchanged threshold to ``scores_to``, "after" the recalibrated one.

    Attributes:
      threshold: cut-off for ``scores_to``, fitted on all pairs.
      agreement_before, agreement_after: share of pairs that stay on the same side.
      recall_before, recall_after: share of the old results that are still results; NaN if there
        were none.
      gained, lost: shares of all pairs that become results, or stop being results, after.
      pairs: number of pairs.
    """

    threshold: float
    agreement_before: float
    agreement_after: float
    recall_before: float
    recall_after: float
    gained: float
    lost: float
    pairs: int


def recalibrated_threshold(
    scores_from, scores_to, threshold: float, *, groups=None, seed: int = 0
) -> RecalibratedThreshold:
    """Find the cut-off on another model's scores that corresponds to a known one.

    From old to new scores it converts a service's threshold; from mapped to true new-space scores
    it corrects the threshold for a translated gallery. The figures "after" are cross-fitted: each
    fifth of the pairs is judged by a threshold fitted on the others.

    Args:
      scores_from, scores_to: (N,) scores of the same query–item pairs, at least 10.
      threshold: cut-off on ``scores_from``, which are larger for nearer items.
      groups: (N,) for example the query of each pair: a group is held out as a whole. None: each
        pair is its own group.
      seed: seed of the folds.

    Raises UserError for fewer than 10 pairs, different lengths, NaN or infinity.

    Example: ``recalibrated_threshold(old_scores, new_scores, 0.80).threshold``.
    """
    scores_from, scores_to = _scores(scores_from, scores_to)
    if len(scores_from) < FEWEST:
        raise UserError(
            f"a threshold needs at least {FEWEST} pairs of scores; there are {len(scores_from)}"
        )
    if not np.isfinite(threshold):
        raise UserError(f"the threshold must be a number, not {threshold}")
    names = np.arange(len(scores_from)) if groups is None else np.asarray(groups)
    if names.shape != scores_from.shape:
        raise UserError(f"groups must have shape {scores_from.shape}, not {names.shape}")
    which = np.unique(names, return_inverse=True)[1]
    folds = min(_FOLDS, int(which.max()) + 1)
    fold = (np.random.default_rng(seed).permutation(which.max() + 1) % folds)[which]
    wanted = scores_from >= threshold
    kept = np.empty(len(wanted), bool)
    for held in range(folds):
        mine = fold == held
        rest = ~mine if folds > 1 else mine  # one group alone cannot be held out
        found = fit_isotonic(scores_from[rest], scores_to[rest])(threshold)
        kept[mine] = scores_to[mine] >= found
    return RecalibratedThreshold(
        threshold=float(fit_isotonic(scores_from, scores_to)(threshold)),
        agreement_before=agreement(scores_to, scores_from, threshold),
        agreement_after=float(np.mean(kept == wanted)),
        recall_before=recall(scores_to, scores_from, threshold),
        recall_after=float(np.mean(kept[wanted])) if wanted.any() else float("nan"),
        gained=float(np.mean(kept & ~wanted)),
        lost=float(np.mean(wanted & ~kept)),
        pairs=len(wanted),
    )


def _sides(scores, truth, threshold, truth_threshold):
    scores, truth = _scores(scores, truth)
    return scores >= threshold, truth >= (threshold if truth_threshold is None else truth_threshold)


def _scores(first, second) -> tuple[np.ndarray, np.ndarray]:
    first, second = (np.asarray(a, np.float64).ravel() for a in (first, second))
    if first.shape != second.shape or not len(first):
        raise UserError(
            f"both scores must be of the same pairs, at least one; there are {len(first)} and "
            f"{len(second)}"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise UserError("scores must be numbers; some are NaN or infinite")
    return first, second
