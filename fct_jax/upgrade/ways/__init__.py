"""Ways of serving a gallery that is only partly re-embedded.

`WAYS` is the only table of them. A `Way` defines the score of an item that is not re-embedded, the
score of one that is, the vectors that these scores need of items and queries, and the orders of
re-embedding worth trying. Searching, assessing, planning and probing use these functions and
compare no names.

Scores are sums over *pairs of spaces* (`PAIRS`): the inner product of one kind of query vector with
one kind of item vector, times a factor per query. Every way is therefore one search of ordinary
inner-product indexes, and an assessment computes the lists of each pair once.

`find_way` also takes ``module:name`` and entry points of the group ``fct_jax.ways``. A new way is
one file and one row. For example, this way searches only old vectors, as the service does today:

    from fct_jax.upgrade.ways import Mix, Way

    STAY = Way("stay", "keep the old index", ("old",), ("old",), lambda asked: Mix({"old": 1.0}))
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fct_jax.errors import UserError, unknown
from fct_jax.runtime.plugins import find

# name of a pair -> (kind of query vectors, kind of item vectors)
PAIRS = {
    "old": ("old", "old"),
    "new": ("new", "new"),
    "translated": ("new", "translated"),
    "bridged": ("bridged", "old"),  # a new query mapped to the old space
    "common": ("common", "old"),  # a new query rotated towards the old space
}
# Below this angle in radians sin x is replaced by x: the relative error x² / 6 is about 2e-11.
_SMALL_ANGLE = 1e-5
# Directions within this angle of opposite have no shortest arc between them.
_ANTIPODAL = 1e-6
_ONE_MODEL = ("uncertainty", "random")
# If the old model is still queried, items with a high uncertainty are often those that the old
# model finds best.
_BOTH_MODELS = ("uncertainty", "random", "certainty")


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
        "bridged" (new ones mapped to the old space), "common" (new ones rotated towards it).
      items: kinds of vectors that an item that is not re-embedded needs: "old" or "translated".
      left: gives the `Mix` of an item that is not re-embedded, for some `Asked`.
      done: gives the `Mix` of a re-embedded item; None if the way does not re-embed.
      keeps_old: whether a re-embedded item's old vector is still needed.
      calibrated: whether scores of two spaces are compared.
      orders: names of the orders of re-embedding worth trying, the best guess first; empty if
        there is nothing to order.
      reranked: gives the `Mix` by which re-embedded candidates among the first
        ``settings["depth"]`` results of ``left`` are re-ranked; None without a second stage.
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
    def needs_calibration(self) -> bool:
        """Return whether scores of two spaces are compared."""
        return self.calibrated

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
        return dataclasses.replace(self, settings={**self.settings, **settings})


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


def _keep(asked: Asked) -> Mix:
    a = asked.affine
    return Mix({"old": a.keep}, a.keep_shift)


def _dual(asked: Asked) -> Mix:
    a = asked.affine
    return Mix({"new": a.dual}, a.dual_shift)


def _fused(asked: Asked) -> Mix:
    a = asked.affine
    return Mix({"old": a.fused_old, "new": a.fused_new}, a.fused_shift)


def _blend(asked: Asked) -> Mix:
    settings = dict(asked.settings)
    kind = settings.pop("kind")
    if kind not in BLENDS:
        raise unknown("kind of blend", kind, BLENDS)
    ours, theirs = BLENDS[kind](asked, **settings)
    return Mix({"old": ours, "bridged": theirs})


def _sum_blend(asked: Asked, weight: float) -> tuple:
    _check_weight(weight)
    return 1 - weight, weight


def _slerp_blend(asked: Asked, weight: float) -> tuple:
    _check_weight(weight)
    ours, theirs = slerp_factors(asked.product, weight)
    return ours, theirs * asked.length


def _per_query_blend(asked: Asked, bias: float, slope: float) -> tuple:
    share = 1 / (1 + np.exp(-(bias + slope * np.asarray(asked.product))))
    return 1 - share, share


def _check_weight(weight: float) -> None:
    if not 0 <= weight <= 1:
        raise UserError(f"the weight of a blend must be between 0 and 1, not {weight}")


# kind of blend -> factors of the old and of the bridged query
# Source: https://arxiv.org/abs/2609.39836; the grids are the published ones.
BLENDS: Mapping[str, Callable] = {
    "slerp": _slerp_blend,
    "sum": _sum_blend,
    "per-query": _per_query_blend,
}


def _reranked(asked: Asked) -> Mix:
    score = asked.settings["score"]
    if score not in SCORES:
        raise unknown("score of a cascade", score, SCORES)
    return SCORES[score](asked)


def _reranked_translated(asked: Asked) -> Mix:
    # Translated and new vectors share one space, so their sum needs no calibration.
    both = {"translated": 1.0, "new": 1.0}
    return Mix(both if asked.settings["score"] == "sum" else {"new": 1.0})


def _recalled_translated(asked: Asked) -> Mix:
    # Doubled in place of both terms of a sum.
    return Mix({"translated": 2.0 if asked.settings["score"] == "sum" else 1.0})


# Scores that rank the re-embedded candidates of a cascade.
SCORES: Mapping[str, Callable] = {"new": _dual, "sum": _fused}
_CASCADES = tuple(
    {"depth": depth, "score": score} for depth in (20, 50, 100, 200) for score in SCORES
)

# Of two ways that cannot be distinguished, the advice names the one that needs less of the
# service: the earlier row.
_ROWS = (
    Way(
        "translated",
        "translate the gallery and query it with the new model",
        ("new",),
        ("translated",),
        left=lambda asked: Mix({"translated": 1.0}),
        done=lambda asked: Mix({"new": 1.0}),
        orders=_ONE_MODEL,
    ),
    Way(
        "bridge",
        "map new queries to the old space and search the unchanged old index",
        ("bridged",),
        ("old",),
        left=lambda asked: Mix({"bridged": 1.0}),
    ),
    Way(
        "blend",
        "search the old index with a mixture of the old query and the bridged new one",
        ("old", "bridged"),
        ("old",),
        left=_blend,
        settings={"kind": "slerp", "weight": 0.5},
        variants=(
            *({"kind": "slerp", "weight": weight / 10} for weight in range(1, 10)),
            *({"kind": "sum", "weight": weight / 4} for weight in range(1, 4)),
            *(
                {"kind": "per-query", "bias": bias, "slope": slope}
                for bias in (-3.0, -1.5, 0.0, 1.5, 3.0)
                for slope in (-3.0, 3.0, 6.0)
            ),
        ),
    ),
    Way(
        # λ-orthogonality, strict: https://arxiv.org/abs/2509.16664. A rotation changes no score
        # among new vectors, so re-embedded items have the new model's own scores.
        "common",
        "rotate new vectors towards the old space and keep both kinds in one index",
        ("common", "new"),
        ("old",),
        left=lambda asked: Mix({"common": 1.0}),
        done=lambda asked: Mix({"new": 1.0}),
        orders=_ONE_MODEL,
    ),
    Way(
        "dual",
        "query old vectors with the old model and re-embedded ones with the new model",
        ("old", "new"),
        ("old",),
        left=_keep,
        done=_dual,
        calibrated=True,
        orders=_BOTH_MODELS,
    ),
    Way(
        "fused",
        "keep the old vectors and score re-embedded items by both models",
        ("old", "new"),
        ("old",),
        left=_keep,
        done=_fused,
        keeps_old=True,
        calibrated=True,
        orders=_BOTH_MODELS,
    ),
    Way(
        "cascade",
        "recall candidates from the old index and rank them by new vectors that are made on demand",
        ("old", "new"),
        ("old",),
        left=_keep,
        keeps_old=True,
        calibrated=True,
        reranked=_reranked,
        settings={"depth": 100, "score": "sum"},
        variants=_CASCADES,
    ),
    Way(
        "translated_cascade",
        "recall candidates from the translated index and rank them by new vectors that are made on "
        "demand",
        ("new",),
        ("translated",),
        left=_recalled_translated,
        keeps_old=True,
        reranked=_reranked_translated,
        settings={"depth": 100, "score": "sum"},
        variants=_CASCADES,
    ),
)
WAYS: Mapping[str, Way] = {way.name: way for way in _ROWS}


def find_way(name: str | Way) -> Way:
    """Return the way with a name: a row, an entry point or ``module:name``.

    Raises UserError for an unknown name, with the nearest known one.
    """
    if isinstance(name, Way):
        return name
    found = find(WAYS, name, "way of serving", "ways")
    if not isinstance(found, Way):
        raise UserError(
            f"{name} must be a fct_jax.upgrade.ways.Way, but it is of type {type(found).__name__}"
        )
    return found


def simplicity(name: str) -> int:
    """Return a way's place in the table, simplest first; ways outside the table come last."""
    names = list(WAYS)
    return names.index(name) if name in names else len(names)


def weighted(factor, rows: np.ndarray) -> np.ndarray:
    """Return query rows (Q, E) times a factor, a number or (Q,)."""
    return (rows * np.reshape(np.asarray(factor, np.float32), (-1, 1))).astype(np.float32)
