"""Orders of re-embedding: they decide which items of a gallery get their new vector first.

`ORDERS` is the only table of them. An `Order` names the facts that it needs about the items, and
gives each item a score; the largest score comes first. `find_order` also takes ``module:name``,
entry points of the group ``fct_jax.orders``, and ``NAME×traffic`` (or ``NAME*traffic``) for an
order multiplied by the traffic of each item.

A new order is one file and one row. For example, the shortest old vectors first:

    import numpy as np
    from fct_jax.evaluate.orders import Order

    SHORTEST = Order(
        "shortest", ("old",), lambda items: -np.linalg.norm(items.old, axis=1), "shortest first"
    )

It is then found as ``mypackage.orders:SHORTEST``.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from fct_jax.errors import UserError
from fct_jax.evaluate.distances import as_vectors, check_metric, check_same_width, distances
from fct_jax.runtime.plugins import find
from fct_jax.storage import sorting, spilled
from fct_jax.upgrade.confidence import (
    Cells,
    cell_mean_distance,
    class_mean_distance,
    nearest_distances,
    usual_cells,
)

TRAFFIC = "traffic"
_ROWS_READ = 8192  # vectors worked through at a time


@dataclasses.dataclass(frozen=True)
class Items:
    """The known facts about n gallery items; an order names those that it needs.

    Attributes:
      n: number of items.
      seed: seed of random choices.
      metric: "l2" or "cosine", the metric of the vectors.
      old: (n, do) the old model's vectors.
      new: (n, D) the new model's vectors, for orders by the true error.
      transformed: (n, D) the translated vectors h(old).
      uncertainty: (n,) log-variance of each translated vector.
      traffic: (n,) traffic of each item, 0 or more.
      training: (m, do) old vectors that the map was fitted on.
      classes: (n,) class of each item; without them k-means cells replace classes.
      cells: cells to which the translated vectors have been assigned before; None: when needed.
      candidates: (n,) number of queries that had the item among their candidates.
    """

    n: int
    seed: int = 0
    metric: str = "l2"
    old: np.ndarray | None = None
    new: np.ndarray | None = None
    transformed: np.ndarray | None = None
    uncertainty: np.ndarray | None = None
    traffic: np.ndarray | None = None
    training: np.ndarray | None = None
    classes: np.ndarray | None = None
    cells: Cells | None = None
    candidates: np.ndarray | None = None

    def part(self, start: int, stop: int, names: tuple[str, ...]) -> "Items":
        """Return the items from start to stop, with the named facts alone: others cost reading."""
        parts = {name: getattr(self, name)[start:stop] for name in names}
        return Items(stop - start, self.seed, self.metric, **parts)


@dataclasses.dataclass(frozen=True)
class Order:
    """One row of the table of orders.

    Attributes:
      name: its key in the table.
      needs: names of the attributes of `Items` that must be given.
      score: gives (n,) numbers for some `Items`; the largest comes first, equal ones by row.
      text: the end of a sentence: "re-embed 10 % …".
      log_gain: converts scores to logarithms of the error that re-embedding an item removes, so
        that traffic can multiply it; None if a score has no such meaning.
      oracle: whether it needs the vectors that re-embedding is about to compute.
      line: Matplotlib line style of its curves.
      keys: gives the arrays (n,) that some `Items` are sorted by, if they depend on each item
        alone; the largest comes first, and a later array decides where earlier ones are equal.
        More items than memory holds are then sorted on disk. None: all scores are held.
      permutation: gives the order itself, where no score is needed; None: it follows from scores.
    """

    name: str
    needs: tuple[str, ...]
    score: Callable[[Items], np.ndarray]
    text: str
    log_gain: Callable[[np.ndarray], np.ndarray] | None = None
    oracle: bool = False
    line: str = "-"
    keys: Callable[[Items], tuple[np.ndarray, ...]] | None = None
    permutation: Callable[[Items], np.ndarray] | None = None

    def lacks(self, items: Items) -> list[str]:
        """Return the names of the facts that the order needs and these items lack."""
        return [name for name in self.needs if getattr(items, name) is None]

    def rank(self, items: Items) -> np.ndarray:
        """Return the rows of the items in this order, (n,) int64.

        Raises UserError if a fact that the order needs is missing or a score is NaN.
        """
        for name in self.lacks(items):
            raise UserError(f"order of re-embedding {self.name!r} needs {name}=…")
        if self.permutation is not None:
            return self.permutation(items)
        if self.keys is not None and items.n > sorting.BLOCK:
            return sorting.descending(lambda a, b: self._keys_of(items, a, b), items.n)
        score = np.asarray(self.score(items), np.float64)
        if score.shape != (items.n,):
            raise UserError(
                f"order of re-embedding {self.name!r}: scores must have shape ({items.n},), "
                f"not {score.shape}"
            )
        self._check_known(score)
        if items.n > sorting.BLOCK:
            return sorting.descending(lambda a, b: (score[a:b],), items.n)
        return np.argsort(-score, kind="stable")

    def _keys_of(self, items: Items, start: int, stop: int) -> tuple[np.ndarray, ...]:
        found = self.keys(items.part(start, stop, self.needs))
        for key in found:
            self._check_known(key, start)
        return found

    def _check_known(self, score: np.ndarray, first: int = 0) -> None:
        unknown = np.isnan(score)
        if unknown.any():
            # The published code would put items of unknown uncertainty first.
            what = self.needs[0] if len(self.needs) == 1 else self.name
            raise UserError(f"{what} holds NaN, first in item {first + int(np.argmax(unknown))}")


def times_traffic(order: Order) -> Order:
    """Return the order by an order's gain times the traffic of each item.

    Items without traffic come last, in the given order. Raises UserError for an order whose
    score is not a gain, such as "random".
    """
    if order.log_gain is None:
        raise UserError(f"order of re-embedding {order.name!r} cannot be multiplied by traffic")

    def keys(items: Items) -> tuple[np.ndarray, np.ndarray]:
        plain = np.asarray(order.score(items), np.float64)
        with np.errstate(divide="ignore"):
            gain = order.log_gain(plain) + np.log(np.asarray(items.traffic, np.float64))
        gain[np.isnan(gain)] = -np.inf  # infinite error of an item without traffic
        return gain, plain

    def score(items: Items) -> np.ndarray:
        gain, plain = keys(items)
        place = np.empty(items.n)
        place[np.lexsort((-plain, -gain))] = -np.arange(items.n)
        place[np.isnan(plain)] = np.nan
        return place

    return Order(
        f"{order.name}×{TRAFFIC}",
        tuple(dict.fromkeys((*order.needs, TRAFFIC))),
        score,
        f"{order.text}, weighted by traffic",
        oracle=order.oracle,
        line="-.",
        keys=None if order.keys is None else keys,
    )


def _shuffled(items: Items) -> np.ndarray:
    return np.random.default_rng(items.seed).permutation(items.n)


def _by_chance(items: Items) -> np.ndarray:
    place = np.empty(items.n)
    place[_shuffled(items)] = -np.arange(items.n)
    return place


def _uncertainty(items: Items) -> np.ndarray:
    values = np.asarray(items.uncertainty, np.float64)
    if values.shape not in ((items.n,), (items.n, 1)):
        raise UserError(f"uncertainty must have shape ({items.n},), not {values.shape}")
    return values.reshape(items.n)


def _true_error(items: Items) -> np.ndarray:
    found = spilled.empty(items.n, np.float64)
    for part in spilled.blocks(max(items.n, 1), _ROWS_READ):
        sides = []
        for name in ("new", "transformed"):
            vectors = getattr(items, name)
            if np.ndim(vectors) == 2:
                vectors, name = vectors[part], _numbered(name, part)
            sides.append(as_vectors(name, vectors))
        check_same_width("new", sides[0], "transformed", sides[1])
        found[part] = distances(*sides, items.metric)
    return found


def _numbered(name: str, part: slice) -> str:
    return f"{name} from row {part.start:,}" if part.start else name


def _strangeness(items: Items) -> np.ndarray:
    return nearest_distances(items.old, items.training, 1)[:, 0]


def _from_class_mean(items: Items) -> np.ndarray:
    moved = items.transformed
    if items.classes is not None:
        return class_mean_distance(moved, items.classes, metric=items.metric)
    if items.cells is not None:
        return items.cells.distances(moved, items.metric)
    return cell_mean_distance(
        moved, **usual_cells(len(moved)), metric=items.metric, seed=items.seed
    )


def _log_square(distance: np.ndarray) -> np.ndarray:
    return 2 * np.log(distance)


def _one_key(score: Callable[[Items], np.ndarray]) -> Callable[[Items], tuple[np.ndarray]]:
    return lambda items: (score(items),)


def _certainty(items: Items) -> np.ndarray:
    return -_uncertainty(items)


def _traffic(items: Items) -> np.ndarray:
    return np.asarray(items.traffic, np.float64)


def _same(score: np.ndarray) -> np.ndarray:
    return score


_UNCERTAINTY = Order(
    # FastFill, ICLR 2023, section 4: https://arxiv.org/abs/2303.04766
    "uncertainty",
    ("uncertainty",),
    _uncertainty,
    "by descending uncertainty",
    _same,
    keys=_one_key(_uncertainty),
)
_CERTAINTY = Order(
    "certainty",
    ("uncertainty",),
    _certainty,
    "by ascending uncertainty",
    _same,
    line=(0, (3, 1, 1, 1)),
    keys=_one_key(_certainty),
)
_ROWS = (
    Order("random", (), _by_chance, "in random order", line="--", permutation=_shuffled),
    _UNCERTAINTY,
    _CERTAINTY,
    Order(
        "distance",
        ("new", "transformed"),
        _true_error,
        "by descending true error",
        _log_square,
        oracle=True,
        line=":",
    ),
    Order(
        TRAFFIC,
        (TRAFFIC,),
        _traffic,
        "by descending traffic",
        line=(0, (5, 1)),
        keys=_one_key(_traffic),
    ),
    times_traffic(_UNCERTAINTY),
    times_traffic(_CERTAINTY),
    Order(
        # Translation confidence of LA2M (SIGMOD 2026) falls with this distance.
        "confidence",
        ("old", "training"),
        _strangeness,
        "farthest from the pairs that the map was fitted on first",
        _log_square,
        line=(0, (1, 1)),
    ),
    Order(
        # λ-orthogonality, NeurIPS 2025: https://arxiv.org/abs/2509.16664. The cells are ours.
        "class_mean",
        ("transformed",),
        _from_class_mean,
        "farthest from the mean of its class first",
        _log_square,
        line=(0, (3, 1)),
    ),
    Order(
        "candidates",
        ("candidates",),
        lambda items: np.asarray(items.candidates, np.float64),
        "most often among a query's candidates first",
        line=(0, (5, 2, 1, 2)),
    ),
)
ORDERS: Mapping[str, Order] = {order.name: order for order in _ROWS}


def find_order(name: str | Order) -> Order:
    """Return the order with a name: a row, an entry point, ``module:name`` or ``NAME×traffic``.

    Raises UserError for an unknown name, with the nearest known one.
    """
    if isinstance(name, Order):
        return name
    if name == "sigma":  # its name in the configs of earlier versions
        raise UserError("order of re-embedding 'sigma' is now called 'uncertainty'")
    if name in ORDERS:
        return ORDERS[name]
    for sign in ("×", "*"):
        plain, found, weight = str(name).rpartition(sign)
        if found and weight == TRAFFIC:
            return times_traffic(find_order(plain))
    found = find(ORDERS, name, "order of re-embedding", "orders")
    if not isinstance(found, Order):
        raise UserError(
            f"{name} must be a fct_jax.evaluate.orders.Order, but it is of type "
            f"{type(found).__name__}"
        )
    return found


def backfill_order(
    kind: str,
    *,
    new=None,
    transformed=None,
    uncertainty=None,
    n: int | None = None,
    seed: int = 0,
    metric: str = "l2",
) -> np.ndarray:
    """Return the order in which to re-embed n gallery items: a permutation (n,) int64.

    Args:
      kind: a name of `ORDERS`: "random" (by ``seed``; n is given, or the length of any array);
        "uncertainty" (descending; FastFill, ICLR 2023, section 4); "certainty"; "class_mean";
        "distance" (descending distance between an item's ``new`` and ``transformed`` vectors, an
        oracle: it needs the vectors that backfilling is about to compute).
      new, transformed: (n, D) vectors.
      uncertainty: (n,) log-variances.
      n, seed: number of items, seed of random choices.
      metric: "l2" or "cosine".

    Equal items keep their order. Raises UserError for an unknown kind or metric, a missing
    array, NaN, or different lengths.

    >>> backfill_order("uncertainty", uncertainty=[0.1, 2.0, 0.5]).tolist()
    [1, 2, 0]
    """
    order = find_order(kind)
    check_metric(metric)
    given = {"new": new, "transformed": transformed, "uncertainty": uncertainty}
    for name in order.needs:
        if given.get(name) is None:
            raise UserError(f"backfilling order {kind!r} needs {name}=…")
    lengths = {
        key: (np.shape(value) or (0,))[0] for key, value in given.items() if value is not None
    }
    if n is not None:
        lengths["n"] = int(n)
    if not lengths:
        raise UserError(f"backfilling order {kind!r} needs the number of items, n=…")
    if len(set(lengths.values())) > 1:
        raise UserError(f"backfilling order: the numbers of items differ: {lengths}")
    count = next(iter(lengths.values()))
    if count < 1:
        raise UserError(f"backfilling order: there must be at least one item, not {count}")
    return order.rank(Items(count, seed, metric, **given))
