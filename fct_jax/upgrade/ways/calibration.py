"""Calibration: a scale for each query, from its tails, makes scores of two spaces comparable."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

import faiss
import numpy as np

from fct_jax.errors import UserError
from fct_jax.runtime.progress import console
from fct_jax.storage.files import new_directory
from fct_jax.upgrade.stores.affine import (
    FORMAT_VERSION,
    Affine,
    Tail,
    Weights,
    affine_of,
    fused_factors,
    shifted,
    tail_of,
    tail_size,
)
from fct_jax.upgrade.ways.scores import Space, chosen_metric

REFERENCE = 16_384  # largest number of items that are used
_FEWEST = 20  # smallest number of items embedded by both models
_ASKED = 500  # items that serve as queries
CROWD = 8192  # reference items against which crowding is measured


def typical_spread(tails: Iterable[Tail]) -> float:
    """Return the geometric mean of the queries' spreads."""
    return float(np.exp(np.mean(np.log(np.concatenate([tail.spread for tail in tails])))))


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The scale of each query in two spaces, which makes their scores comparable.

    Attributes:
      old, new: the two spaces.
      reference_old, reference_new: (R, …) prepared vectors of the same R items in each space.
      spread: typical spreads of the old, new and fused tail; each query's own spread, which is
        measured on few items, is shrunk halfway towards the typical one.
      weights: weights of the two spaces.

    Example::

        made = fct_jax.upgrade.calibrate(sample_old, sample_new, metric="cosine")
        made.save("calibration")
    """

    old: Space
    new: Space
    reference_old: np.ndarray
    reference_new: np.ndarray
    spread: tuple[float, float, float] = (0.0, 0.0, 0.0)
    weights: Weights = dataclasses.field(default_factory=Weights)

    @property
    def tail(self) -> int:
        """Return the number of reference items in a tail."""
        return tail_size(len(self.reference_old))

    def standardised(self, query_old, query_new) -> tuple[Tail, Tail, Tail]:
        """Return the tails of the old, the new and the fused standardised scores of queries.

        query_old (Q, do), query_new (Q, dn): the same queries by both models, unprepared.
        """
        asked_old, asked_new = self.old.queries(query_old), self.new.queries(query_new)
        items_old, items_new = self.old.items(query_old), self.new.items(query_new)
        first = self._tail(asked_old, self.reference_old, items_old, 0)
        second = self._tail(asked_new, self.reference_new, items_new, 1)
        a, b = fused_factors(self.weights, first, second)
        asked = np.hstack([asked_old * a[:, None], asked_new * b[:, None]]).astype(np.float32)
        reference = np.hstack([self.reference_old, self.reference_new])
        both = self._tail(asked, reference, np.hstack([items_old, items_new]), 2)
        return first, second, shifted(both, a, first, b, second)

    def _tail(self, asked, reference, itself, which: int) -> Tail:
        """Return the tail of the inner products of queries (Q, E) with the reference (R, E).

        itself: each query as an item; an equal reference item is the query itself and is left out.
        """
        largest, _ = faiss.knn(asked, reference, self.tail + 1, metric=faiss.METRIC_INNER_PRODUCT)
        return tail_of(largest, np.einsum("qe,qe->q", asked, itself), self.spread[which])

    def affine(self, query_old, query_new) -> Affine:
        """Return the factors and shifts of some queries (Q, do), (Q, dn)."""
        return affine_of(self.weights, *self.standardised(query_old, query_new))

    def save(self, folder) -> Path:
        """Write ``calibration.json`` and ``reference.npz`` in a new directory."""
        described = {
            "format_version": FORMAT_VERSION,
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
        """Read what `save` wrote. Raises UserError if it is not there."""
        folder = Path(folder)
        if not (folder / "calibration.json").is_file():
            raise UserError(f"no calibration in {folder}: calibration.json is missing")
        described = json.loads((folder / "calibration.json").read_text())
        if described["format_version"] > FORMAT_VERSION:
            raise UserError(f"{folder} was written by a newer fct_jax")
        weights = Weights(**described["weights"])
        with np.load(folder / "reference.npz", allow_pickle=False) as file:
            spaces = []
            for name in ("old", "new"):
                # The damping is the last column of an item.
                crowd = file[name][:CROWD, :-1].copy() if weights.damping else None
                metric, centre = described[f"metric_{name}"], file[f"centre_{name}"]
                spaces.append(Space(metric, centre, weights.damping, crowd))
            return cls(*spaces, file["old"], file["new"], tuple(described["spread"]), weights)


def calibrate(
    old,
    new,
    *,
    query_old=None,
    query_new=None,
    metric: str = "",
    old_metric: str | None = None,
    weights: Weights | None = None,
    seed: int = 0,
) -> Calibration:
    """Make a calibration from items embedded by both models, without labels.

    More items are better: use a sample at first, and later all re-embedded items.

    Args:
      old, new: (R, do), (R, dn) vectors of the same items; at most 16,384 of them are used, and
        read from a memory map.
      query_old, query_new: (Q, do), (Q, dn) typical queries, by both models; without them items of
        the sample serve as queries.
      metric, old_metric: "l2" or "cosine", of the new and of the old space. "" chooses cosine for
        unit vectors and otherwise l2, and prints the choice; an old_metric of None is the given
        metric of the new space.
      weights: weights of the two spaces, learnt before; None means equal weights.
      seed: seed of the choice of items.

    Raises UserError for unequal numbers of rows or fewer than 20 items.

    >>> rng = np.random.default_rng(0)
    >>> old = rng.normal(size=(50, 4)).astype(np.float32)
    >>> made = calibrate(old, old @ rng.normal(size=(4, 6)).astype(np.float32), metric="cosine")
    >>> made.reference_old.shape, made.reference_new.shape
    ((50, 4), (50, 6))
    """
    if len(old) != len(new) or len(old) < _FEWEST:
        raise UserError(
            f"a calibration needs at least {_FEWEST} items embedded by both models; "
            f"there are {len(old)} old and {len(new)} new vectors"
        )
    order = np.random.default_rng(seed).permutation(len(old))[:REFERENCE]
    old, new = (v[order] if hasattr(v, "shape") else np.asarray(v)[order] for v in (old, new))
    weights = weights or Weights()
    new_metric, why = chosen_metric(metric, new)
    old_metric, old_why = chosen_metric(old_metric or metric, old)
    if not metric:
        console.print(
            f"calibration: old vectors are compared by {old_metric} ({old_why}), new ones by "
            f"{new_metric} ({why})"
        )
    metric = new_metric
    spaces = (
        Space.of(old, old_metric).damped(weights.damping, old[:CROWD]),
        Space.of(new, metric).damped(weights.damping, new[:CROWD]),
    )
    made = Calibration(*spaces, spaces[0].items(old), spaces[1].items(new), weights=weights)
    if query_old is not None:
        return with_spread(made, query_old, query_new)
    asked = min(_ASKED, len(old) // 3)  # an item is not its own neighbour
    rest = dataclasses.replace(
        made, reference_old=made.reference_old[asked:], reference_new=made.reference_new[asked:]
    )
    return dataclasses.replace(made, spread=with_spread(rest, old[:asked], new[:asked]).spread)


def with_spread(calibration: Calibration, query_old, query_new) -> Calibration:
    """Return the calibration with the typical spreads of these queries."""

    def typical(spread):
        tails = dataclasses.replace(calibration, spread=spread).standardised(query_old, query_new)
        return tuple(typical_spread([tail]) for tail in tails)

    old, new, _ = typical((0.0, 0.0, 0.0))
    _, _, both = typical((old, new, 0.0))  # depends on the first two
    return dataclasses.replace(calibration, spread=(old, new, both))
