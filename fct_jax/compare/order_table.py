"""The result of comparing orders of re-embedding: a verdict, a table and a report."""

import dataclasses

import numpy as np

from fct_jax.evaluate.orders import ORDERS, find_order
from fct_jax.runtime.report import Curve, Panel, Report
from fct_jax.runtime.tables import Table, percent

RANDOM = "random"
_NAMES = {"map": "mAP", "mrr": "MRR"}


@dataclasses.dataclass(frozen=True)
class OrderRow:
    """One order.

    Attributes:
      name: name of the order.
      curve: (points,) the target at each share, as fractions.
      low, high: (points,) the 95 % interval around it.
      area: the area under the curve, with its 95 % interval.
      gain: the area minus that of a random order, with its 95 % interval.
      sure: 1 or −1 if the gain is above or below 0 with several orders tried, otherwise 0.
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
    """Orders side by side.

    Attributes:
      rows: {order: `OrderRow`}, the largest area first.
      shares: re-embedded shares of the gallery, the points of the curves.
      by: evidence of relevance: "labels", "judged pairs" or "agreement" with the new model's own
        ten nearest.
      target: the metric of the curves.
      queries, items: number of queries, and of items searched.
      skipped: {order: facts that it needs and that are unknown}.
      notes: sentences on what was left out of the data.
    """

    rows: dict[str, OrderRow]
    shares: tuple[float, ...]
    by: str
    target: str
    queries: int
    items: int
    skipped: dict[str, list[str]]
    notes: tuple[str, ...] = ()

    def verdict(self) -> list[str]:
        """Return sentences: the order to use, and its gain."""
        usable = [row for row in self.rows.values() if not row.oracle and row.name != RANDOM]
        better = [row for row in usable if row.sure > 0]
        if not better:
            found = ["No order is significantly better than a random one: use any."]
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
        """Return the description from which `Report.write` makes files."""
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
            *self.notes,
            "area: the mean along the curve from the translated to the re-embedded gallery; its "
            "interval is bootstrapped over the queries, differences in pairs.",
            "An order is called better or worse only if this holds with 99 % for all orders "
            "together, beyond the chance of the queries and the spread of random orders.",
        ]
        if weak:
            notes.append(
                "Nothing says which items are relevant: the curves show how fast the search "
                "becomes the new model's, not whether that model is better."
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
        """Return the numbers as JSON values."""
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


def _points(gain: tuple[float, float, float]) -> str:
    mean, low, high = (100 * value for value in gain)
    return f"{mean:.1f} points (95 % interval {low:.1f} to {high:.1f})"


def _signed(gain: tuple[float, float, float]) -> str:
    mean, low, high = (100 * value for value in gain)
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
