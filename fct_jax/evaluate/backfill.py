"""Backfilling curves: metrics while a gallery is re-embedded in some order."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fct_jax.errors import UserError, unknown
from fct_jax.evaluate.distances import (
    Keys,
    as_labels,
    as_vectors,
    check_metric,
    check_same_length,
    check_same_width,
    unit_rows,
)
from fct_jax.evaluate.metrics import PerQuery, check_ks


@dataclass(frozen=True)
class BackfillCurve:
    """Metrics while a gallery is re-embedded step by step.

    fraction: share of the gallery that has the new model's vectors, (points,), from 0 to 1.
    values: "cmc@1", "cmc@5", "map" → (points,), as fractions from 0 to 1.

    >>> curve = BackfillCurve(np.array([0.0, 0.5, 1.0]), {"map": np.array([0.5, 0.7, 0.9])})
    >>> round(curve.auc("map"), 3)
    0.7
    """

    fraction: np.ndarray
    values: dict[str, np.ndarray]

    def auc(self, name: str) -> float:
        """Return the area under one metric's curve, as published: the plain mean of its points."""
        if name not in self.values:
            raise unknown("metric of the curve", name, self.values)
        return float(np.mean(self.values[name]))


def backfill_curve(
    new,
    transformed,
    labels,
    order,
    *,
    steps: int = 20,
    metric: str = "l2",
    ks: Sequence[int] = (1, 5),
) -> BackfillCurve:
    """Return metrics at ``steps`` + 2 points of re-embedding a gallery in the given order.

    new (n, D): the new model's vectors, which are also the queries; transformed (n, D): the
    gallery's initial vectors; labels (n,); order (n,): a permutation, see `orders.backfill_order`.
    At point i the first ``floor(i·n/(steps+1))`` items of the order have their new vector, so the
    curve runs from none to all. The evaluation is leave-one-out, as in `retrieval_metrics`. Among
    equally near items the one earlier in ``order`` ranks first, as if the gallery were stored in
    that order; with ``order = arange(n)`` that is the lower gallery row.
    Protocol of FCT (CVPR 2022) and FastFill (ICLR 2023).

    Exact at every point for little more than one evaluation, in memory that does not grow with n².
    Raises UserError as `retrieval_metrics` does, and for an order that is no permutation.

    >>> new = [[0.0], [0.1], [1.0], [1.1]]
    >>> old = [[0.0], [1.0], [0.1], [1.1]]  # items 1 and 2 have each other's place
    >>> curve = backfill_curve(new, old, [0, 0, 1, 1], [1, 2, 0, 3], steps=1, ks=(1,))
    >>> curve.values["cmc@1"].tolist()
    [0.0, 1.0, 1.0]
    """
    curves = backfill_curves(
        new, transformed, labels, {"order": order}, steps=steps, metric=metric, ks=ks
    )
    return curves["order"]


def backfill_curves(
    new,
    transformed,
    labels,
    orders: Mapping[str, object],
    *,
    steps: int = 20,
    metric: str = "l2",
    ks: Sequence[int] = (1, 5),
    query=None,
    query_labels=None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, BackfillCurve]:
    """Return `backfill_curve` of several orders ``{name: order}``, which share all distances.

    query (Q, D), query_labels (Q,): items outside the gallery, embedded by the new model;
    without them the gallery queries itself, leave-one-out.
    ``progress`` is called with the number of queries done, block after block.

    >>> new, moved = [[0.0], [0.1], [5.0], [5.1]], [[9.0], [0.1], [5.0], [5.1]]
    >>> orders = {"worst first": [0, 1, 2, 3], "worst last": [3, 2, 1, 0]}
    >>> found = backfill_curves(new, moved, [0, 0, 1, 1], orders, steps=4)
    >>> {name: round(curve.auc("map"), 3) for name, curve in found.items()}
    {'worst first': 0.944, 'worst last': 0.861}
    """
    check_metric(metric)
    new, transformed = as_vectors("new", new), as_vectors("transformed", transformed)
    check_same_length("new", new, "transformed", transformed)
    check_same_width("new", new, "transformed", transformed)
    if query is not None:
        query = as_vectors("query", query)
        check_same_width("query", query, "new", new)
        query_labels = as_labels("query_labels", query_labels, len(query))
    kind = "l2"
    if metric == "cosine":
        new, transformed, kind = unit_rows(new), unit_rows(transformed), "dot"
        query = None if query is None else unit_rows(query)
    return curves_of_rows(
        new,
        transformed,
        labels,
        orders,
        kind=kind,
        steps=steps,
        ks=ks,
        query=query,
        query_labels=query_labels,
        progress=progress,
    )


def curves_of_rows(
    new: np.ndarray,
    transformed: np.ndarray,
    labels,
    orders,
    *,
    kind,
    steps,
    ks,
    query=None,
    query_labels=None,
    progress=None,
) -> dict[str, BackfillCurve]:
    """Return `backfill_curves` of rows without further preparation; ``kind`` as in `Keys`."""
    n = len(new)
    labels = as_labels("labels", labels, n)
    ks = check_ks(ks)
    if int(steps) != steps or steps < 0:
        raise UserError(f"steps must be a whole number of at least 0, not {steps}")
    if not orders:
        raise UserError("no backfilling order given")
    points = int(steps) + 2
    cuts = np.arange(points) * n // (points - 1)
    position = np.empty((len(orders), n), np.int32)
    for row, (name, order) in zip(position, orders.items(), strict=True):
        row[_checked_order(name, order, n)] = np.arange(n)
    stage = np.searchsorted(cuts[1:], position, side="right").astype(np.int32)
    from fct_jax.evaluate.ranking import rank_positives  # late: importing Numba takes a second

    ap, first = rank_positives(
        Keys(new if query is None else query, np.concatenate([transformed, new]), kind),
        labels if query is None else query_labels,
        labels,
        leave_one_out=query is None,
        stage=stage,
        position=position,
        points=points,
        progress=progress,
    )
    curves = {}
    for o, name in enumerate(orders):
        found = ~np.isnan(ap[:, o])
        at = [
            PerQuery(ap[:, o, i], {k: found[:, i] & (first[:, o, i] < k) for k in ks}).mean()
            for i in range(points)
        ]
        curves[name] = BackfillCurve(
            cuts / n, {metric: np.array([values[metric] for values in at]) for metric in at[0]}
        )
    return curves


def _checked_order(name: str, order, n: int) -> np.ndarray:
    order = np.asarray(order)
    whole = order.dtype.kind in "iu" and order.shape == (n,)
    if not whole or not np.array_equal(np.sort(order), np.arange(n)):
        raise UserError(f"backfilling order {name!r} must be a permutation of 0 … {n - 1}")
    return order
