"""One space for old, translated and new vectors: an (almost) orthogonal map of the new ones.

A *backward* map B moves new vectors close to the old ones and (almost) preserves the distances
between new vectors. A *forward* map F takes an old vector to B(new). A query B(new) can then search
untouched old vectors, translated vectors F(old) and re-embedded vectors B(new), in any mixture.

Vectors are rows everywhere: ``B(n) = n @ backward``. Source: "λ-Orthogonality Regularization for
Compatible Representation Learning", NeurIPS 2025, https://arxiv.org/abs/2509.16664. The closed
forms are ours.
"""

import dataclasses

import numpy as np
import scipy.linalg

from fct_jax.errors import UserError, unknown
from fct_jax.evaluate.distances import as_vectors, check_same_length, unit_rows
from fct_jax.runtime import threads
from fct_jax.upgrade.maps.backward import Backward
from fct_jax.upgrade.maps.linear import Linear, fold_sums, ridge

TAILS = ("free", "zero")
_FOLDS = 5


@dataclasses.dataclass(frozen=True)
class CommonSpace:
    """The two affine maps into one space of the new model's size.

    Attributes (float64):
      backward: (dn, dn), and backward_bias (dn,): map of new vectors; orthogonal in the strict
        form.
      forward: (do, dn), and forward_bias (dn,): map of old vectors.
    """

    backward: np.ndarray
    backward_bias: np.ndarray
    forward: np.ndarray
    forward_bias: np.ndarray

    def moved(self, new) -> np.ndarray:
        """Return B(new), (N, dn) → (N, dn): queries and re-embedded items."""
        return np.asarray(new) @ self.backward + self.backward_bias

    def translated(self, old) -> np.ndarray:
        """Return F(old), (N, do) → (N, dn): items that are not re-embedded."""
        return np.asarray(old) @ self.forward + self.forward_bias


def closed_form_turn(new: np.ndarray, old: np.ndarray, tolerance: float = 1e-6) -> Backward:
    """Return the backward map of directions in closed form, (N, dn) and (N, do) of the same items.

    If new vectors are the larger ones, numbers that old vectors lack are free (the tail "free" of
    `closed_form_backward`); if they are smaller, they are rotated within the old space.
    """
    new, old = _pairs(new, old)
    new, old = unit_rows(new), unit_rows(old)
    if new.shape[1] > old.shape[1]:
        weight = closed_form_backward(new, old, tolerance=tolerance)
    else:
        weight = nearest_orthogonal(new.T @ old)
    return Backward(weight, np.zeros(weight.shape[1]))


def comparable(a, b) -> tuple[np.ndarray, np.ndarray]:
    """Truncate both sides to the smaller number of dimensions, then scale rows to unit length.

    This is how B(new) (N, dn) is compared with untouched old vectors (M, do) in the evaluation code
    of the same authors.
    """
    dim = min(np.shape(a)[1], np.shape(b)[1])
    return unit_rows(np.asarray(a)[:, :dim]), unit_rows(np.asarray(b)[:, :dim])


def skew_symmetric(upper: np.ndarray, dim: int) -> np.ndarray:
    """Return the skew-symmetric matrix (dim, dim) whose upper triangle, row by row, is ``upper``.

    Raises UserError unless there are dim · (dim − 1) / 2 numbers.
    """
    rows, columns = np.triu_indices(dim, 1)
    if np.shape(upper) != rows.shape:
        raise UserError(
            f"a skew-symmetric matrix of size {dim} has {len(rows)} parameters, "
            f"not {np.shape(upper)}"
        )
    matrix = np.zeros((dim, dim))
    matrix[rows, columns] = upper
    return matrix - matrix.T


def rotation(skew: np.ndarray) -> np.ndarray:
    """Return the orthogonal matrix B = exp(skew); it maps rows as ``n @ B.T``.

    Its determinant is always +1, so it is never a reflection.
    """
    return scipy.linalg.expm(np.asarray(skew, np.float64))


def alignment_error(moved: np.ndarray, old: np.ndarray, tail: str = "free") -> float:
    """Return the sum of squared differences of B(new) (N, dn) and old vectors (N, do).

    tail: if dn > do, "free" compares only the first do numbers, and "zero" also penalises the
    others for differing from 0. If dn < do, the first dn numbers are compared.
    """
    if tail not in TAILS:
        raise unknown("tail", tail, TAILS)
    dim = min(moved.shape[1], old.shape[1])
    error = float(np.sum(np.square(moved[:, :dim] - old[:, :dim])))
    return error + float(np.sum(np.square(moved[:, dim:]))) if tail == "zero" else error


def nearest_orthogonal(matrix: np.ndarray, proper: bool = False) -> np.ndarray:
    """Return the (semi-)orthogonal Q that maximises trace(Qᵀ matrix), its polar factor.

    Args:
      matrix: (m, n); for cross products ``xᵀ y`` the result is the Procrustes map from x to y.
      proper: allow no reflection (square matrices only): the direction that fits worst is flipped
        if the determinant would otherwise be −1.

    Source: Schönemann, Psychometrika 1966; Kabsch, Acta Crystallographica 1976 (proper).
    """
    with threads.single():
        u, _, vt = np.linalg.svd(matrix, full_matrices=False)
    if proper and np.linalg.slogdet(u)[0] * np.linalg.slogdet(vt)[0] < 0:
        u[:, -1] *= -1
    return u @ vt


def closed_form_backward(
    new: np.ndarray,
    old: np.ndarray,
    *,
    proper: bool = False,
    tail: str = "free",
    iterations: int = 100,
    tolerance: float = 1e-6,
) -> np.ndarray:
    """Find the orthogonal map of new vectors that brings them nearest to the old ones.

    It minimises `alignment_error` over orthogonal matrices, without training and without labels.
    With dn ≤ do, or ``tail="zero"``, it is Procrustes. With dn > do and a free tail, which is our
    reading of the paper, there is no closed form. We fill the missing coordinates of the
    old vectors with those of the current map, solve Procrustes, and repeat; no step increases the
    error (ten Berge's argument). All steps work on (dn, dn) sums.

    Args:
      new, old: (N, dn), (N, do) vectors of the same items, in the scale in which they are served.
      proper: allow only rotations, which ``exp(skew)`` can represent; the default also allows
        reflections, which fit at least as well.
      tail: see `alignment_error`.
      iterations, tolerance: the loop ends after this number of steps, or when a step lowers the
        error by less than this share of Σ |old|². A step of 384 dimensions takes about 0.2 s.

    Returns the matrix (dn, dn), to be applied as ``new @ matrix``.

    Raises UserError for unequal numbers of rows, NaN or infinity, or an unknown tail.

    Example: ``closed_form_backward(new, new @ turn)`` returns ``turn``.
    """
    if tail not in TAILS:
        raise unknown("tail", tail, TAILS)
    new, old = _pairs(new, old)
    dim_new, dim = new.shape[1], min(new.shape[1], old.shape[1])
    old = old[:, :dim]
    cross = np.zeros((dim_new, dim_new))
    cross[:, :dim] = new.T @ old
    found = nearest_orthogonal(cross, proper)
    if tail == "zero" or dim == dim_new:
        return found
    gram, size = new.T @ new, float(np.vdot(old, old))

    def error(matrix):
        head = matrix[:, :dim]
        return np.vdot(head, gram @ head) - 2 * np.vdot(head, cross[:, :dim]) + size

    last = error(found)
    for _ in range(iterations):
        cross[:, dim:] = gram @ found[:, dim:]
        found = nearest_orthogonal(cross, proper)
        now = error(found)
        if last - now <= tolerance * size:
            break
        last = now
    return found


def fit_forward(old, target, *, penalty: float | None = None, seed: int = 0) -> Linear:
    """Fit the affine map from old vectors (N, do) to their place in the common space (N, dn).

    penalty: None chooses the ridge penalty by cross-validation; 0 is least squares, with the
    solution of least norm if there are fewer pairs than dimensions; other values are a ridge
    penalty in units of the mean variance of an input dimension, summed over the pairs.

    Raises UserError for fewer than two pairs, or a negative penalty.
    """
    old, target = _pairs(old, target, ("old", "target"))
    if len(old) < 2:
        raise UserError("a forward map needs at least 2 pairs; there is 1")
    if penalty is not None and penalty < 0:
        raise UserError(f"the penalty must be at least 0, not {penalty}")
    if penalty == 0:
        mean_old, mean_target = old.mean(axis=0), target.mean(axis=0)
        weight = np.linalg.lstsq(old - mean_old, target - mean_target, rcond=None)[0]
        return Linear(weight, 1.0, mean_target - mean_old @ weight)
    folds = min(_FOLDS, len(old))
    fold = np.random.default_rng(seed).permutation(len(old)) % folds
    sums, centre = fold_sums(old, target, fold, folds)
    return ridge(sums, centre, *([] if penalty is None else [np.array([penalty])]))[0]


def fit_closed_form(
    old: np.ndarray,
    new: np.ndarray,
    *,
    proper: bool = False,
    tail: str = "free",
    penalty: float | None = None,
    seed: int = 0,
) -> CommonSpace:
    """Fit the common space without an optimiser and without labels.

    It is the paper's "L_F + L_B": `closed_form_backward` gives the backward map, then `fit_forward`
    gives the forward map. Leaving out the contrastive loss costs, as published, 1 to 7 points of
    CMC@1 on the data of the old model, and 10 to 14 on another data set, where labels matter.

    old (N, do), new (N, dn); the other arguments are those of the two functions.

    Example: after ``space = fit_closed_form(old, new)``, ``space.moved(query)`` searches
    ``space.translated(gallery)`` and, by means of `comparable`, the untouched gallery.
    """
    backward = closed_form_backward(new, old, proper=proper, tail=tail)
    forward = fit_forward(old, np.asarray(new, np.float64) @ backward, penalty=penalty, seed=seed)
    return CommonSpace(backward, np.zeros(len(backward)), forward.weight, forward.bias)


def _pairs(first, second, names=("new", "old")) -> tuple[np.ndarray, np.ndarray]:
    first, second = as_vectors(names[0], first), as_vectors(names[1], second)
    check_same_length(names[0], first, names[1], second)
    return first.astype(np.float64), second.astype(np.float64)
