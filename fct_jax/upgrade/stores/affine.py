"""Each query's affine factors, from a saved calibration, by NumPy alone.

A service imports this file and needs neither JAX nor Faiss. The figures are those of
`fct_jax.upgrade.Calibration.affine`, but for the scores of stores: the cosine, or minus half of
the squared distance.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.evaluate.distances import unit_rows

_FLOOR = 1e-6  # of a spread
_SAME = 1e-5  # relative difference of a score and the query's own
_BLOCK = 256  # queries scored against the reference together


@dataclasses.dataclass(frozen=True)
class Affine:
    """Factors and shifts of some queries, (Q,) float32 each; see `half.search_half`."""

    keep: np.ndarray
    keep_shift: np.ndarray
    dual: np.ndarray
    dual_shift: np.ndarray
    fused_old: np.ndarray
    fused_new: np.ndarray
    fused_shift: np.ndarray

    def __len__(self) -> int:
        return len(self.keep)


class StoreCalibration:
    """A calibration as `Calibration.save` wrote it.

    Its factors are what a store's search takes::

        factors = StoreCalibration("calibration").affine(query_old, query_new)
        store.search_half(sibling, query_old, query_new, 10, factors)
    """

    def __init__(self, folder):
        """Raises UserError if it is not there, or if its scores need prepared vectors."""
        folder = Path(folder)
        if not (folder / "calibration.json").is_file():
            raise UserError(f"no calibration in {folder}: calibration.json is missing")
        described = json.loads((folder / "calibration.json").read_text())
        if described["format_version"] > 1:
            raise UserError(f"{folder} was written by a newer fct_jax")
        self._weights, self._spread = described["weights"], described["spread"]
        if self._weights["damping"]:
            raise UserError(
                f"{folder} damps crowded items, which takes one more column than a store's "
                "vectors have; calibrate without damping"
            )
        with np.load(folder / "reference.npz", allow_pickle=False) as file:
            self._spaces = [
                _Space(described[f"metric_{name}"], file[f"centre_{name}"], file[name])
                for name in ("old", "new")
            ]

    def affine(self, query_old, query_new) -> Affine:
        """Return the factors of some queries, (Q, do) and (Q, dn) float32, by both models."""
        parts = []
        for start in range(0, len(query_old), _BLOCK):
            block = slice(start, start + _BLOCK)
            parts.append(self._affine(query_old[block], query_new[block]))
        rows = np.concatenate(parts, axis=1) if parts else np.zeros((7, 0))
        return Affine(*rows.astype(np.float32))

    def _affine(self, query_old, query_new) -> np.ndarray:
        old, new = self._spaces
        s_old, own_old, offset_old = old.scores(query_old)
        s_new, own_new, offset_new = new.scores(query_new)
        w = self._weights
        mean_old, spread_old = self._tail(s_old, own_old, 0)
        mean_new, spread_new = self._tail(s_new, own_new, 1)
        a, b = w["fused_old"] / spread_old, w["fused_new"] / spread_new
        both = a[:, None] * s_old + b[:, None] * s_new
        mean, spread = self._tail(both, a * own_old + b * own_new, 2)
        outer = w["fused_scale"] / spread
        keep, dual = 1 / spread_old, w["dual_new"] / spread_new
        fused_old, fused_new = a * outer, b * outer
        return np.stack(
            [
                keep,
                keep * (offset_old - mean_old),
                dual,
                w["dual_shift"] + dual * (offset_new - mean_new),
                fused_old,
                fused_new,
                w["fused_shift"] - outer * mean + fused_old * offset_old + fused_new * offset_new,
            ]
        )

    def _tail(self, scores, own, which: int):
        """Return mean and spread (Q,) of each query's best scores (Q, R), but for its own."""
        tail = min(max(round(0.01 * scores.shape[1]), 10), 32)
        size = min(tail + 1, scores.shape[1])
        best = -np.sort(np.partition(-scores, size - 1, axis=1)[:, :size], axis=1)
        same = np.abs(best - own[:, None]) <= _SAME * np.maximum(np.abs(own[:, None]), 1e-6)
        drop = np.where(same.any(axis=1), same.argmax(axis=1), size - 1)
        best = best[np.arange(size) != drop[:, None]].reshape(len(best), size - 1)
        spread = np.maximum(best.std(axis=1), _FLOOR)
        if self._spread[which]:
            spread = np.sqrt(spread * self._spread[which])
        return best.mean(axis=1), spread


@dataclasses.dataclass(frozen=True)
class _Space:
    """A metric, its centre (D,) and the prepared reference items (R, E)."""

    metric: str
    centre: np.ndarray
    reference: np.ndarray

    def scores(self, queries):
        """Return scores (Q, R), each query's own score (Q,), and what stores' scores lack (Q,)."""
        rows = np.asarray(queries, np.float32)
        if self.metric == "cosine":
            rows = unit_rows(rows).astype(np.float32)
            own = np.einsum("qd,qd->q", rows, rows, dtype=np.float64)
            return (rows @ self.reference.T).astype(np.float64), own, np.zeros(len(rows))
        # q·g − |g|²/2 around the centre, which is |q|²/2 above minus half the squared distance.
        rows = rows - self.centre
        half = np.einsum("qd,qd->q", rows, rows, dtype=np.float64) / 2
        scores = rows @ self.reference[:, :-1].T + self.reference[:, -1]
        return scores.astype(np.float64), half, half
