"""Procrustes maps with a scale: one for all vectors, or one for each cell of the old space.

The cells come from LA2M (SIGMOD 2026), whose public code maps every cell by its own Procrustes
rotation, with hard gating. Its default cells of ten pairs leave most of the rotation undetermined;
here the map of a small cell is drawn towards the map of all pairs instead.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from fct_jax.errors import UserError, unknown
from fct_jax.evaluate.distances import as_vectors, check_same_length
from fct_jax.upgrade.maps.common_space import nearest_orthogonal
from fct_jax.upgrade.maps.kmeans import Cells, kmeans, squared_distances

GATINGS = ("hard", "soft")
FEWEST = 5  # a cell with fewer pairs takes the map of all pairs
_BLOCK = 8192  # rows mapped at a time
_NEGLIGIBLE = 1e-6  # cells with a smaller share in a blend are left out


@dataclasses.dataclass(frozen=True)
class Similarity:
    """``f(x) = (x − mean_x) @ rotation · scale + mean_y``.

    mean_x (do,), mean_y (dn,), rotation (do, dn) with orthonormal rows or columns; float64.
    """

    mean_x: np.ndarray
    mean_y: np.ndarray
    rotation: np.ndarray
    scale: float

    def __call__(self, x) -> np.ndarray:
        """Map rows (N, do) → (N, dn)."""
        return (np.asarray(x) - self.mean_x) @ self.rotation * self.scale + self.mean_y


def norm_ratio(x: np.ndarray, y: np.ndarray) -> float:
    """Return ‖y‖_F / ‖x‖_F of rotated x and y, both centred: the scale of LA2M's public code."""
    size = float(np.linalg.norm(x))
    return float(np.linalg.norm(y)) / size if size > 0 else 1.0


def least_squares(x: np.ndarray, y: np.ndarray) -> float:
    """Return the least-squares scale of rotated x to y, both centred; noise makes it smaller."""
    size = float(np.vdot(x, x))
    return float(np.vdot(x, y)) / size if size > 0 else 1.0


def no_scale(x: np.ndarray, y: np.ndarray) -> float:
    """Return 1, which preserves distances."""
    return 1.0


SCALES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "least squares": least_squares,
    "norm ratio": norm_ratio,
    "none": no_scale,
}


def procrustes(
    x: np.ndarray,
    y: np.ndarray,
    *,
    scale: str = "least squares",
    prior: np.ndarray | None = None,
) -> Similarity:
    """Fit the centred rotation (with reflection), scale and shift from x to y.

    Args:
      x, y: (N, do), (N, dn) vectors of the same items.
      scale: a row of SCALES.
      prior: (do, dn), added to the cross products before the rotation is computed from them. It
        draws the rotation towards the prior's, and decides where the pairs do not determine it.

    Raises UserError for unequal numbers of rows, NaN or infinity, or an unknown scale.

    Example: ``procrustes(old, new)(gallery)``.

    Source: Schönemann, Psychometrika 1966.
    """
    x, y = as_vectors("x", x).astype(np.float64), as_vectors("y", y).astype(np.float64)
    check_same_length("x", x, "y", y)
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    x, y = x - mean_x, y - mean_y
    cross = x.T @ y
    turn = nearest_orthogonal(cross if prior is None else cross + prior)
    return Similarity(mean_x, mean_y, turn, SCALES[scale](x @ turn, y))


def shares(x, centres: np.ndarray, bandwidth: float | None) -> np.ndarray:
    """Return the weight of each cell for each vector, (N, do) → (N, K); see `LocalMap`."""
    squared = squared_distances(np.asarray(x, np.float64), centres)
    if bandwidth is None:
        return np.eye(len(centres))[squared.argmin(axis=1)]
    nearness = -(squared - squared.min(axis=1, keepdims=True)) / (2 * bandwidth**2)
    weights = np.exp(nearness)
    weights[weights < _NEGLIGIBLE] = 0
    return weights / weights.sum(axis=1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class LocalMap:
    """A similarity for each cell of the old space.

    Attributes:
      centres: (K, do).
      cells: K similarities; a cell with fewer than FEWEST pairs has ``whole``.
      whole: the similarity fitted on all pairs.
      bandwidth: with None the cell of the nearest centre maps a vector (hard gating). Otherwise the
        results of all cells are averaged with weights proportional to ``exp(−d² / (2
        bandwidth²))``, where d is the distance to the cell's centre (soft gating, without jumps).
      sizes: (K,) number of pairs in each cell.
    """

    centres: np.ndarray
    cells: tuple[Similarity, ...]
    whole: Similarity
    bandwidth: float | None
    sizes: np.ndarray

    def shares(self, x) -> np.ndarray:
        """Return the weight of each cell for each vector, (N, do) → (N, K); rows add up to 1."""
        return shares(x, self.centres, self.bandwidth)

    def __call__(self, x) -> np.ndarray:
        """Map rows (N, do) → (N, dn), float64."""
        x = np.asarray(x)
        mapped = np.zeros((len(x), len(self.whole.mean_y)))
        for start in range(0, len(x), _BLOCK):
            rows = np.asarray(x[start : start + _BLOCK], np.float64)
            shares = self.shares(rows)
            for cell, share in zip(self.cells, shares.T, strict=True):
                used = np.flatnonzero(share)
                mapped[start + used] += share[used, None] * cell(rows[used])
        return mapped


def fit_local(
    old: np.ndarray,
    new: np.ndarray,
    *,
    cells: int | None = None,
    pairs_per_dim: float = 3.0,
    enough: float = 2.0,
    gating: str = "hard",
    scale: str = "least squares",
    seed: int = 0,
) -> LocalMap:
    """Fit a Procrustes map with scale in each k-means cell of the old vectors.

    A cell with fewer than ``enough · do`` pairs does not determine its rotation. It gets as many
    virtual pairs as it lacks, which follow the map of all pairs. An almost empty cell is thus
    mapped like everything else, and the map changes smoothly as a cell becomes large enough.

    Args:
      old, new: (N, do), (N, dn) vectors of the same items.
      cells: K; None chooses K such that a cell has ``pairs_per_dim · do`` pairs on average, at
        least 1.
      pairs_per_dim: values from 2 to 4 are recommended.
      enough: pairs per dimension from which a cell gets no virtual pairs; 0 never adds any.
      gating: "hard" or "soft", see `LocalMap`.
      scale: a row of `SCALES`.
      seed: seed of k-means.

    Raises UserError for unequal numbers of rows, NaN or infinity, or unknown names.

    Example: ``fit_local(old, new, gating="soft")(gallery)``.
    """
    if gating not in GATINGS:
        raise unknown("gating", gating, GATINGS)
    if cells is not None and cells < 1:
        raise UserError(f"a local map needs at least 1 cell, not {cells}")
    old, new = as_vectors("old", old).astype(np.float64), as_vectors("new", new).astype(np.float64)
    whole = procrustes(old, new, scale=scale)
    dim = old.shape[1]
    wanted = cells or max(1, int(len(old) / max(pairs_per_dim * dim, 1)))
    found = kmeans(old, min(wanted, len(old)), seed=seed)
    # The average contribution of one pair to the cross products along the rotation of all pairs.
    centred = (old - whole.mean_x) @ whole.rotation
    strength = max(float(np.vdot(centred, new - whole.mean_y)), 0.0) / len(old) / dim
    maps = []
    for cell, size in enumerate(found.sizes):
        if size < FEWEST:
            maps.append(whole)
            continue
        members = found.assigned == cell
        lacking = max(0.0, enough * dim - size)
        prior = lacking * strength * whole.rotation
        maps.append(procrustes(old[members], new[members], scale=scale, prior=prior))
    bandwidth = _bandwidth(old, found) if gating == "soft" else None
    return LocalMap(found.centres, tuple(maps), whole, bandwidth, found.sizes)


def _bandwidth(old, found: Cells) -> float | None:
    """Return the vectors' standard deviation per dimension from their centres.

    With this bandwidth the shares are the posterior probabilities of the cells in a mixture of
    equal spherical Gaussians. Returns None if every vector equals its centre.
    """
    off = old - found.centres[found.assigned]
    width = float(np.sqrt(np.mean(np.square(off))))
    return width if width > 0 else None
