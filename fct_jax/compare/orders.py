"""Orders of re-embedding judged on a pair of models: which items to embed anew first.

Every order of `fct_jax.evaluate.orders.ORDERS` that can be computed of the given vectors is
followed along the translated gallery; the area under its curve has an interval over the queries,
and so has its difference from a random order.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.special import stdtrit

from fct_jax.errors import UserError
from fct_jax.evaluate.distances import as_labels
from fct_jax.evaluate.orders import ORDERS, Items, find_order
from fct_jax.evaluate.search import knn
from fct_jax.runtime.progress import Bar
from fct_jax.runtime.report import Curve, Panel, Report
from fct_jax.runtime.tables import Table, percent
from fct_jax.storage.files import check_free, new_directory
from fct_jax.storage.named import array_of, vectors_of
from fct_jax.upgrade.assessment.inputs import check_fit, held_out_rows, metric_of, open_queries
from fct_jax.upgrade.assessment.verdict import Bootstrap
from fct_jax.upgrade.inputs import FEWEST, paired, take
from fct_jax.upgrade.maps.loading import load_map
from fct_jax.upgrade.ways.relevance import per_query
from fct_jax.upgrade.ways.scores import Space

RANDOM = "random"
_REPEATS = 10  # random orders to average over; their spread is what chance alone gives
_CERTAIN = 0.99  # with which no order is called better or worse wrongly, however many are tried
_TARGETS = {"labels": "map", "judged pairs": "mrr"}  # else recall@10
_DEPTH = {"labels": 1000}  # results of a query that are judged, else 100
_NAMES = {"map": "mAP", "mrr": "MRR"}


@dataclasses.dataclass(frozen=True)
class OrderRow:
    """One order.

    Attributes:
      name: of the order.
      curve: (points,) the target at each share, as fractions.
      low, high: (points,) the 95 % interval around it.
      area: the area under the curve, with its 95 % interval.
      gain: the area minus that of a random order, with its 95 % interval.
      sure: 1 or −1 where the gain is above or below 0 although several orders were tried, else 0.
      oracle: whether the order needs the vectors that re-embedding is about to compute.
    """

    name: str
    curve: np.ndarray
    low: np.ndarray
    high: np.ndarray
    area: tuple[float, float, float]
    gain: tuple[float, float, float]
    sure: int
    oracle: bool


@dataclasses.dataclass(frozen=True)
class OrderComparison:
    """Orders beside each other.

    Attributes:
      rows: {order: `OrderRow`}, the largest area first.
      shares: of the gallery re-embedded, the points of the curves.
      by: evidence of relevance: "labels", "judged pairs" or "agreement" with the new model's own
        ten nearest.
      target: the metric of the curves.
      queries, items: how many were asked, and searched.
      skipped: {order: what nobody knows of these items}.
    """

    rows: dict[str, OrderRow]
    shares: tuple[float, ...]
    by: str
    target: str
    queries: int
    items: int
    skipped: dict[str, list[str]]

    def verdict(self) -> list[str]:
        """Return sentences: which order to take, and how much it gives."""
        usable = [row for row in self.rows.values() if not row.oracle and row.name != RANDOM]
        better = [row for row in usable if row.sure > 0]
        if not better:
            found = ["No order is better than a random one beyond chance: take any."]
        else:
            best = better[0]
            found = [
                f"Re-embed {find_order(best.name).text} ({best.name}): the area under the curve is "
                f"{_points(best.gain)} above that of a random order."
            ]
        worse = [row.name for row in usable if row.sure < 0]
        if worse:
            found.append(f"Worse than random: {', '.join(worse)}.")
        return found

    def table(self) -> Table:
        """Return the table, the best order first."""
        name = _NAMES.get(self.target, self.target)
        head = ["order", "area", "95 %", "against random, 95 %"]
        shown = [i for i, share in enumerate(self.shares) if 0 < share < 1]
        head += [f"at {100 * self.shares[i]:.0f} %" for i in shown]
        lines, bold = [], []
        for number, row in enumerate(self.rows.values()):
            area, low, high = row.area
            gain = "" if row.name == RANDOM else _signed(row.gain)
            label = f"{row.name} (oracle)" if row.oracle else row.name
            at = [percent(row.curve[i]) for i in shown]
            lines.append([label, percent(area), f"{percent(low)}–{percent(high)}", gain, *at])
            if row.sure > 0 and not row.oracle and not bold:
                bold.append(number)
        return Table(f"Orders of re-embedding, {name} (%)", head, lines, bold)

    def report(self, settings=None) -> Report:
        """Return the description that `Report.write` makes files of."""
        name = _NAMES.get(self.target, self.target)
        x = [100 * share for share in self.shares]
        curves = [
            Curve(
                row.name,
                x,
                (100 * row.curve).tolist(),
                (100 * row.low).tolist(),
                (100 * row.high).tolist(),
                line=ORDERS[row.name].line if row.name in ORDERS else "-",
            )
            for row in self.rows.values()
        ]
        weak = self.by == "agreement"
        by = "agreement with the new model's own ten nearest" if weak else self.by
        notes = [
            "area: the mean along the curve from the translated to the re-embedded gallery; its "
            "interval is bootstrapped over the queries, differences in pairs.",
            "An order is called better or worse only where that holds with 99 % for all orders "
            "together, beyond the queries' chance and beyond what random orders differ by.",
        ]
        if weak:
            notes.append(
                "Nothing says what is relevant: the curves show how fast the search becomes the "
                "new model's, not whether that model is better."
            )
        if any(row.oracle for row in self.rows.values()):
            notes.append("An oracle needs the vectors that re-embedding is about to compute.")
        if self.skipped:
            needs = (f"{name} (needs {' and '.join(of)})" for name, of in self.skipped.items())
            notes.append(f"Left out: {', '.join(needs)}.")
        return Report(
            title="Orders of re-embedding",
            verdict=self.verdict(),
            tables=[self.table()],
            panels=[Panel(name, curves, y_label=f"{name} (%)")],
            measured_on={
                "queries": f"{self.queries:,}",
                "gallery": f"{self.items:,} items that the map was not fitted on",
                "relevant": by,
            },
            notes=notes,
            settings=settings or {},
            data=self.to_json(),
        )

    def to_json(self) -> dict:
        """Return the numbers, as JSON holds them."""
        return {
            "by": self.by,
            "target": self.target,
            "shares": list(self.shares),
            "orders": {
                name: {
                    "curve": row.curve.tolist(),
                    "low": row.low.tolist(),
                    "high": row.high.tolist(),
                    "area": list(row.area),
                    "gain": list(row.gain),
                    "sure": row.sure,
                    "oracle": row.oracle,
                }
                for name, row in self.rows.items()
            },
            "skipped": self.skipped,
        }


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
      query_old, query_new: queries by both models; None: items query the others.
      labels, query_labels: (N,), (Q,) integers or ``.npy`` files; None: those of the sets.
      judged: judged pairs, as of ``assess``. Without them and without labels the curves show
        agreement with the new model's own ten nearest.
      traffic: (N,) how often each item of ``new`` is asked for, or a ``.npy`` file.
      orders: names; none: every order of the table that these items allow.
      shares: of the gallery re-embedded, from 0 to 1.
      max_queries: more queries are sampled down to so many.
      resamples: of the bootstrap.
      metric: "l2" or "cosine"; "": as meta.json says, cosine for unit vectors.
      seed: of all random choices.
      out: directory of the report to make; None: nothing is written.

    Raises:
      UserError: sets that do not fit the map or each other, unknown orders, or one that is named
        and lacks what it needs.

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
    check_fit(found, whole_old, whole_new)
    rng = np.random.default_rng(seed)
    unseen, seen, _ = held_out_rows(found, whole_old, rng)
    gallery_old, gallery_new = take(whole_old, unseen), take(whole_new, unseen)
    queries = open_queries(
        query_old, query_new, query_labels, gallery_old, gallery_new,
        Space.of(gallery_new.vectors, metric), judged,
    )  # fmt: skip
    kept = np.flatnonzero(queries.relevance.total > 0)
    if len(kept) < FEWEST:
        raise UserError(
            f"{len(kept)} queries have a relevant item; at least {FEWEST} are needed to judge by"
        )
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
            # One more result is needed, for the query itself.
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
    is_own[~is_own.any(axis=1), -1] = True  # it was not among them: the last one goes
    return rows[~is_own].reshape(len(rows), -1)


def _rows(orders, measured: dict, shares, bootstrap: Bootstrap) -> dict[str, OrderRow]:
    runs = {name: np.trapezoid(values, shares, axis=1) for name, values in measured.items()}
    measured = {name: values.mean(axis=0) for name, values in measured.items()}
    areas = {name: values.mean(axis=0) for name, values in runs.items()}
    others = [order.name for order in orders if order.name != RANDOM]
    sure = dict.fromkeys(areas, 0)
    if others:
        low, high = bootstrap.bounds(np.stack([areas[name] - areas[RANDOM] for name in others]))
        # The bootstrap draws queries; the luck of one permutation is a further source of chance,
        # which the random orders show.
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
    """Return how far one more random order may lie from the mean of (R,), for all ``orders``."""
    t = stdtrit(len(areas) - 1, 1 - (1 - _CERTAIN) / (2 * orders))
    return float(t * areas.std(ddof=1) * (1 + 1 / len(areas)) ** 0.5)


def _points(gain: tuple[float, float, float]) -> str:
    mean, low, high = (100 * value for value in gain)
    return f"{mean:.1f} points (95 % interval {low:.1f} to {high:.1f})"


def _signed(gain: tuple[float, float, float]) -> str:
    mean, low, high = (100 * value for value in gain)
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
