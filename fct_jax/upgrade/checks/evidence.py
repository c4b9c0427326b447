"""Statistics of paired vectors: how far their agreement is above chance.

Three null hypotheses are tested, each with its own standard deviation. This distinguishes a poor
map or hard items, which give weak evidence, from wrong pairs, which give none:

- the same vectors, paired at random: the sum of the pairs' inner products of centred unit vectors,
  against its deviation over all permutations (Hoeffding, "A combinatorial central limit theorem",
  Annals of Mathematical Statistics 1951);
- the right pairs, but vectors of an unrelated model: the same sum, against its deviation
  over all rotations of the space;
- without any map, unrelated similarities: the correlation of the items' similarities in both
  models, against its deviation over all permutations (Mantel, "The
  detection of disease clustering and a generalized regression approach", Cancer Research 1967).
"""

import dataclasses

import numpy as np

from fct_jax.evaluate.distances import unit_rows

_FLOOR = 1e-12


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Standard deviations of the given pairs above random pairing and above random rotation."""

    paired: float
    related: float


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Correlation of the similarities in two spaces, and its deviation under random pairing."""

    correlation: float
    deviation: float

    @property
    def deviations(self) -> float:
        """Return the number of deviations by which the correlation exceeds a random pairing."""
        return self.correlation / max(self.deviation, _FLOOR)


def evidence(translated, new) -> Evidence:
    """Return the evidence of h(old) (m, D) and new vectors (m, D) of the same items, in order."""
    left, right = centred(translated), centred(new)
    total = np.einsum("nd,nd->", left, right)
    related = np.linalg.norm(left.T @ right) / np.sqrt(left.shape[1])
    paired = np.linalg.norm(left @ right.T) / np.sqrt(max(len(left) - 1, 1))
    return Evidence(float(total / max(paired, _FLOOR)), float(total / max(related, _FLOOR)))


def agreement(old, new) -> Agreement:
    """Return the agreement of the similarities in ``old`` (m, do) and ``new`` (m, dn), m >= 4."""
    return _mantel(_similarities(old), _similarities(new))


def best_order(old, new) -> tuple[str, float]:
    """Return the simple order of the new rows that agrees best with the old, and its deviations.

    The candidates are shifts by up to 20 rows and the reversed rows. The caller compares them with
    the given order.
    """
    left, right = _similarities(old), _similarities(new)
    count = len(left)
    as_given = _mantel(left, right)
    tried = {"reversed": np.arange(count)[::-1]}
    tried |= {f"shifted by {k}": np.roll(np.arange(count), k) for k in _shifts(count)}
    found = {name: float(np.vdot(left, right[np.ix_(o, o)])) for name, o in tried.items()}
    name = max(found, key=found.get)
    return name, found[name] / max(as_given.deviation, _FLOOR)


def _shifts(count: int, most: int = 20) -> list[int]:
    near = range(1, min(most, count - 1) + 1)
    return sorted({k for n in near for k in (n, -n)})


def own_places(translated, new, metric: str = "l2") -> np.ndarray:
    """Return the scaled rank at which each item finds itself (m,): 1 first, 0 middle, -1 last.

    translated (m, D): h(old) of m items; new (m, D): the new model's vectors of the same items,
    which are the queries. By chance the mean is 0.
    """
    translated = np.asarray(translated, np.float64)
    new = np.asarray(new, np.float64)
    if metric == "cosine":
        translated = unit_rows(translated)
    # A query's own length does not change the order of its neighbours.
    near = 2 * new @ translated.T
    if metric != "cosine":
        near -= (translated**2).sum(axis=1)
    own = np.diagonal(near)[:, None]
    # Half of the equally near items count as nearer: equal vectors are not evidence.
    place = (near > own).sum(axis=1) + ((near == own).sum(axis=1) - 1) / 2
    return 1 - 2 * place / max(len(new) - 1, 1)


def centred(vectors) -> np.ndarray:
    """Return centred unit vectors, so that no vector counts more because of its length."""
    rows = np.asarray(vectors, np.float64)
    rows = unit_rows(rows - rows.mean(axis=0))
    return rows - rows.mean(axis=0)


def _similarities(vectors) -> np.ndarray:
    """Return centred similarities (m, m) with a zero diagonal, scaled to norm 1."""
    rows = centred(vectors)
    found = rows @ rows.T
    count = len(rows)
    np.fill_diagonal(found, 0)
    found -= found.sum() / (count * (count - 1))
    np.fill_diagonal(found, 0)
    return found / max(np.linalg.norm(found), _FLOOR)


def _mantel(left: np.ndarray, right: np.ndarray) -> Agreement:
    """Return Σ left · right, with its exact deviation over permutations; the mean is 0."""
    n = len(left)
    # Two pairs of items are the same, share one item, or share none.
    numbers = (n * (n - 1), n * (n - 1) * (n - 2), n * (n - 1) * (n - 2) * (n - 3))
    parts = zip((2, 4, 1), numbers, _products(left), _products(right), strict=True)
    variance = sum(weight * a * b / number for weight, number, a, b in parts)
    return Agreement(float(np.vdot(left, right)), float(np.sqrt(max(variance, 0.0))))


def _products(a: np.ndarray) -> tuple[float, float, float]:
    """Return the sums of products of entries with two, one and no common items; Σ a is 0."""
    same = np.vdot(a, a)
    one = np.vdot(a.sum(axis=1), a.sum(axis=1)) - same
    return same, one, -4 * one - 2 * same
