"""The parts of an assessment: the vectors it searches, its points, a cascade's candidates."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from fct_jax.upgrade.assessment.rows import Rows
from fct_jax.upgrade.ways import Mix, Way
from fct_jax.upgrade.ways.calibration import Calibration
from fct_jax.upgrade.ways.relevance import Relevance

# names of points outside the table of ways
KEEP, WHOLE = "keep", "re-embed all"
TRANSLATE = "translate"


@dataclasses.dataclass(frozen=True)
class World:
    """The vectors that an assessment searches.

    Attributes:
      items: kind -> (N, D) float32 gallery vectors: "old", "new", "translated", and with a common
        space "moved" and "forward". Without these two, scores of moved vectors are those of the new
        and translated ones: a rotation changes no cosine.
      queries: kind -> (Q, D) float32: "old", "new", and "bridged", "common" and "moved" if they
        exist.
      relevance: relevance of the Q queries.
      own: (Q,) rows that are not results, or None.
      calibration: calibration on the sample; its spaces and weights hold everywhere.
      sample: (R, do), (R, dn) items outside the gallery that a calibration starts from.
      inside: rows of the gallery that a calibration starts from if there are no other items.
    """

    items: Mapping[str, np.ndarray]
    queries: Mapping[str, np.ndarray]
    relevance: Relevance
    own: np.ndarray | None
    calibration: Calibration
    sample: tuple[np.ndarray, np.ndarray]
    inside: np.ndarray

    @property
    def count(self) -> int:
        """Return the number of gallery items."""
        return len(self.items["old"])

    @property
    def is_large(self) -> bool:
        """Return whether the items stay on disk."""
        return isinstance(self.items["old"], Rows)


@dataclasses.dataclass(frozen=True)
class Spot:
    """One point to measure: a way with a share of the gallery re-embedded in an order."""

    way: Way
    order: str
    share: float

    @property
    def name(self) -> tuple[str, str, float]:
        return self.way.label, self.order, self.share


@dataclasses.dataclass(frozen=True)
class Wish:
    """A list to search for each query: mixes of items that are not re-embedded and that are."""

    left: Mix
    done: Mix
    migrated: np.ndarray
    width: int


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Rows (Q, K) found by a cascade's first stage, and their scores before and after re-ranking.

    Scores are on one scale, and −inf for a row of −1.
    """

    rows: np.ndarray
    old_scores: np.ndarray
    new_scores: np.ndarray


def spots_of(ways: Sequence[Way], orders: Mapping[str, Sequence[str]], shares) -> list[Spot]:
    """Return the points to measure; orders: way -> names; shares include 0 and 1."""
    found = []
    for way in (variant for row in ways for variant in row.all_variants()):
        if way.done is not None:
            found += [Spot(way, order, share) for order in orders[way.name] for share in shares]
        else:
            # Nothing is re-embedded in advance; a cascade makes vectors on demand.
            found.append(Spot(way, "candidates" if way.reranked else "", 0.0))
    return found
