"""Test whether new vectors belong to their ids by comparing them with h(old).

There are three answers. *Fits*: h(old) and the new vectors agree far beyond chance. *Wrong*: there
is evidence for something else, which is named: another order of the rows, other items, the other
direction, another model. *Cannot tell*: what was seen is no surprise under either, because the
map is weak or the items are few; then it says how many items would do.

Absence of agreement is evidence only where a right pairing would have shown. What it would show is
taken from pairs that the map was tested on (`Expected.of`). Without any, it is taken that the
similarities of items in two models worth a map correlate by `LEAST` (published encoders: 0.24 and
more, see docs/known-answers.md).
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from fct_jax.errors import UserError
from fct_jax.runtime.progress import console
from fct_jax.upgrade.checks.evidence import (
    Evidence,
    agreement,
    best_order,
    evidence,
    own_places,
)

FITS, WRONG, CANNOT_TELL = "fits", "wrong", "cannot tell"
LEAST = 0.1  # correlation of similarities in two models, where nothing is known of them
MOST = 1000  # items that are looked at together: time and memory grow with the square

_PAIRED = 4.0  # deviations above a random pairing
_SHARE = 0.05  # of what the right vectors would show: clusters make the tails of chance heavy
_RELATED = 4.0  # deviations above an unrelated model
_ALIKE = 1.6  # the right vectors themselves must be so many times above what is asked for
_SEEN = 5.0  # deviations of agreeing similarities, from which on the pairing is right
_POWER = 7.0  # deviations that are expected, from which on their absence is evidence: if right,
# fewer than `_ABSENT` are 4 deviations away, 3 of 100,000
_ABSENT = 3.0  # deviations: no more than chance
_FRACTION = 0.25  # of what is expected: less is as good as absent
_SCORE = 0.75  # of the expected score, below which some of the pairs are wrong
_ERRORS = 4.0  # standard errors by which it must be below the expected one, too
_FEWEST = 8


@dataclasses.dataclass(frozen=True)
class Expected:
    """The figures of a right pairing: deviations as of `Evidence`, correlation, and mean place.

    score, spread: mean and deviation of `own_places` over the ``tested`` pairs. A score of 0 is
    none: items that the map finds hard are not held to that of all.
    """

    paired: float = 0.0
    related: float = 0.0
    correlation: float = LEAST
    score: float = 0.0
    spread: float = 0.0
    tested: int = 0

    @classmethod
    def of(cls, translated, old, new, metric: str, count: int, hard: bool = False) -> "Expected":
        """Return what ``count`` items should show, by tested pairs: h(old), old and new, (n, ·).

        Args:
          hard: the items may be those that the map is least sure of: taken like the quarter of the
            tested pairs that it maps worst.
        """
        rng = np.random.default_rng(0)
        rows = np.arange(len(new))
        if hard:
            gap = np.linalg.norm(np.asarray(translated) - np.asarray(new), axis=1)
            rows = np.argsort(gap)[-max(_FEWEST, len(new) // 4) :]
        taken = min(count, len(rows))
        drawn = [rng.permutation(rows)[:taken] for _ in range(5)]
        found = [evidence(translated[some], new[some]) for some in drawn]
        # Evidence against a random pairing grows with the root of the number of items. The least
        # that was drawn is what can be relied on.
        paired = min(e.paired for e in found) * np.sqrt(count / taken)
        related = min(e.related for e in found)
        correlation = agreement(old, new).correlation * (0.5 if hard else 1.0)
        if hard:
            return cls(paired, related, correlation)
        places = own_places(translated, new, metric)
        spread = float(places.std())
        return cls(paired, related, correlation, float(places.mean()), spread, len(places))


# Nothing is expected of a map that is being made.
UNKNOWN = Expected()


@dataclasses.dataclass(frozen=True)
class Answer:
    """One of `FITS`, `WRONG` and `CANNOT_TELL`, why, and how many items would do (0: unknown).

    ``count``: items that were asked; 0 where they are so much alike that not even their new
    vectors would tell them apart.
    """

    outcome: str
    count: int
    why: str
    would_do: int = 0


def ask(
    old,
    translated,
    new,
    metric: str = "l2",
    expected: Expected | None = None,
    translate: Callable | None = None,
) -> Answer:
    """Ask whether the pairing and the map are right; see the module for the answers.

    Args:
      old (m, do), translated (m, D), new (m, D): old vectors, h(old), and the new model's vectors
        of the same items, in this order; of more than `MOST` so many are looked at.
      metric: of the new space.
      expected: what is known of the map; None: nothing. `UNKNOWN`: it may be a bad one.
      translate: h, from (n, do) to (n, D), to ask for the other direction; None: not asked.
    """
    if len(new) > MOST:
        rows = np.sort(np.random.default_rng(0).permutation(len(new))[:MOST])
        old, translated, new = (np.asarray(part)[rows] for part in (old, translated, new))
    count = len(new)
    best = evidence(new, new)
    needed = max(_PAIRED, _SHARE * best.paired)
    if best.paired < _ALIKE * needed:
        return Answer(CANNOT_TELL, 0, "the new vectors are too much alike")
    found = evidence(translated, new)
    why = f"{found.paired:.1f} deviations above a random pairing ({needed:.1f} needed)"
    # In few dimensions a rotation can do little harm.
    related = min(_RELATED, best.related / _ALIKE)
    why += f", {found.related:.1f} above an unrelated model ({related:.1f} needed)"
    if found.paired >= needed and found.related >= related:
        return _by_score(translated, new, metric, expected, why)
    if translate is not None and np.shape(old) == np.shape(new):
        turned = evidence(translate(np.asarray(new)), old)
        if turned.paired >= max(_POWER, needed) and turned.related >= related:
            why = f"h(new) and the old vectors are {turned.paired:.1f} deviations above chance"
            return Answer(WRONG, count, f"wrong direction: {why}")
    pairing = ask_pairing(old, new, (expected or UNKNOWN).correlation)
    if pairing.outcome == WRONG:
        return dataclasses.replace(pairing, why=f"{why}; {pairing.why}")
    return _by_power(old, new, found, expected, pairing, why)


def _by_score(translated, new, metric: str, expected: Expected | None, why: str) -> Answer:
    """Answer where most pairs are right: items that do not find themselves show the wrong ones."""
    if expected is not None and expected.score:
        count, score = len(new), float(own_places(translated, new, metric).mean())
        # The tested pairs were right ones, too.
        error = expected.spread * np.sqrt(1 / count + 1 / expected.tested)
        if score < min(_SCORE * expected.score, expected.score - _ERRORS * error):
            why = f"score {score:.2f} where {expected.score:.2f} ± {error:.2f} is expected"
            why += " (1: all find themselves first, 0: chance)"
            return Answer(WRONG, count, f"some pairs are shuffled: {why}")
    return Answer(FITS, len(new), why)


def _by_power(old, new, found: Evidence, expected, pairing: Answer, why: str) -> Answer:
    """Answer where the map shows nothing: by its own fault, or because of another model."""
    count = len(new)
    reach = expected
    if expected is None:
        # The map fits no known pair. Another map, learnt from half of these, may do so.
        reach = other = _cross_fitted(old, new)
        if other.paired >= _POWER and other.related >= _RELATED and _missing(found, other):
            why += f"; a map learnt from half of these items reaches {other.paired:.1f}"
            return Answer(WRONG, count, f"the map is of another model: {why}")
    elif _missing(found, expected):
        why += f"; {expected.paired:.1f} and {expected.related:.1f} are expected of this map"
        what = "the new or old vectors are another model's"
        if pairing.outcome != FITS:
            what = "the pairing of ids and vectors is shuffled, or another model made one of them"
        return Answer(WRONG, count, f"{what}: {why}")
    would_do = _would_do(count, reach.paired) if reach.paired >= 1 else pairing.would_do
    return Answer(CANNOT_TELL, count, f"{why}; {pairing.why}", would_do)


def _missing(found: Evidence, expected) -> bool:
    """Return whether evidence is absent that was sure to be there."""
    return any(
        hope >= _POWER and seen < max(_ABSENT, _FRACTION * hope)
        for seen, hope in ((found.paired, expected.paired), (found.related, expected.related))
    )


def ask_pairing(old, new, correlation: float = LEAST) -> Answer:
    """Ask whether rows of old (m, do) and new (m, dn) belong together, without any map.

    correlation: of the similarities in both spaces, that a right pairing has at least.
    """
    count = len(new)
    if count < _FEWEST:
        return Answer(CANNOT_TELL, count, "too few items for their similarities", 4 * _FEWEST)
    found = agreement(old, new)
    why = f"similarities of the items correlate by {found.correlation:.2f}"
    if found.deviations < _SEEN:
        order, deviations = best_order(old, new)
        if deviations >= max(_POWER, 2 * found.deviations):
            why = f"{why}, but {deviations:.1f} deviations above chance with the rows {order}"
            return Answer(WRONG, count, f"the pairing of ids and vectors is shuffled: {why}")
        power = correlation / max(found.deviation, 1e-12)
        absent = power >= _POWER and found.deviations < max(_ABSENT, _FRACTION * power)
        # If the old model is poor, a map may still see what similarities do not.
        if absent and _cross_fitted(old, new).paired < _ABSENT:
            why += f", {found.deviations:.1f} deviations above chance, where {power:.1f} are due"
            what = "the pairing of ids and vectors is shuffled, or nothing relates the models"
            return Answer(WRONG, count, f"{what}: {why}")
        # The deviation falls with the number of items.
        return Answer(CANNOT_TELL, count, why, int(np.ceil(count * _POWER / max(power, 0.1))))
    return Answer(FITS, count, f"{why}, as in a right pairing")


def check_known_answers(answer: Answer, what: str) -> int:
    """Return the number of items that were asked; warn where their answer cannot be told.

    Raises UserError where the answer is `WRONG`.
    """
    if answer.outcome == WRONG:
        raise UserError(
            f"known-answer queries fail on {what}, by {answer.count} items: {answer.why}"
        )
    if answer.outcome == CANNOT_TELL:
        more = f"; about {answer.would_do:,} items would do" if answer.would_do else ""
        console.print(
            f"warning: known answers cannot tell whether {what} is right, by {answer.count} "
            f"items: {answer.why}{more}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    return answer.count


def _would_do(count: int, expected: float) -> int:
    """Return the number of items at which the expected evidence reaches the needed power."""
    return max(2 * count, int(np.ceil(count * (_POWER / expected) ** 2)))


def _cross_fitted(old, new) -> Evidence:
    """Return evidence of ridge maps, each fitted on one half of the items, tested on the other."""
    old, new = np.asarray(old, np.float64), np.asarray(new, np.float64)
    half = np.random.default_rng(0).permutation(len(new)) % 2 == 0
    guessed = np.empty_like(new)
    for inside in (half, ~half):
        x, y = old[inside] - old[inside].mean(axis=0), new[inside] - new[inside].mean(axis=0)
        gram = x @ x.T
        gram += max(np.trace(gram) / len(gram), 1e-12) * np.eye(len(gram))
        apart = (old[~inside] - old[inside].mean(axis=0)) @ x.T
        guessed[~inside] = apart @ np.linalg.solve(gram, y)
    return evidence(guessed, new)
