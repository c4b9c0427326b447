"""Linear maps in closed form, from float64 sums over any number of pairs.

A closed form is a function ``(sums of each fold, centre) -> (Linear of all pairs, for each fold the
Linear of the others)``, such as `procrustes_folds` and `ridge`, with a row in ``methods.METHODS``.
"""

import dataclasses

import numpy as np

from fct_jax.runtime import threads
from fct_jax.upgrade.maps.functions import Linear

ROWS = 8192  # pairs read together
# Candidates for λ, in units of the mean variance of an input dimension, summed over the pairs.
PENALTIES = 10.0 ** np.arange(-9, 3.01, 0.5)


@dataclasses.dataclass
class Sums:
    """The sums over n pairs (x, y), about a fixed centre, that a linear least-squares fit needs.

    xx (do, do) = Σ x xᵀ, xy (do, dn) = Σ x yᵀ, yy = Σ |y|², x (do,), y (dn,): all float64.
    """

    n: int
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    yy: float

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(*(getattr(self, f) + getattr(other, f) for f in _FIELDS))

    def __sub__(self, other: "Sums") -> "Sums":
        return Sums(*(getattr(self, f) - getattr(other, f) for f in _FIELDS))

    def centred(self, mean_x: np.ndarray, mean_y: np.ndarray) -> "Sums":
        """Return the same sums of x − mean_x and y − mean_y."""
        n = self.n
        return Sums(
            n,
            self.x - n * mean_x,
            self.y - n * mean_y,
            self.xx
            - np.outer(self.x, mean_x)
            - np.outer(mean_x, self.x)
            + n * np.outer(mean_x, mean_x),
            self.xy
            - np.outer(self.x, mean_y)
            - np.outer(mean_x, self.y)
            + n * np.outer(mean_x, mean_y),
            self.yy - 2 * float(self.y @ mean_y) + n * float(mean_y @ mean_y),
        )


_FIELDS = tuple(field.name for field in dataclasses.fields(Sums))


@dataclasses.dataclass(frozen=True)
class Centre:
    """Points near the means of x and y; sums are taken relative to them to keep all digits.

    The large common part of vectors (of embeddings after a ReLU, say) would otherwise cost digits
    of their variation.
    """

    x: np.ndarray
    y: np.ndarray


def fold_sums(x, y, fold: np.ndarray, folds: int) -> tuple[list[Sums], Centre]:
    """Return the sums of each fold of pairs x (N, do), y (N, dn), and their centre.

    ``fold`` (N,) gives the fold of each pair, from 0. The pairs are read once, block by block.
    """
    first = slice(0, ROWS)
    centre = Centre(*(np.asarray(a[first], np.float64).mean(axis=0) for a in (x, y)))
    do, dn = x.shape[1], y.shape[1]
    sums = [
        Sums(0, np.zeros(do), np.zeros(dn), np.zeros((do, do)), np.zeros((do, dn)), 0.0)
        for _ in range(folds)
    ]

    def parts():
        for start in range(0, len(x), ROWS):
            rows = slice(start, start + ROWS)
            a = np.asarray(x[rows], np.float64) - centre.x
            b = np.asarray(y[rows], np.float64) - centre.y
            for f in range(folds):
                yield f, a, b, fold[rows] == f

    def summed(part):
        f, a, b, chosen = part
        p, q = a[chosen], b[chosen]
        return f, Sums(len(p), p.sum(0), q.sum(0), p.T @ p, p.T @ q, float(np.vdot(q, q)))

    for f, part in threads.in_order(summed, parts()):
        sums[f] += part
    return sums, centre


def procrustes(sums: Sums, centre: Centre) -> Linear:
    """Return the rotation (with reflection), scale and shift that bring x nearest to y.

    The weight has orthonormal rows or columns: it is the square orthogonal matrix for the smaller
    vectors padded with zeros, with the padding removed again.

    Source: Schönemann, "A generalized solution of the orthogonal Procrustes problem",
    Psychometrika 1966, https://doi.org/10.1007/BF02289451; the scale is that of least squares.
    """
    mean_x, mean_y = sums.x / sums.n, sums.y / sums.n
    inner = sums.centred(mean_x, mean_y)
    with threads.single():
        u, singular, vt = np.linalg.svd(inner.xy, full_matrices=False)
    weight = u @ vt
    # |x W|² differs from |x|² if columns were cut off.
    mapped = np.einsum("ij,ij->", inner.xx @ weight, weight)
    scale = float(singular.sum() / mapped) if mapped > 0 else 1.0
    bias = centre.y + mean_y - scale * (centre.x + mean_x) @ weight
    return Linear(weight, scale, bias)


def procrustes_folds(sums: list[Sums], centre: Centre) -> tuple[Linear, list[Linear]]:
    """Return `procrustes` of all pairs, and for each fold `procrustes` of the other folds."""
    total = _sum(sums)
    parts = [total, *(total - left_out for left_out in sums)]
    found = list(threads.in_order(lambda part: procrustes(part, centre), parts))
    return found[0], found[1:]


def ridge(sums: list[Sums], centre: Centre, penalties=PENALTIES) -> tuple[Linear, list[Linear]]:
    """Fit ridge regression with an intercept; cross-validation over the folds chooses λ.

    Returns the map of all pairs and, for each fold, the map of the other folds with the
    same λ. λ is the candidate times the mean diagonal of the centred Σ x xᵀ that it is added to.

    Source: Hoerl and Kennard, "Ridge regression: biased estimation for nonorthogonal problems",
    Technometrics 1970, https://doi.org/10.1080/00401706.1970.10488634.
    """
    total = _sum(sums)

    def without(left_out: Sums):
        solver = _Solver(total - left_out, centre)
        return solver, solver.squared_errors(left_out, penalties)

    found = list(threads.in_order(without, sums))
    errors = np.sum([error for _, error in found], axis=0)
    penalty = float(penalties[int(np.argmin(errors))])
    spread = total.centred(total.x / total.n, total.y / total.n).yy
    with threads.single():
        chosen = _Solver(total, centre).map(penalty)
        folds = [solver.map(penalty) for solver, _ in found]
    chosen.error = float(errors.min() / spread) if spread > 0 else 0.0
    return chosen, folds


class _Solver:
    """All ridge solutions of some sums, for the cost of one eigendecomposition."""

    def __init__(self, sums: Sums, centre: Centre):
        self._centre, self._mean_x, self._mean_y = centre, sums.x / sums.n, sums.y / sums.n
        inner = sums.centred(self._mean_x, self._mean_y)
        values, self._basis = np.linalg.eigh(inner.xx)
        self._values = np.maximum(values, 0.0)
        self._unit = max(float(self._values.mean()), np.finfo(np.float64).tiny)
        self._rotated = self._basis.T @ inner.xy

    def _shrunk(self, penalty: float) -> np.ndarray:
        return 1.0 / (self._values + penalty * self._unit)

    def squared_errors(self, left_out: Sums, penalties) -> np.ndarray:
        """Return Σ |y − prediction|² over the left-out pairs, for each candidate."""
        other = left_out.centred(self._mean_x, self._mean_y)
        gram = self._basis.T @ other.xx @ self._basis
        gram *= self._rotated @ self._rotated.T
        cross = np.einsum("ij,ij->i", self._basis.T @ other.xy, self._rotated)
        shrunk = np.stack([self._shrunk(penalty) for penalty in penalties])
        return other.yy - 2 * shrunk @ cross + np.sum((shrunk @ gram) * shrunk, axis=1)

    def map(self, penalty: float) -> Linear:
        weight = self._basis @ (self._shrunk(penalty)[:, None] * self._rotated)
        bias = self._centre.y + self._mean_y - (self._centre.x + self._mean_x) @ weight
        return Linear(weight, 1.0, bias, penalty)


def _sum(sums: list[Sums]) -> Sums:
    total = sums[0]
    for other in sums[1:]:
        total = total + other
    return total
