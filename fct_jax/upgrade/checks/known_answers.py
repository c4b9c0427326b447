"""Do new vectors belong to the items that they are given for? Asked of h(old) by statistics.

Two chances are ruled out, each with the deviation that it would have (so that a poor map or
hard items, whose answers are faint, are told from wrong ones, which give none):

- the same vectors, paired at random: the sum of own inner products of centred unit vectors,
  against its deviation over all permutations (Hoeffding, "A combinatorial central limit theorem",
  Annals of Mathematical Statistics 1951);
- the right pairs, but the vectors of an unrelated model: the same sum, against its deviation
  over all rotations of the space.
"""

import dataclasses

import numpy as np

from fct_jax.errors import UserError

_PAIRED = 4.0  # deviations above a random pairing
_SHARE = 0.05  # of what the right vectors would show: clusters make the tails of chance heavy
_RELATED = 4.0  # deviations above an unrelated model
_ALIKE = 1.6  # the right vectors themselves must be so many times above what is asked for
_FLOOR = 1e-12


@dataclasses.dataclass(frozen=True)
class Evidence:
    """How far above chance the own pairs are: deviations of a random pairing and rotation."""

    paired: float
    related: float


def evidence(translated, new) -> Evidence:
    """Of h(old) (m, D) and the new model's vectors (m, D) of the same items, in this order."""
    left, right = _centred(translated), _centred(new)
    total = np.einsum("nd,nd->", left, right)
    paired = np.linalg.norm(left @ right.T) / np.sqrt(max(len(left) - 1, 1))
    related = np.linalg.norm(left.T @ right) / np.sqrt(left.shape[1])
    return Evidence(total / max(paired, _FLOOR), total / max(related, _FLOOR))


def _centred(vectors) -> np.ndarray:
    """Unit vectors around their mean, none of which counts more for its length."""
    rows = np.asarray(vectors, np.float64)
    rows = rows - rows.mean(axis=0)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _FLOOR)
    return rows - rows.mean(axis=0)


def known_answer_score(translated, new, metric: str = "l2") -> float:
    """How well items find themselves: 1 always first, 0 by chance (mean place in the middle).

    translated (m, D): h(old) of m items; new (m, D): the new model's vectors of the same items,
    which are the queries.
    """
    translated = np.asarray(translated, np.float64)
    new = np.asarray(new, np.float64)
    if metric == "cosine":
        translated = translated / np.linalg.norm(translated, axis=1, keepdims=True)
    # A query's own length does not change the order of its neighbours.
    near = 2 * new @ translated.T
    if metric != "cosine":
        near -= (translated**2).sum(axis=1)
    own = np.diagonal(near)[:, None]
    # Of equally near items half are taken to come first: equal vectors are no answer.
    place = (near > own).sum(axis=1) + ((near == own).sum(axis=1) - 1) / 2
    return 1 - 2 * float(place.mean()) / max(len(new) - 1, 1)


def check_known_answers(translated, new, metric: str, what: str, at_least: float = 0.0) -> int:
    """Items find themselves beyond chance, and with a score of ``at_least``.

    Args:
      translated, new: (m, D), as of `evidence`.
      metric: of the new space.
      what: for the message.
      at_least: score as of `known_answer_score`; for items like those that it is known of.

    Returns the number of answers: 0 where the items are so much alike that not even their new
    vectors would show it. Raises UserError.
    """
    best = evidence(new, new)
    paired = max(_PAIRED, _SHARE * best.paired)
    if best.paired < _ALIKE * paired:
        return 0
    found = evidence(translated, new)
    score = known_answer_score(translated, new, metric)
    # In few dimensions a rotation can do little harm.
    related = min(_RELATED, best.related / _ALIKE)
    if found.paired < paired or found.related < related or score < at_least:
        raise UserError(
            f"known-answer queries fail on {what}: the new vectors of {len(new)} items find their "
            f"own translated vectors with score {score:.2f} (1: always first, 0: by chance; "
            f"needed {at_least:.2f}), {found.paired:.1f} deviations above a random pairing "
            f"({paired:.1f} needed) and {found.related:.1f} above an unrelated model "
            f"({related:.1f} needed): the pairing of ids and vectors is shuffled, the direction "
            "is wrong, or another model made one of them"
        )
    return len(new)
