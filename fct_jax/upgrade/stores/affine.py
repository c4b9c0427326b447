"""Compute each query's affine factors from a saved calibration, with only NumPy.

A service can import this file without JAX or Faiss. `fct_jax.upgrade.Calibration` uses its
formulas, too; `StoreCalibration` applies them to the scores of stores, which are the cosine or
minus half of the squared distance.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.evaluate.distances import unit_rows

FORMAT_VERSION = 1  # of a saved calibration
_TAIL_SHARE = 0.01  # share of the reference items in a tail
_FEWEST, _MOST = 10, 32  # fewest and most items of a tail
_FLOOR = 1e-6  # smallest spread
_SAME = 1e-5  # relative difference within which a score counts as the query's own
_BLOCK = 256  # queries scored against the reference at once


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights that combine the standardised scores z of the two spaces.

    An item that is not re-embedded scores z_old. A re-embedded item scores
    ``dual_new · z_new + dual_shift`` with dual, and ``fused_scale · Z(fused_old · z_old +
    fused_new · z_new) + fused_shift`` with fused, where Z standardises by the tail once more. The
    damping applies to both spaces. The defaults need no judged pairs.
    """

    dual_new: float = 1.0
    dual_shift: float = 0.0
    fused_old: float = 1.0
    fused_new: float = 1.0
    fused_scale: float = 1.0
    fused_shift: float = 0.0
    damping: float = 0.0


@dataclasses.dataclass(frozen=True)
class Tail:
    """Mean (Q,) and spread (Q,) of each query's tail in some score."""

    mean: np.ndarray
    spread: np.ndarray


@dataclasses.dataclass(frozen=True)
class Affine:
    """Factors and shifts for a batch of queries' scores in the two spaces; all (Q,) float32.

    An old vector alone scores ``keep·s_old + keep_shift``, a new vector alone
    ``dual·s_new + dual_shift``, and both ``fused_old·s_old + fused_new·s_new + fused_shift``.
    """

    keep: np.ndarray
    keep_shift: np.ndarray
    dual: np.ndarray
    dual_shift: np.ndarray
    fused_old: np.ndarray
    fused_new: np.ndarray
    fused_shift: np.ndarray

    def __len__(self) -> int:
        return len(self.keep)


def tail_size(count: int) -> int:
    """Return the number of items in the tail of ``count`` reference items."""
    return min(max(round(_TAIL_SHARE * count), _FEWEST), _MOST)


def tail_of(largest: np.ndarray, own: np.ndarray, typical: float) -> Tail:
    """Return the tail of each query.

    Args:
      largest: (Q, tail + 1) best scores among the reference, descending.
      own: (Q,) score of each query as an item, which does not count.
      typical: spread to shrink halfway towards, or 0 for no shrinking.
    """
    kept = without_own(largest.astype(np.float64), own.astype(np.float64))
    spread = np.maximum(kept.std(axis=1), _FLOOR)
    return Tail(kept.mean(axis=1), np.sqrt(spread * typical) if typical else spread)


def fused_factors(weights: Weights, old: Tail, new: Tail) -> tuple[np.ndarray, np.ndarray]:
    """Return the factors (Q,) of both scores in the sum of standardised scores."""
    # z = factor · score + shift in each space, so that their sum is one inner product.
    return weights.fused_old / old.spread, weights.fused_new / new.spread


def shifted(both: Tail, a: np.ndarray, old: Tail, b: np.ndarray, new: Tail) -> Tail:
    """Return the tail of the sum of standardised scores from that of ``a · old + b · new``."""
    return Tail(both.mean - a * old.mean - b * new.mean, both.spread)


def affine_of(weights: Weights, old: Tail, new: Tail, both: Tail) -> Affine:
    """Return the factors and shifts of queries from their tails."""
    outer = weights.fused_scale / both.spread
    a, b = weights.fused_old * outer / old.spread, weights.fused_new * outer / new.spread
    found = Affine(
        keep=1 / old.spread,
        keep_shift=-old.mean / old.spread,
        dual=weights.dual_new / new.spread,
        dual_shift=weights.dual_shift - weights.dual_new * new.mean / new.spread,
        fused_old=a,
        fused_new=b,
        fused_shift=weights.fused_shift - a * old.mean - b * new.mean - outer * both.mean,
    )
    return Affine(*(np.asarray(v, np.float32) for v in vars(found).values()))


def without_own(scores: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Return descending scores (Q, k) without the query's own score (Q,), or without the last."""
    same = np.abs(scores - own[:, None]) <= _SAME * np.maximum(np.abs(own[:, None]), 1e-6)
    drop = np.where(same.any(axis=1), same.argmax(axis=1), scores.shape[1] - 1)
    kept = np.arange(scores.shape[1]) != drop[:, None]
    return scores[kept].reshape(len(scores), -1)


class StoreCalibration:
    """A calibration that `Calibration.save` wrote; its factors are for a store's search::

    factors = StoreCalibration("calibration").affine(query_old, query_new)
    store.search_half(sibling, query_old, query_new, 10, factors)
    """

    def __init__(self, folder):
        """Open the calibration. Raises UserError if it is missing or needs prepared vectors."""
        folder = Path(folder)
        if not (folder / "calibration.json").is_file():
            raise UserError(f"no calibration in {folder}: calibration.json is missing")
        described = json.loads((folder / "calibration.json").read_text())
        if described["format_version"] > FORMAT_VERSION:
            raise UserError(f"{folder} was written by a newer fct_jax")
        self._weights, self._spread = Weights(**described["weights"]), described["spread"]
        if self._weights.damping:
            raise UserError(
                f"{folder} damps crowded items, which needs one more column than a store's "
                "vectors have; calibrate without damping"
            )
        with np.load(folder / "reference.npz", allow_pickle=False) as file:
            self._spaces = _spaces_of(described, file)

    @classmethod
    def of(cls, described: dict, arrays) -> "StoreCalibration":
        """Return a calibration from the metrics and arrays of a saved one.

        Args:
          described: dict with the keys "weights", "spread", "metric_old" and "metric_new".
          arrays: mapping with the keys "old", "new", "centre_old" and "centre_new".
        """
        made = cls.__new__(cls)
        made._weights, made._spread = Weights(**described["weights"]), described["spread"]
        made._spaces = _spaces_of(described, arrays)
        return made

    def affine(self, query_old, query_new, prepared: bool = False) -> Affine:
        """Return the factors of queries that both models embedded, (Q, do) and (Q, dn) float32.

        The factors are for a store's scores, or, with ``prepared``, for the inner products that
        ``fct_jax.upgrade.search`` adds up.
        """
        parts = []
        for start in range(0, len(query_old), _BLOCK):
            block = slice(start, start + _BLOCK)
            parts.append(self._affine(query_old[block], query_new[block], prepared))
        empty = np.zeros(0, np.float32)
        names = [field.name for field in dataclasses.fields(Affine)]
        return Affine(*(np.concatenate([empty, *(getattr(p, n) for p in parts)]) for n in names))

    def _affine(self, query_old, query_new, prepared: bool) -> Affine:
        old, new = self._spaces
        s_old, own_old, offset_old = old.scores(query_old)
        s_new, own_new, offset_new = new.scores(query_new)
        first, second = self._tail(s_old, own_old, 0), self._tail(s_new, own_new, 1)
        a, b = fused_factors(self._weights, first, second)
        both = self._tail(a[:, None] * s_old + b[:, None] * s_new, a * own_old + b * own_new, 2)
        both = shifted(both, a, first, b, second)
        if not prepared:
            # Stores' scores lack the offsets, so they are removed from the tails of single scores.
            first = dataclasses.replace(first, mean=first.mean - offset_old)
            second = dataclasses.replace(second, mean=second.mean - offset_new)
        return affine_of(self._weights, first, second, both)

    def _tail(self, scores, own, which: int) -> Tail:
        size = min(tail_size(scores.shape[1]) + 1, scores.shape[1])
        largest = -np.sort(np.partition(-scores, size - 1, axis=1)[:, :size], axis=1)
        return tail_of(largest, own, self._spread[which])


def _spaces_of(described: dict, arrays) -> list["_Space"]:
    return [
        _Space(described[f"metric_{name}"], arrays[f"centre_{name}"], arrays[name])
        for name in ("old", "new")
    ]


@dataclasses.dataclass(frozen=True)
class _Space:
    """A metric, its centre (D,) and the prepared reference items (R, E)."""

    metric: str
    centre: np.ndarray
    reference: np.ndarray

    def scores(self, queries):
        """Return scores (Q, R), each query's own score (Q,), and the offset of stores' scores."""
        rows = np.asarray(queries, np.float32)
        if self.metric == "cosine":
            rows = unit_rows(rows).astype(np.float32)
            own = np.einsum("qd,qd->q", rows, rows, dtype=np.float64)
            return (rows @ self.reference.T).astype(np.float64), own, np.zeros(len(rows))
        # q·g − |g|²/2 around the centre, which exceeds minus half the squared distance by |q|²/2.
        rows = rows - self.centre
        half = np.einsum("qd,qd->q", rows, rows, dtype=np.float64) / 2
        scores = rows @ self.reference[:, :-1].T + self.reference[:, -1]
        return scores.astype(np.float64), half, half
