"""What makes scores of two vector spaces comparable: each query's own scale, from its tails."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from fct_jax.embeddings import new_directory
from fct_jax.errors import UserError
from fct_jax.upgrade.spaces import Space

TAIL_SHARE = 0.005  # of the reference items
_FEWEST, _MOST = 10, 200  # items of a tail
_FORMAT_VERSION = 1
_FLOOR = 1e-6
_QUERIES = 256  # whose reference scores are held together


@dataclasses.dataclass(frozen=True)
class Weights:
    """How standardised scores z of the two spaces are put together.

    An item that is not re-embedded scores z_old. One that is scores, when dual,
    ``dual_new · z_new + dual_shift``, and fused ``fused_scale · Z(fused_old · z_old +
    fused_new · z_new) + fused_shift`` where Z standardises by the tail once more. The defaults
    need no judged pairs.
    """

    dual_new: float = 1.0
    dual_shift: float = 0.0
    fused_old: float = 1.0
    fused_new: float = 1.0
    fused_scale: float = 1.0
    fused_shift: float = 0.0


@dataclasses.dataclass(frozen=True)
class Tail:
    """Mean (Q,) and spread (Q,) of each query's tail in some score."""

    mean: np.ndarray
    spread: np.ndarray


@dataclasses.dataclass(frozen=True)
class Affine:
    """What a batch of queries has to do with scores of the two spaces; all (Q,) float32.

    An old vector alone scores ``keep·s_old + keep_shift``, a new one alone ``dual·s_new +
    dual_shift``, both ``fused_old·s_old + fused_new·s_new + fused_shift``.
    """

    keep: np.ndarray
    keep_shift: np.ndarray
    dual: np.ndarray
    dual_shift: np.ndarray
    fused_old: np.ndarray
    fused_new: np.ndarray
    fused_shift: np.ndarray


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What makes the scores of two spaces comparable, query by query.

    Attributes:
      old, new: the two spaces.
      reference_old, reference_new: (R, …) prepared vectors of the same R items in each.
      spread: typical spreads of the old, new and fused tail; a query's own spread, which is
        measured on few items, is shrunk half of the way to it.
      weights: of the two spaces.
    """

    old: Space
    new: Space
    reference_old: np.ndarray
    reference_new: np.ndarray
    spread: tuple[float, float, float] = (0.0, 0.0, 0.0)
    weights: Weights = dataclasses.field(default_factory=Weights)

    @property
    def tail(self) -> int:
        """How many of the reference items make a tail."""
        count = round(TAIL_SHARE * len(self.reference_old))
        return min(max(count, _FEWEST), _MOST, len(self.reference_old))

    def standardised(self, query_old, query_new) -> tuple[Tail, Tail, Tail]:
        """Tails of the old, the new and the fused standardised score of some queries.

        query_old (Q, do), query_new (Q, dn): the same queries by both models, as they come.
        """
        parts = [
            self._tails(query_old[i : i + _QUERIES], query_new[i : i + _QUERIES])
            for i in range(0, len(query_old), _QUERIES)
        ]
        return tuple(
            Tail(*(np.concatenate([getattr(p[s], f) for p in parts]) for f in ("mean", "spread")))
            for s in range(3)
        )

    def _tails(self, query_old, query_new) -> tuple[Tail, Tail, Tail]:
        old = self.old.queries(query_old) @ self.reference_old.T
        new = self.new.queries(query_new) @ self.reference_new.T
        first = self._shrunk(_tail(old, self.tail), 0)
        second = self._shrunk(_tail(new, self.tail), 1)
        w = self.weights
        both = w.fused_old * _scaled(old, first) + w.fused_new * _scaled(new, second)
        return first, second, self._shrunk(_tail(both, self.tail), 2)

    def _shrunk(self, tail: Tail, which: int) -> Tail:
        typical = self.spread[which]
        if not typical:
            return tail
        return Tail(tail.mean, np.sqrt(tail.spread * typical))

    def affine(self, query_old, query_new) -> Affine:
        """The factors and shifts of some queries (Q, do), (Q, dn)."""
        old, new, both = self.standardised(query_old, query_new)
        w = self.weights
        outer = w.fused_scale / both.spread
        a, b = w.fused_old * outer / old.spread, w.fused_new * outer / new.spread
        found = Affine(
            keep=1 / old.spread,
            keep_shift=-old.mean / old.spread,
            dual=w.dual_new / new.spread,
            dual_shift=w.dual_shift - w.dual_new * new.mean / new.spread,
            fused_old=a,
            fused_new=b,
            fused_shift=w.fused_shift - a * old.mean - b * new.mean - outer * both.mean,
        )
        return Affine(*(np.asarray(v, np.float32) for v in vars(found).values()))

    def save(self, folder) -> Path:
        """Writes ``calibration.json`` and ``reference.npz`` in a new directory."""
        described = {
            "format_version": _FORMAT_VERSION,
            "metric_old": self.old.metric,
            "metric_new": self.new.metric,
            "spread": list(self.spread),
            "weights": dataclasses.asdict(self.weights),
        }
        with new_directory(folder) as partial:
            (partial / "calibration.json").write_text(json.dumps(described, indent=2) + "\n")
            np.savez(
                partial / "reference.npz",
                old=self.reference_old,
                new=self.reference_new,
                centre_old=self.old.centre,
                centre_new=self.new.centre,
            )
        return Path(folder)

    @classmethod
    def load(cls, folder) -> "Calibration":
        """What `save` wrote. Raises UserError where that is not there."""
        folder = Path(folder)
        if not (folder / "calibration.json").is_file():
            raise UserError(f"no calibration in {folder}: calibration.json is missing")
        described = json.loads((folder / "calibration.json").read_text())
        if described["format_version"] > _FORMAT_VERSION:
            raise UserError(f"{folder} was written by a newer fct_jax")
        with np.load(folder / "reference.npz", allow_pickle=False) as file:
            return cls(
                Space(described["metric_old"], file["centre_old"]),
                Space(described["metric_new"], file["centre_new"]),
                file["old"],
                file["new"],
                tuple(described["spread"]),
                Weights(**described["weights"]),
            )


def calibrate(
    old, new, *, query_old=None, query_new=None, metric="l2", old_metric=None, seed: int = 0
) -> Calibration:
    """A calibration from a sample of items that both models embedded; no labels.

    Args:
      old, new: (R, do), (R, dn) vectors of the same items, a few thousand of the gallery.
      query_old, query_new: (Q, do), (Q, dn) typical queries, by both models; without, items of
        the sample stand for them.
      metric, old_metric: "l2" or "cosine", of the new and of the old space (None: the same).
      seed: which items stand for queries.
    """
    if len(old) != len(new) or len(old) < 2 * _FEWEST:
        raise UserError(
            f"a calibration needs the same items by both models, at least {2 * _FEWEST}: "
            f"there are {len(old)} old and {len(new)} new vectors"
        )
    spaces = Space.of(old, old_metric or metric), Space.of(new, metric)
    made = Calibration(*spaces, spaces[0].items(old), spaces[1].items(new))
    if query_old is not None:
        return with_spread(made, query_old, query_new)
    order = np.random.default_rng(seed).permutation(len(old))
    asked, others = np.split(order, [min(1000, len(old) // 2)])  # an item is not its own neighbour
    rest = dataclasses.replace(
        made, reference_old=made.reference_old[others], reference_new=made.reference_new[others]
    )
    spread = with_spread(rest, np.asarray(old)[asked], np.asarray(new)[asked]).spread
    return dataclasses.replace(made, spread=spread)


def with_spread(calibration: Calibration, query_old, query_new) -> Calibration:
    """The same with the typical spreads of these queries."""
    spread = (0.0, 0.0, 0.0)
    for which in range(3):  # the fused one depends on the first two
        tails = dataclasses.replace(calibration, spread=spread).standardised(query_old, query_new)
        typical = float(np.exp(np.mean(np.log(tails[which].spread))))
        spread = (*spread[:which], typical, *spread[which + 1 :])
    return dataclasses.replace(calibration, spread=spread)


def _tail(scores: np.ndarray, count: int) -> Tail:
    """Mean and standard deviation of the ``count`` largest of each row."""
    largest = -np.partition(-scores, count - 1, axis=1)[:, :count]
    largest = largest.astype(np.float64)
    return Tail(largest.mean(axis=1), np.maximum(largest.std(axis=1), _FLOOR))


def _scaled(scores: np.ndarray, tail: Tail) -> np.ndarray:
    return (scores - tail.mean[:, None]) / tail.spread[:, None]
