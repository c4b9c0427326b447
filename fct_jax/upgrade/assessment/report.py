"""What an assessment found, as a console table, Markdown, JSON and a figure."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from fct_jax.evaluate.backfill import BackfillCurve
from fct_jax.evaluate.figure import draw_curves
from fct_jax.storage.files import new_directory
from fct_jax.upgrade.assessment.verdict import Bootstrap, Verdict
from fct_jax.upgrade.ways.calibration import Calibration
from fct_jax.upgrade.ways.relevance import METRICS

TITLES = {"map": "mAP", "mrr": "MRR", "ndcg@10": "nDCG@10"}
_SMALLEST_GROUP = 10  # queries; fewer say nothing


@dataclasses.dataclass(frozen=True)
class Budget:
    """What embedding costs: ``items`` of the whole gallery, items a second, money per 1,000."""

    items: int
    items_per_second: float = 0.0
    cost_per_1000: float = 0.0
    currency: str = "USD"

    def of(self, share: float) -> dict:
        """{"items", "hours", "cost"} of re-embedding a share; None where no rate or price is."""
        count = int(share * self.items)
        hours = count / self.items_per_second / 3600 if self.items_per_second else None
        cost = count * self.cost_per_1000 / 1000 if self.cost_per_1000 else None
        return {"items": count, "hours": hours, "cost": cost}


@dataclasses.dataclass(frozen=True)
class Point:
    """One way of serving with a share of the gallery re-embedded.

    Attributes:
      way: "keep", "translate", "re-embed all", or "translated", "dual", "fused" on a curve.
      order: "uncertainty", "random" or "certainty" on a curve, else "".
      share: re-embedded.
      values: every metric, as fractions.
      interval: of the target, 95 %.
      gain: of the target against keep, with its 95 % interval.
      negative_flips: share of all queries whose first result was relevant with keep and is not.
      groups: {group: target} and their gap, where groups are given.
      budget: items, hours and cost.
    """

    way: str
    order: str
    share: float
    values: dict[str, float]
    interval: tuple[float, float]
    gain: tuple[float, float, float]
    negative_flips: float
    groups: dict | None
    budget: dict

    @classmethod
    def of(
        cls,
        name,
        values: dict,
        keep: dict,
        target: str,
        bootstrap: Bootstrap,
        budget: Budget,
        groups,
    ) -> "Point":
        """Of the values (Q,) of each metric here and with keep; name is (way, order, share)."""
        change = values[target] - keep[target]
        flips = (keep["cmc@1"] > 0) & (values["cmc@1"] == 0)
        return cls(
            *name,
            values={metric: float(np.mean(of)) for metric, of in values.items()},
            interval=bootstrap.interval(values[target]),
            gain=(float(np.mean(change)), *bootstrap.interval(change)),
            negative_flips=float(flips.mean()),
            groups=None if groups is None else group_values(values[target], groups),
            budget=budget.of(name[2]),
        )

    @property
    def label(self) -> str:
        """For a table."""
        return f"{self.way}, {self.order}" if self.order else self.way


def group_values(values: np.ndarray, groups: np.ndarray) -> dict:
    """{"gap": best − worst, "best": [group, value], "worst": …, "values": {group: mean}}.

    Groups of fewer than 10 queries are left out; gap is None where fewer than two are left.
    """
    names, counts = np.unique(groups, return_counts=True)
    means = {
        str(name): float(values[groups == name].mean())
        for name, count in zip(names, counts, strict=True)
        if count >= _SMALLEST_GROUP
    }
    if len(means) < 2:
        return {"gap": None, "best": None, "worst": None, "values": means}
    best, worst = max(means, key=means.get), min(means, key=means.get)
    return {
        "gap": means[best] - means[worst],
        "best": [best, means[best]],
        "worst": [worst, means[worst]],
        "values": means,
    }


@dataclasses.dataclass(frozen=True)
class Assessment:
    """The verdict and what it rests on; `str` of it is the report in Markdown.

    Attributes:
      by: "labels", "judged pairs" or "agreement" (with the new model's own neighbours).
      target: the metric that decides.
      method: of the map.
      queries, items: how many were searched with, and in.
      points: every `Point`.
      verdict: the `Verdict`.
      budget: what embedding costs.
      notes: what the reader should know.
      calibration: for serving dual or fused.
    """

    by: str
    target: str
    method: str
    queries: int
    items: int
    points: list[Point]
    verdict: Verdict
    budget: Budget
    notes: list[str]
    calibration: Calibration

    def curve(self, way: str, order: str, metric: str | None = None) -> list[tuple[float, float]]:
        """(share, value) along a path; the target's, unless another metric is named."""
        metric = metric or self.target
        return [
            (p.share, p.values[metric]) for p in self.points if (p.way, p.order) == (way, order)
        ]

    def point(self, way: str, order: str = "", share: float | None = None) -> Point:
        """A point by its name."""
        for p in self.points:
            if (p.way, p.order) == (way, order) and share in (None, p.share):
                return p
        raise KeyError((way, order, share))

    def __str__(self) -> str:
        return self.markdown()

    def _head(self) -> str:
        by = f"{self.by} with the new model's neighbours" if self.by == "agreement" else self.by
        return (
            f"{self.queries} queries in {self.items} items, judged by {by}; "
            f"the map is {self.method}; {_title(self.target)} decides."
        )

    def _columns(self) -> list[str]:
        columns = ["way of serving", "re-embedded", *(_title(m) for m in METRICS)]
        columns += [f"{_title(self.target)}, 95 %", "against keep, 95 %", "negative flips"]
        if any(p.groups and p.groups["gap"] is not None for p in self.points):
            columns += ["group gap", "worst group"]
        if self.budget.items_per_second:
            columns.append("time")
        if self.budget.cost_per_1000:
            columns.append(f"cost ({self.budget.currency})")
        return columns

    def _cells(self, point: Point) -> list[str]:
        change, low, high = (100 * value for value in point.gain)
        cells = [point.label, f"{100 * point.share:.0f} %"]
        cells += [f"{100 * point.values[metric]:.1f}" for metric in METRICS]
        cells += [
            f"{100 * point.interval[0]:.1f}–{100 * point.interval[1]:.1f}",
            f"{change:+.1f} ({low:+.1f} to {high:+.1f})",
            f"{100 * point.negative_flips:.1f}",
        ]
        if "group gap" in self._columns():
            gap, worst = point.groups["gap"], point.groups["worst"]
            cells += (
                ["–", "–"]
                if gap is None
                else [f"{100 * gap:.1f}", f"{worst[0]}: {100 * worst[1]:.1f}"]
            )
        if self.budget.items_per_second:
            cells.append(_duration(point.budget["hours"]))
        if self.budget.cost_per_1000:
            cells.append(f"{point.budget['cost']:,.2f}")
        return cells

    def print(self) -> None:
        """The options, the target along every path, and the verdict; the rest is in the report."""
        console = Console()
        console.print(self._head())
        columns = self._columns()
        # A terminal is narrow: the metric that decides stands for all.
        shown = [i for i, name in enumerate(columns) if name not in map(_title, METRICS)]
        shown.insert(2, columns.index(_title(self.target)))
        advised = self.verdict.way, self.verdict.order, self.verdict.share
        table = Table(title="Options (%)")
        for i in shown:
            table.add_column(columns[i], justify="left" if i == 0 else "right")
        for point in self.points:
            best = (point.way, point.order, point.share) == advised
            if best or not point.order:
                cells = self._cells(point)
                table.add_row(*(cells[i] for i in shown), style="bold" if best else None)
        console.print(table)

        paths = list(dict.fromkeys((p.way, p.order) for p in self.points if p.order))
        shares = sorted({p.share for p in self.points if p.order})
        table = Table(title=f"{_title(self.target)} (%) while the gallery is re-embedded")
        table.add_column("way of serving, order")
        for share in shares:
            table.add_column(f"{100 * share:.0f} %", justify="right")
        for path in paths:
            cells = [f"{100 * value:.1f}" for _, value in self.curve(*path)]
            table.add_row(", ".join(path), *cells, style="bold" if path == advised[:2] else None)
        console.print(table)
        for note in self.notes:
            console.print(f"Note: {note}")
        console.print(self.verdict.text, style="bold")

    def markdown(self) -> str:
        """The report in Markdown."""
        columns = self._columns()
        lines = [
            "# Assessment of an upgrade",
            "",
            f"**{self.verdict.text}**",
            "",
            self._head(),
            "",
            *(f"- {note}" for note in self.notes),
            *([""] if self.notes else []),
            "Percent; intervals are bootstrapped over the queries.",
            "",
            "| " + " | ".join(columns) + " |",
            "|---" + "|---:" * (len(columns) - 1) + "|",
            *("| " + " | ".join(self._cells(point)) + " |" for point in self.points),
        ]
        return "\n".join(lines) + "\n"

    def to_json(self) -> dict:
        """Everything but the calibration, as JSON holds it."""
        return {
            "judged_by": self.by,
            "target": self.target,
            "method": self.method,
            "queries": self.queries,
            "items": self.items,
            "verdict": dataclasses.asdict(self.verdict),
            "budget": dataclasses.asdict(self.budget),
            "notes": self.notes,
            "points": [dataclasses.asdict(point) for point in self.points],
        }

    def write(self, folder: Path) -> None:
        """Writes report.md, report.json, curves.png and calibration/, whole or not at all."""
        with new_directory(folder) as partial:
            (partial / "report.md").write_text(self.markdown())
            (partial / "report.json").write_text(json.dumps(self.to_json(), indent=2) + "\n")
            self.calibration.save(partial / "calibration")
            self._draw(partial / "curves.png")

    def _draw(self, path: Path) -> None:
        curves = {}
        for way, order in dict.fromkeys((p.way, p.order) for p in self.points if p.order):
            on = [p for p in self.points if (p.way, p.order) == (way, order)]
            curves[f"{way} · {order}"] = BackfillCurve(
                np.array([p.share for p in on]),
                {metric: np.array([p.values[metric] for p in on]) for metric in METRICS},
            )
        levels = {name: self.point(name).values for name in ("keep", "re-embed all")}
        shown = dict.fromkeys([self.target, "cmc@1", "recall@10"])
        draw_curves(curves, levels, {metric: _title(metric) for metric in shown}, path)


def _title(metric: str) -> str:
    return TITLES.get(metric, metric.upper() if metric.startswith("cmc") else metric)


def _duration(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} d"
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
