"""Orders of re-embedding, judged on a pair of models.

Every order of `fct_jax.evaluate.orders.ORDERS` that can be computed from the given vectors is
followed along the translated gallery. The area under its curve, and the difference from a random
order, have intervals over the queries.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.special import stdtrit

from fct_jax.compare.order_table import RANDOM, OrderComparison, OrderRow
from fct_jax.errors import UserError
from fct_jax.evaluate.distances import as_labels
from fct_jax.evaluate.orders import ORDERS, Items, find_order
from fct_jax.evaluate.search import knn
from fct_jax.runtime.progress import Bar
from fct_jax.storage.files import check_free, new_directory
from fct_jax.storage.named import array_of, vectors_of
from fct_jax.upgrade.assessment.inputs import check_fit, metric_of, open_queries, unfitted_rows
from fct_jax.upgrade.assessment.verdict import Bootstrap
from fct_jax.upgrade.inputs import FEWEST, paired, take
from fct_jax.upgrade.maps.loading import load_map
from fct_jax.upgrade.ways.relevance import per_query
from fct_jax.upgrade.ways.scores import Space
from fct_jax.upgrade.ways.traffic import counts_of

_REPEATS = 10  # random orders to average over; their spread is that of chance
_CERTAIN = 0.99  # probability that no order at all is wrongly called better or worse
_TARGETS = {"labels": "map", "judged pairs": "mrr"}  # otherwise recall@10
_DEPTH = {"labels": 1000}  # results judged per query, otherwise 100


def compare_orders(
    map,
    old,
    new,
    *,
    query_old=None,
    query_new=None,
    labels=None,
    query_labels=None,
    judged=None,
    traffic=None,
    orders: Sequence[str] = (),
    shares: Sequence[float] = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0),
    max_queries: int = 1000,
    resamples: int = 1000,
    metric: str = "",
    seed: int = 0,
    out=None,
) -> OrderComparison:
    """Compare orders of re-embedding on held-out items of the user's own pair of models.

    Args:
      map: a Map, or the directory of one, from old to new vectors.
      old, new: the same items embedded by both models: EmbeddingSets, arrays, files. Items that the
        map was fitted on are left out.
      query_old, query_new: queries by both models; None: each item queries the others.
      labels, query_labels: (N,), (Q,) integers or ``.npy`` files; None: those of the sets.
      judged: judged pairs, as of ``assess``. Without them and without labels the curves show
        agreement with the new model's own ten nearest.
      traffic: (N,) how often each item of ``new`` is asked for, or a ``.npy`` file of it; or a
        file that names items by their ids, as for ``traffic.read_traffic``.
      orders: names; none: every order of the table that these items allow.
      shares: re-embedded shares of the gallery, from 0 to 1.
      max_queries: more queries are sampled down to so many.
      resamples: number of resamples of the bootstrap.
      metric: "l2" or "cosine"; "": as meta.json says, cosine for unit vectors.
      seed: seed of all random choices.
      out: directory of the report to make; None: nothing is written.

    Raises:
      UserError: sets that do not match the map or each other, unknown orders, or a named order
        that lacks a fact it needs.

    Example:

        compare_orders("map", "test_old.npy", "test_new.npy", labels="labels.npy", out="orders")
    """
    shares = tuple(float(share) for share in shares)
    if len(shares) < 2 or list(shares) != sorted(set(shares)) or (shares[0], shares[-1]) != (0, 1):
        raise UserError(f"shares must grow from 0 to 1, not {list(shares)}")
    for name, value, least in (("max_queries", max_queries, FEWEST), ("resamples", resamples, 1)):
        if value < least:
            raise UserError(f"{name} must be {least} or more, not {value}")
    if out is not None:
        check_free(out)
    wanted = [find_order(name) for name in orders or ORDERS]
    given = vectors_of(new, "new")
    whole_old, whole_new = paired(vectors_of(old, "old"), given)
    traffic, notes = counts_of(traffic, given.ids)
    columns = {}
    for name, values in (("labels", labels), ("traffic", traffic)):
        values = array_of(values, name)
        if values is not None:
            if len(given) != len(whole_new):
                raise UserError(f"{name} need both sets to hold the same items")
            columns[name] = as_labels(name, values, len(given))
    if "labels" in columns:
        whole_new = dataclasses.replace(whole_new, labels=columns["labels"])
        whole_old = dataclasses.replace(whole_old, labels=columns["labels"])
    found = (load_map(map) if isinstance(map, str | Path) else map).forward().for_dim(whole_old.dim)
    metric, _ = metric_of(metric, whole_new)
    for side in (whole_old, whole_new):
        side.check_finite()
    check_fit(found, whole_old, whole_new)
    rng = np.random.default_rng(seed)
    unseen, seen, _ = unfitted_rows(found, whole_old, rng)
    gallery_old, gallery_new = take(whole_old, unseen), take(whole_new, unseen)
    queries = open_queries(
        query_old, query_new, query_labels, gallery_old, gallery_new,
        Space.of(gallery_new.vectors, metric), judged,
    )  # fmt: skip
    kept = np.flatnonzero(queries.relevance.total > 0)
    if len(kept) < FEWEST:
        raise UserError(f"{len(kept)} queries have a relevant item; at least {FEWEST} are needed")
    if len(kept) > max_queries:
        kept = np.sort(rng.permutation(kept)[:max_queries])
    queries = queries.of(kept)

    translated, uncertainty = found.transform(np.asarray(gallery_old.vectors, np.float32))
    items = Items(
        len(unseen),
        seed,
        metric,
        old=np.asarray(gallery_old.vectors, np.float32),
        new=np.asarray(gallery_new.vectors, np.float32),
        transformed=translated,
        uncertainty=uncertainty,
        traffic=columns["traffic"][unseen] if "traffic" in columns else None,
        training=np.asarray(whole_old.vectors[seen], np.float32) if len(seen) else None,
        # Labels are not passed as classes: they judge the orders and must not help one of them.
    )
    lacking = {order.name: order.lacks(items) for order in wanted}
    for name, lacks in lacking.items():
        if lacks and orders:
            raise UserError(f"order {name!r} needs {' and '.join(lacks)}")
    usable = [order for order in wanted if not lacking[order.name]]
    if RANDOM not in [order.name for order in usable]:
        usable.insert(0, find_order(RANDOM))

    by = queries.relevance.by
    target = _TARGETS.get(by, "recall@10")
    depth = min(_DEPTH.get(by, 100), len(unseen))
    measured = _measured(usable, items, queries, shares, target, depth)
    comparison = OrderComparison(
        _rows(usable, measured, shares, Bootstrap(len(kept), resamples, seed)),
        shares,
        by,
        target,
        len(kept),
        len(unseen),
        {name: lacks for name, lacks in lacking.items() if lacks},
        notes,
    )
    if out is not None:
        settings = {
            "map": str(map) if isinstance(map, str | Path) else found.fingerprint,
            "old": whole_old.name,
            "new": whole_new.name,
            "shares": shares,
            "max_queries": max_queries,
            "resamples": resamples,
            "metric": metric,
            "seed": seed,
        }
        with new_directory(out) as folder:
            comparison.report(settings).write(folder)
    return comparison


def _measured(orders, items: Items, queries, shares, target: str, depth: int) -> dict:
    """Return {order: (repeats, points, Q) of the target}; random orders are repeated."""
    repeats = {order.name: _REPEATS if order.name == RANDOM else 1 for order in orders}
    inner = [share for share in shares if 0 < share < 1]
    found = {}
    with Bar("comparing orders", 2 + len(inner) * sum(repeats.values()), "searches") as bar:

        def search(migrated) -> np.ndarray:
            gallery = np.where(migrated[:, None], items.new, items.transformed)
            # One more result is needed, because the query itself is one.
            more = depth + (queries.own is not None)
            _, rows = knn(queries.new, gallery, min(more, items.n), metric=items.metric)
            if queries.own is not None:
                rows = _without(rows, queries.own)
            bar.advance()
            return per_query(rows, queries.relevance)[target]

        none = np.zeros(items.n, bool)
        ends = {0.0: search(none), 1.0: search(~none)}
        for order in orders:
            runs = []
            for repeat in range(repeats[order.name]):
                rank = order.rank(dataclasses.replace(items, seed=items.seed + repeat))
                points = dict(ends)
                for share in inner:
                    migrated = none.copy()
                    migrated[rank[: int(share * items.n + 1e-9)]] = True
                    points[share] = search(migrated)
                runs.append(np.stack([points[share] for share in shares]))
            found[order.name] = np.stack(runs)
    return found


def _without(rows: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Return results (Q, K − 1) without each query's own row, in the same order."""
    is_own = rows == own[:, None]
    is_own[~is_own.any(axis=1), -1] = True  # if it is not among them, drop the last one
    return rows[~is_own].reshape(len(rows), -1)


def _rows(orders, measured: dict, shares, bootstrap: Bootstrap) -> dict[str, OrderRow]:
    runs = {name: np.trapezoid(values, shares, axis=1) for name, values in measured.items()}
    measured = {name: values.mean(axis=0) for name, values in measured.items()}
    areas = {name: values.mean(axis=0) for name, values in runs.items()}
    others = [order.name for order in orders if order.name != RANDOM]
    sure = dict.fromkeys(areas, 0)
    if others:
        low, high = bootstrap.bounds(np.stack([areas[name] - areas[RANDOM] for name in others]))
        # The bootstrap draws queries; a single permutation is a further source of chance, which
        # the random orders show.
        apart = _by_luck(runs[RANDOM].mean(axis=1), len(others))
        signs = (low - apart > 0).astype(int) - (high + apart < 0)
        sure |= zip(others, signs.tolist(), strict=True)

    def with_interval(values) -> tuple[float, float, float]:
        return float(np.mean(values)), *bootstrap.interval(values)

    made = []
    for order in orders:
        values = measured[order.name]
        intervals = np.array([bootstrap.interval(point) for point in values])
        made.append(
            OrderRow(
                order.name,
                values.mean(axis=1),
                intervals[:, 0],
                intervals[:, 1],
                with_interval(areas[order.name]),
                with_interval(areas[order.name] - areas[RANDOM]),
                int(sure[order.name]),
                order.oracle,
            )
        )
    return {row.name: row for row in sorted(made, key=lambda row: -row.area[0])}


def _by_luck(areas: np.ndarray, orders: int) -> float:
    """Bound the deviation of one more random order from the mean of (R,), for all ``orders``."""
    t = stdtrit(len(areas) - 1, 1 - (1 - _CERTAIN) / (2 * orders))
    return float(t * areas.std(ddof=1) * (1 + 1 / len(areas)) ** 0.5)
