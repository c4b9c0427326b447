"""Test whether new vectors belong to their ids by comparing them with h(old).

There are three answers. *Fits*: h(old) and the new vectors agree far beyond chance. *Wrong*: there
is evidence for a fault, which is named: another order of the rows, other items, the reversed
direction, another model. *Cannot tell*: the evidence is compatible with both, because the
map is weak or the items are few; the answer then says how many items would be enough.

Absence of agreement is evidence only if a right pairing would have shown agreement. Its expected
size comes from pairs that the map was tested on (`Expected.of`). Without such pairs the check
assumes that the similarities of items in two models correlate by `LEAST` (published encoders: 0.24
and more, see docs/known-answers.md).
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
LEAST = 0.1  # assumed correlation of similarities in two models of which nothing is known
MOST = 1000  # largest number of items examined together: time and memory are quadratic

_PAIRED = 4.0  # deviations above a random pairing that are needed
_SHARE = 0.05  # and this share of the right vectors' deviations: clusters give chance heavy tails
_RELATED = 4.0  # deviations above an unrelated model that are needed
_ALIKE = 1.6  # the right vectors themselves must exceed the needed value by this factor
_SEEN = 5.0  # deviations of agreeing similarities at which the pairing is right
_POWER = 7.0  # expected deviations at which their absence is evidence: in a right pairing a value
# below `_ABSENT` is then 4 deviations away, a chance of 3 in 100,000
_ABSENT = 3.0  # deviations that count as chance
_FRACTION = 0.25  # share of the expected deviations below which they count as absent
_SCORE = 0.75  # share of the expected score below which some of the pairs are wrong
_ERRORS = 4.0  # standard errors by which the score must also be below the expected one
_FEWEST = 8


@dataclasses.dataclass(frozen=True)
class Expected:
    """The expected figures of a right pairing: the deviations of `Evidence`, and a correlation.

    score, spread: mean and deviation of `own_places` over the ``tested`` pairs. A score of 0 means
    that none is expected, as for items that are hard for the map.
    """

    paired: float = 0.0
    related: float = 0.0
    correlation: float = LEAST
    score: float = 0.0
    spread: float = 0.0
    tested: int = 0

    @classmethod
    def of(cls, translated, old, new, metric: str, count: int, hard: bool = False) -> "Expected":
        """Estimate the figures of ``count`` items from tested pairs: h(old), old and new, (n, ·).

        Args:
          hard: the items may be those with the largest uncertainty, so the quarter of the tested
            pairs that the map maps worst is used.
        """
        rng = np.random.default_rng(0)
        rows = np.arange(len(new))
        if hard:
            gap = np.linalg.norm(np.asarray(translated) - np.asarray(new), axis=1)
            rows = np.argsort(gap)[-max(_FEWEST, len(new) // 4) :]
        taken = min(count, len(rows))
        drawn = [rng.permutation(rows)[:taken] for _ in range(5)]
        found = [evidence(translated[some], new[some]) for some in drawn]
        # Evidence against a random pairing grows with the root of the number of items. The smallest
        # value of the draws is reliable.
        paired = min(e.paired for e in found) * np.sqrt(count / taken)
        related = min(e.related for e in found)
        correlation = agreement(old, new).correlation * (0.5 if hard else 1.0)
        if hard:
            return cls(paired, related, correlation)
        places = own_places(translated, new, metric)
        spread = float(places.std())
        return cls(paired, related, correlation, float(places.mean()), spread, len(places))


# A map that is being fitted has no expected figures.
UNKNOWN = Expected()


@dataclasses.dataclass(frozen=True)
class Answer:
    """The outcome `FITS`, `WRONG` or `CANNOT_TELL`, its reason, and the number of items needed.

    ``count``: number of tested items; 0 if they are too similar to be distinguished even by their
    new vectors. ``would_do``: number of items that would be enough; 0 if unknown.
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
    """Test whether the pairing and the map are right; the module explains the answers.

    Args:
      old (m, do), translated (m, D), new (m, D): old vectors, h(old), and the new model's vectors
        of the same items, in this order; at most `MOST` of them are used.
      metric: metric of the new space.
      expected: figures that the map should show; None: unknown. `UNKNOWN`: the map may be bad.
      translate: h, from (n, do) to (n, D), to test the reversed direction; None: no such test.
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
    # In few dimensions even a random rotation leaves high values.
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
    """Answer if most pairs are right: items that do not find themselves reveal the wrong pairs."""
    if expected is not None and expected.score:
        count, score = len(new), float(own_places(translated, new, metric).mean())
        # The tested pairs were right ones, too.
        error = expected.spread * np.sqrt(1 / count + 1 / expected.tested)
        if score < min(_SCORE * expected.score, expected.score - _ERRORS * error):
            why = f"score {score:.2f}, but {expected.score:.2f} ± {error:.2f} is expected"
            why += " (1: all items find themselves first, 0: chance)"
            return Answer(WRONG, count, f"some pairs are shuffled: {why}")
    return Answer(FITS, len(new), why)


def _by_power(old, new, found: Evidence, expected, pairing: Answer, why: str) -> Answer:
    """Answer if the map shows nothing: it may be weak, or another model's."""
    count = len(new)
    reach = expected
    if expected is None:
        # The map fits no known pair. Another map, learnt from half of these, may do so.
        reach = other = _cross_fitted(old, new)
        if other.paired >= _POWER and other.related >= _RELATED and _missing(found, other):
            why += f"; a map learnt from half of these items reaches {other.paired:.1f}"
            return Answer(WRONG, count, f"the map is of another model: {why}")
    elif _missing(found, expected):
        why += f"; this map should reach {expected.paired:.1f} and {expected.related:.1f}"
        what = "the new or old vectors are another model's"
        if pairing.outcome != FITS:
            what = "the pairing of ids and vectors is shuffled, or another model made one of them"
        return Answer(WRONG, count, f"{what}: {why}")
    would_do = _would_do(count, reach.paired) if reach.paired >= 1 else pairing.would_do
    return Answer(CANNOT_TELL, count, f"{why}; {pairing.why}", would_do)


def _missing(found: Evidence, expected) -> bool:
    """Return whether evidence is absent that a right pairing would certainly show."""
    return any(
        hope >= _POWER and seen < max(_ABSENT, _FRACTION * hope)
        for seen, hope in ((found.paired, expected.paired), (found.related, expected.related))
    )


def ask_pairing(old, new, correlation: float = LEAST) -> Answer:
    """Test whether rows of old (m, do) and new (m, dn) belong together, without any map.

    correlation: smallest correlation of the similarities in both spaces in a right pairing.
    """
    count = len(new)
    if count < _FEWEST:
        return Answer(CANNOT_TELL, count, "too few items to compare similarities", 4 * _FEWEST)
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
            why += f", {found.deviations:.1f} deviations above chance ({power:.1f} expected)"
            what = "the pairing of ids and vectors is shuffled, or nothing relates the models"
            return Answer(WRONG, count, f"{what}: {why}")
        # The deviation falls with the number of items.
        return Answer(CANNOT_TELL, count, why, int(np.ceil(count * _POWER / max(power, 0.1))))
    return Answer(FITS, count, f"{why}, as in a right pairing")


def check_known_answers(answer: Answer, what: str) -> int:
    """Return the number of tested items; print a warning if they cannot tell.

    Raises UserError if the answer is `WRONG`.
    """
    if answer.outcome == WRONG:
        raise UserError(
            f"known-answer queries fail on {what}, with {answer.count} items: {answer.why}"
        )
    if answer.outcome == CANNOT_TELL:
        more = f"; about {answer.would_do:,} items would be enough" if answer.would_do else ""
        console.print(
            f"warning: known answers cannot tell whether {what} is right, with {answer.count} "
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
