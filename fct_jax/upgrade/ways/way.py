"""A way of serving, and what its functions see: scores as sums over pairs of spaces."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fct_jax.errors import UserError, unknown

# name of a pair -> (kind of query vectors, kind of item vectors)
PAIRS = {
    "old": ("old", "old"),
    "new": ("new", "new"),
    "translated": ("new", "translated"),
    "bridged": ("bridged", "old"),  # a new query mapped to the old space
    # B(new) of a common space; "forward" is B of a translated vector, "moved" of a new one.
    "common": ("common", "old"),
    "forward": ("moved", "forward"),
    "moved": ("moved", "moved"),
}
# Below this angle in radians sin x is replaced by x: the relative error x² / 6 is about 2e-11.
_SMALL_ANGLE = 1e-5
# Directions within this angle of opposite have no shortest arc between them.
_ANTIPODAL = 1e-6


@dataclasses.dataclass(frozen=True)
class Mix:
    """The score of an item: a sum over pairs of spaces, and a shift.

    factors: {pair: number or (Q,)}; shift: number or (Q,).
    """

    factors: Mapping[str, Any]
    shift: Any = 0.0


class Asked:
    """A batch of queries, as the functions of a way see it.

    Attributes:
      settings: settings of the way, such as the weight of a blend.
      affine: the factors and shifts that make scores of both spaces comparable; raises UserError
        without a calibration.
      product: (Q,) inner product of the unit old query with the bridged query.
      length: (Q,) length of the bridged query, at most 1.
    """

    def __init__(
        self,
        way: "Way",
        affine: Callable[[], Any] | None = None,
        angle: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None,
    ):
        """Take functions that give the factors, and product and length (``angle``)."""
        self.settings, self._name = way.settings, way.name
        self._affine, self._angle = affine, angle

    @property
    def affine(self):
        if self._affine is None:
            raise UserError(
                f"{self._name} search needs a calibration; see fct_jax.upgrade.calibrate"
            )
        return self._affine()

    @property
    def product(self) -> np.ndarray:
        return self._angle()[0]

    @property
    def length(self) -> np.ndarray:
        return self._angle()[1]


def angle_between(query_old, query_bridged) -> tuple[np.ndarray, np.ndarray]:
    """Return inner products (Q,) of unit old queries with bridged ones, and the latter's lengths.

    A bridged query (Q, do) that is longer than 1 is scaled to length 1. A shorter one is unchanged:
    it is the projection of a unit vector of a new space with more dimensions.
    """
    u, v = (np.asarray(part, np.float64) for part in (query_old, query_bridged))
    length = np.linalg.norm(v, axis=1)
    inner = np.einsum("qd,qd->q", u, v)
    scale = np.linalg.norm(u, axis=1) * np.maximum(length, 1)
    return inner / np.maximum(scale, 1e-12), np.minimum(length, 1)


@dataclasses.dataclass(frozen=True)
class Way:
    """One row of the table of ways of serving.

    Attributes:
      name: its key in the table.
      text: an imperative phrase for the advice.
      queries: kinds of query vectors that a search needs: "old", "new" (by these models),
        "bridged" (new ones mapped to the old space), and those of a common space: "moved" (B(new))
        and "common" (the same with the old vectors' dimension).
      items: kinds of vectors that an item that is not re-embedded needs: "old" or "translated".
      left: gives the `Mix` of an item that is not re-embedded, for some `Asked`.
      done: gives the `Mix` of a re-embedded item; None if the way does not re-embed.
      keeps_old: whether a re-embedded item's old vector is still needed.
      calibrated: whether scores of two spaces are compared.
      orders: names of the orders of re-embedding worth trying, the best guess first; empty if
        there is nothing to order.
      reranked: gives the `Mix` by which re-embedded candidates among the first
        ``settings["depth"]`` results of ``left`` are re-ranked; None without a second stage.
      beside: gives the `Mix` of a second index, whose results are joined with those of ``left`` by
        turns before they are re-ranked; None with one index.
      settings: numbers and names that the functions read.
      variants: other settings that an assessment tries.
    """

    name: str
    text: str
    queries: tuple[str, ...]
    items: tuple[str, ...]
    left: Callable[[Asked], Mix]
    done: Callable[[Asked], Mix] | None = None
    keeps_old: bool = False
    calibrated: bool = False
    orders: tuple[str, ...] = ()
    reranked: Callable[[Asked], Mix] | None = None
    beside: Callable[[Asked], Mix] | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    variants: tuple[Mapping[str, Any], ...] = ()

    @property
    def needs_old_queries(self) -> bool:
        """Return whether a query must be embedded by the old model, too."""
        return "old" in self.queries

    @property
    def needs_translated(self) -> bool:
        """Return whether the gallery must be translated by a map."""
        return "translated" in self.items

    @property
    def one_index(self) -> bool:
        """Return whether plain new queries on one index of translated and new vectors are all."""
        return self.needs_translated and self.reranked is None and not self.needs_backward

    @property
    def needs_backward(self) -> bool:
        """Return whether queries are moved by the backward map of a common space."""
        return "moved" in self.queries

    @property
    def reembeds(self) -> bool:
        """Return whether the new vector of an item changes its place in the results."""
        return self.done is not None or self.reranked is not None

    @property
    def label(self) -> str:
        """Return the name with the settings, for a table."""
        said = " ".join(
            f"{v:g}" if isinstance(v, float) else str(v) for v in self.settings.values()
        )
        return f"{self.name} {said}".rstrip()

    @property
    def cost(self) -> str:
        """Describe a query's cost (models called, re-ranking) and the vectors stored per item."""
        models = [kind for kind in ("old", "new") if kind in self.queries]
        if "new" not in models and len(self.queries) > len(models):
            models.append("new")
        asked = f"{' and '.join(models)} model{'s' if len(models) > 1 else ''}"
        if self.reranked is not None:
            asked += f", {self.settings['depth']} candidates re-ranked"
        return f"{asked}; {'2 vectors' if self.keeps_old else '1 vector'} an item"

    def all_variants(self) -> tuple["Way", ...]:
        """Return one way for each of the settings that an assessment tries."""
        if not self.variants:
            return (self,)
        return tuple(dataclasses.replace(self, settings=dict(tried)) for tried in self.variants)

    def having(self, **settings) -> "Way":
        """Return the way with other settings. Raises UserError for an unknown setting."""
        known = {name for tried in (self.settings, *self.variants) for name in tried}
        for name in settings:
            if name not in known:
                raise unknown(f"setting of {self.name}", name, known or ["(none)"])
        # A name, such as the kind of a blend, decides which other settings there are.
        fitting = [
            tried for tried in (self.settings, *self.variants) if set(settings) <= set(tried)
        ]
        if not fitting:
            raise UserError(f"{self.name} has no kind with all of {', '.join(settings)}")
        names = {key: value for key, value in settings.items() if isinstance(value, str)}
        base = max(fitting, key=lambda tried: sum(tried[key] == names[key] for key in names))
        kept = {
            key: value
            for key, value in self.settings.items()
            if key in base and not isinstance(value, str)
        }
        return dataclasses.replace(self, settings={**base, **kept, **settings})


def slerp_factors(product: np.ndarray, weight) -> tuple[np.ndarray, np.ndarray]:
    """Return the factors (Q,) of the old and of the bridged query in their spherical mixture.

    ``[sin((1−w)θ) u + sin(wθ) v] / sin θ`` with ``θ = arccos(product)``. For equal queries the
    factors are 1 − w and w; opposite queries have no unique arc, so the old query is used.
    Source: https://arxiv.org/abs/2609.39836.
    """
    angle = np.arccos(np.clip(np.asarray(product, np.float64), -1, 1))
    small, opposite = angle < _SMALL_ANGLE, angle > np.pi - _ANTIPODAL
    safe = np.where(small | opposite, 1.0, angle)
    ours = np.where(small, 1 - weight, np.sin((1 - weight) * safe) / np.sin(safe))
    theirs = np.where(small, weight, np.sin(weight * safe) / np.sin(safe))
    return np.where(opposite, 1.0, ours), np.where(opposite, 0.0, theirs)


def weighted(factor, rows: np.ndarray) -> np.ndarray:
    """Return query rows (Q, E) times a factor, a number or (Q,)."""
    return (rows * np.reshape(np.asarray(factor, np.float32), (-1, 1))).astype(np.float32)
