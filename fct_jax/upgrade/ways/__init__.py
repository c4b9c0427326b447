"""Ways of serving a gallery that is only partly re-embedded.

`WAYS` is the only table of them. A way is a `Way`: how an item that is not re-embedded scores, how
one that is does, which vectors that asks of items and queries, and in which orders re-embedding may
go. Searching, assessing, planning and probing go through these functions and compare no names.

Scores are sums over *pairs of spaces* (`PAIRS`): the inner product of one kind of query vector with
one kind of item vector, times a factor for each query. So every way is one search of ordinary
inner-product indexes, and an assessment computes the lists of each pair once.

`find_way` also takes ``module:name`` and entry points of the group ``fct_jax.ways``. A new way is
one file and one row. For example, old vectors only, which is what a service does today:

    from fct_jax.upgrade.ways import Mix, Way

    STAY = Way("stay", "keep the old index", ("old",), ("old",), lambda asked: Mix({"old": 1.0}))
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fct_jax.errors import UserError
from fct_jax.runtime.plugins import find

# name of a pair -> (kind of query vectors, kind of item vectors)
PAIRS = {
    "old": ("old", "old"),
    "new": ("new", "new"),
    "translated": ("new", "translated"),
    "bridged": ("bridged", "old"),
}
_ONE_MODEL = ("uncertainty", "random")
# Where the old model goes on searching, an item that the map is unsure of is often one that the
# old model finds best.
_BOTH_MODELS = ("uncertainty", "random", "certainty")


@dataclasses.dataclass(frozen=True)
class Mix:
    """The score of an item: a sum over pairs of spaces, and a shift.

    factors: {pair: number or (Q,)}; shift: number or (Q,).
    """

    factors: Mapping[str, Any]
    shift: Any = 0.0


class Asked:
    """A batch of queries, as a way sees it.

    affine: the factors and shifts that make scores of both spaces comparable; raises UserError
      where there is no calibration.
    """

    def __init__(self, way: str, affine: Callable[[], Any] | None):
        self._way, self._affine = way, affine

    @property
    def affine(self):
        if self._affine is None:
            raise UserError(
                f"{self._way} search needs a calibration; see fct_jax.upgrade.calibrate"
            )
        return self._affine()


@dataclasses.dataclass(frozen=True)
class Way:
    """One row of the table of ways of serving.

    Attributes:
      name: its key in the table.
      text: what to do, for a sentence of advice.
      queries: kinds of query vectors that a search needs: "old", "new" (by these models).
      items: kinds of vectors that an item needs that is not re-embedded: "old" or "translated".
      left: the `Mix` of an item that is not re-embedded, for some `Asked`.
      done: that of one that is; None: the way does not re-embed.
      keeps_old: whether a re-embedded item's old vector is still needed.
      orders: names of the orders of re-embedding worth trying, the best guess first.
    """

    name: str
    text: str
    queries: tuple[str, ...]
    items: tuple[str, ...]
    left: Callable[[Asked], Mix]
    done: Callable[[Asked], Mix] | None = None
    keeps_old: bool = False
    orders: tuple[str, ...] = _ONE_MODEL

    @property
    def needs_old_queries(self) -> bool:
        """Whether a query must be embedded by the old model, too."""
        return "old" in self.queries

    @property
    def needs_translated(self) -> bool:
        """Whether the gallery must be translated by a map."""
        return "translated" in self.items

    @property
    def needs_calibration(self) -> bool:
        """Whether scores of two spaces meet."""
        return len(self.queries) > 1

    @property
    def cost(self) -> str:
        """What a query costs: calls of models, and vectors kept for an item."""
        models = " and ".join(self.queries)
        kept = 2 if self.keeps_old else 1
        return f"{models} model; {kept} vector{'s' if kept > 1 else ''} an item"


def _keep(asked: Asked) -> Mix:
    a = asked.affine
    return Mix({"old": a.keep}, a.keep_shift)


def _dual(asked: Asked) -> Mix:
    a = asked.affine
    return Mix({"new": a.dual}, a.dual_shift)


def _fused(asked: Asked) -> Mix:
    a = asked.affine
    return Mix({"old": a.fused_old, "new": a.fused_new}, a.fused_shift)


# Where two ways cannot be told apart, the one that asks less of the service is advised: the
# earlier row.
_ROWS = (
    Way(
        "translated",
        "translate the gallery and query it with the new model",
        ("new",),
        ("translated",),
        left=lambda asked: Mix({"translated": 1.0}),
        done=lambda asked: Mix({"new": 1.0}),
    ),
    Way(
        "dual",
        "query old vectors with the old model and re-embedded ones with the new model",
        ("old", "new"),
        ("old",),
        left=_keep,
        done=_dual,
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
        orders=_BOTH_MODELS,
    ),
)
WAYS: Mapping[str, Way] = {way.name: way for way in _ROWS}


def find_way(name: str | Way) -> Way:
    """Return the way of a name: a row, an entry point or ``module:name``.

    Raises UserError for a name that nothing has, with the nearest known one.
    """
    if isinstance(name, Way):
        return name
    found = find(WAYS, name, "way of serving", "ways")
    if not isinstance(found, Way):
        raise UserError(f"{name} is no fct_jax.upgrade.ways.Way but {type(found).__name__}")
    return found


def simplicity(name: str) -> int:
    """Return a way's place in the table, simplest first; ways of others come last."""
    names = list(WAYS)
    return names.index(name) if name in names else len(names)


def weighted(factor, rows: np.ndarray) -> np.ndarray:
    """Return query rows (Q, E) times a factor, a number or (Q,)."""
    return (rows * np.reshape(np.asarray(factor, np.float32), (-1, 1))).astype(np.float32)
