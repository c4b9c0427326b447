"""The result of an assessment as a console table, Markdown, JSON and a figure."""

import dataclasses
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fct_jax.evaluate.orders import ORDERS
from fct_jax.runtime.report import Curve, Panel, Report
from fct_jax.runtime.tables import Table, percent
from fct_jax.storage.files import new_directory
from fct_jax.upgrade.assessment.points import Budget, Point
from fct_jax.upgrade.assessment.verdict import Verdict
from fct_jax.upgrade.assessment.world import KEEP, TRANSLATE, WHOLE
from fct_jax.upgrade.galleries.stored import TYPES
from fct_jax.upgrade.ways.calibration import Calibration
from fct_jax.upgrade.ways.relevance import METRICS

TITLES = {"map": "mAP", "mrr": "MRR", "ndcg@10": "nDCG@10"}
PLAIN = (KEEP, TRANSLATE, WHOLE)  # points outside the table of ways


@dataclasses.dataclass(frozen=True)
class Assessment:
    """The verdict and its evidence; `str` of it is the report in Markdown.

    Attributes:
      by: "labels", "judged pairs", "groups" or "agreement" (with the new model's own neighbours).
      target: the metric that decides.
      method: method of the map.
      queries, items: number of queries, and of items searched.
      points: every `Point`.
      verdict: the `Verdict`.
      budget: cost of embedding.
      notes: remarks for the reader.
      calibration: calibration for serving dual or fused.
      faithful: whether the figures are agreement with the new model, which is not quality.
      replays: {cascade: vectors made on demand, and the gap to the new model}.
      deep_enough: {cascade: the smallest depth with a gap of at most a point, or None}.
      cutoffs: {direction: the converted threshold}.
      stored: {type: recall@10 of the neighbours among translated vectors in float32}.
      settings: arguments of the call.
      baseline: point that gains are measured against, "keep" or "translate".
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
    faithful: bool = False
    replays: dict[str, dict] = dataclasses.field(default_factory=dict)
    deep_enough: dict[str, int | None] = dataclasses.field(default_factory=dict)
    cutoffs: dict[str, dict] = dataclasses.field(default_factory=dict)
    stored: dict[str, float] = dataclasses.field(default_factory=dict)
    settings: dict = dataclasses.field(default_factory=dict)
    baseline: str = KEEP

    @property
    def advice(self) -> str:
        """Return "upgrade", "keep" or "cannot tell"."""
        return self.verdict.advice

    @property
    def way(self) -> str | None:
        """Return the name of the advised way of serving, or None."""
        return self.verdict.way

    @property
    def order(self) -> str | None:
        """Return the name of the advised order of re-embedding, or None."""
        return self.verdict.order

    @property
    def share(self) -> float | None:
        """Return the advised share of the gallery to re-embed, or None."""
        return self.verdict.share

    @property
    def text(self) -> str:
        """Return the verdict in a few sentences."""
        return self.verdict.text

    @property
    def options(self) -> list[dict]:
        """Return one row for each point: way, settings, order, share, metrics, gain, cost."""
        return [dataclasses.asdict(point) for point in self.points]

    def curve(self, way: str, order: str, metric: str | None = None) -> list[tuple[float, float]]:
        """Return (share, value) along a path; the metric is the target unless another is named."""
        metric = metric or self.target
        return [
            (p.share, p.values[metric])
            for p in self.points
            if way in (p.way, p.label) and p.order == order
        ]

    def point(self, way: str, order: str = "", share: float | None = None) -> Point:
        """Return a point by its name. Raises KeyError."""
        for p in self.points:
            if way in (p.way, p.label) and p.order == order and share in (None, p.share):
                return p
        raise KeyError((way, order, share))

    def __str__(self) -> str:
        return self.markdown()

    def markdown(self) -> str:
        """Return the report in Markdown."""
        return self.report().markdown()

    def print(self) -> None:
        """Print the options, the target along every path, and the verdict."""
        console = Console()
        console.print(Text(self._head()))
        self.report(brief=True).show(console)

    def to_json(self) -> dict:
        """Return the content of ``report.json``, which ``fct-jax assess --json`` also prints."""
        return self.report().to_json()

    def write(self, folder: Path) -> None:
        """Write report.json, .md, .html, curves.png and calibration/, completely or not at all."""
        with new_directory(folder) as partial:
            self.report().write(partial)
            self.calibration.save(partial / "calibration")

    def report(self, brief: bool = False) -> Report:
        """Return the report from which all files are made; ``brief`` is for a console."""
        tables = [self._option_table(), self._path_table()]
        if self.replays:
            tables.append(self._replay_table(brief))
        if self.cutoffs:
            tables.append(self._cutoff_table())
        if self.stored:
            tables.append(self._stored_table())
        if not brief:
            tables.append(self._point_table())
        return Report(
            title="Assessment of an upgrade",
            verdict=[self.text],
            tables=tables,
            panels=[] if brief else self._panels(),
            measured_on={
                "queries": f"{self.queries:,}",
                "items": f"{self.items:,}",
                "judged by": self._judged(),
                "map": self.method,
            },
            cost={
                f"{p.label}, {100 * p.share:.0f} % re-embedded": said
                for p in self._best()
                if (said := _money(p.budget, self.budget))
            },
            notes=self.notes,
            settings=self.settings,
            data={
                "advice": self.advice,
                "way": self.way,
                "order": self.order,
                "share": self.share,
                "text": self.text,
                "by": self.by,
                "target": self.target,
                "measures": "faithfulness" if self.faithful else "quality",
                "method": self.method,
                "queries": self.queries,
                "items": self.items,
                "verdict": dataclasses.asdict(self.verdict),
                "budget": dataclasses.asdict(self.budget),
                "options": self.options,
                "replays": self.replays,
                "deep_enough": self.deep_enough,
                "cutoffs": self.cutoffs,
                "stored": self.stored,
            },
        )

    def _judged(self) -> str:
        return f"{self.by} with the new model's neighbours" if self.by == "agreement" else self.by

    def _head(self) -> str:
        return (
            f"{self.queries:,} queries in {self.items:,} items, judged by {self._judged()}; "
            f"the map is {self.method}; {title_of(self.target)} decides."
        )

    @property
    def _measured(self) -> str:
        """Return the name of the figures, for a heading."""
        name = title_of(self.target)
        return f"Faithfulness to the new model ({name}, %)" if self.faithful else f"{name} (%)"

    def _best(self) -> list[Point]:
        """Return the points outside the curves, and each way's advised or highest point."""
        found = [p for p in self.points if p.way in PLAIN]
        for way in dict.fromkeys(p.way for p in self.points if p.way not in PLAIN):
            mine = [p for p in self.points if p.way == way]
            highest = max(mine, key=lambda p: p.values[self.target])
            found.append(next((p for p in mine if self._is_advised(p)), highest))
        return found

    def _is_advised(self, p: Point) -> bool:
        return (p.way, p.settings, p.share) == (
            self.way, dict(self.verdict.settings), self.share,
        ) and self.order in (None, p.order)  # fmt: skip

    @property
    def _against(self) -> str:
        """Return the heading of the gains."""
        return f"against {self.baseline}, 95 %"

    def _option_table(self) -> Table:
        shown = self._best()
        columns = ["way of serving", "re-embedded", title_of(self.target), self._against,
                   "flips"]  # fmt: skip
        return self._table("Options: " + self._measured, columns, shown)

    def _point_table(self) -> Table:
        columns = ["way of serving", "re-embedded", *(title_of(m) for m in METRICS)]
        columns += [f"{title_of(self.target)}, 95 %", self._against, "flips"]
        if any(p.groups and p.groups["gap"] is not None for p in self.points):
            columns += ["group gap", "worst group"]
        return self._table("Every point (%)", columns, self.points)

    def _table(self, title: str, columns: list[str], points: list[Point]) -> Table:
        if self.budget.items_per_second:
            columns.append("time")
        if self.budget.cost_per_1000:
            columns.append(f"cost ({self.budget.currency})")
        rows = []
        for p in points:
            low, high = (100 * value for value in p.gain[1:])
            cells = {
                "way of serving": f"{p.label}, {p.order}" if p.order else p.label,
                "re-embedded": f"{100 * p.share:.0f} %",
                **{title_of(metric): percent(p.values[metric]) for metric in METRICS},
                f"{title_of(self.target)}, 95 %": "–".join(percent(v) for v in p.interval),
                self._against: f"{100 * p.gain[0]:+.1f} ({low:+.1f} to {high:+.1f})",
                "flips": percent(p.negative_flips),
                "time": _duration(p.budget["hours"]),
                f"cost ({self.budget.currency})": f"{p.budget['cost'] or 0:,.2f}",
            }
            if p.groups and p.groups["gap"] is not None:
                worst = p.groups["worst"]
                cells["group gap"] = percent(p.groups["gap"])
                cells["worst group"] = f"{worst[0]}: {percent(worst[1])}"
            rows.append([cells.get(column, "–") for column in columns])
        advised = [i for i, p in enumerate(points) if self._is_advised(p)]
        return Table(title, columns, rows, emphasised=advised)

    def _paths(self) -> list[tuple[str, str]]:
        """Return the paths along which the gallery is re-embedded."""
        shares: dict = {}
        for p in self.points:
            shares.setdefault(p.path, set()).add(p.share)
        return [path for path, found in shares.items() if len(found) > 1]

    def _path_table(self) -> Table:
        paths = self._paths()
        shares = sorted({p.share for p in self.points if p.path in paths})
        rows = [
            [", ".join(path), *(percent(value) for _, value in self.curve(*path))] for path in paths
        ]
        advised = (self.way, self.order)
        return Table(
            f"{self._measured} while the gallery is re-embedded",
            ["way of serving, order", *(f"{100 * share:.0f} %" for share in shares)],
            rows,
            emphasised=[i for i, path in enumerate(paths) if path == advised],
        )

    @property
    def _score_of_cascades(self) -> str:
        """Return the score of the best cascade."""
        mine = [p for p in self.points if "score" in p.settings]
        return max(mine, key=lambda p: p.values[self.target]).settings["score"]

    def _replay_table(self, brief: bool) -> Table:
        rows = []
        for label, replay in self.replays.items():
            if brief and not label.endswith(self._score_of_cascades):
                continue  # the embedded vectors do not depend on the score
            after = list(replay["share_after"].items())[-1 if brief else 0 :]
            said = [f"{100 * share:.1f} % after {n:,}" for n, share in after]
            low, high = 100 * replay["low"], 100 * replay["high"]
            rows.append(
                [
                    label,
                    f"{100 * replay['gap']:+.1f} ({low:+.1f} to {high:+.1f})",
                    percent(replay["reused"], 0),
                    f"{replay['mean']:.1f}",
                    f"{replay['median']:.0f}",
                    f"{replay['p99']:.0f}",
                    ", ".join(said),
                ]
            )
        columns = ["cascade", "behind new, 95 %", "reused (%)", "new per query", "median", "p99",
                   "re-embedded"]  # fmt: skip
        return Table("Cascades: new vectors made on demand", columns, rows, text=(0, 6))

    def _cutoff_table(self) -> Table:
        rows = [
            [
                name,
                f"{of['threshold']:.3f}",
                percent(of["agreement_before"]),
                percent(of["agreement_after"]),
                percent(of["recall_before"]),
                percent(of["recall_after"]),
                percent(of["gained"]),
                percent(of["lost"]),
            ]
            for name, of in self.cutoffs.items()
        ]
        columns = ["scores", "cut-off", "agree before", "after", "recall before", "after ",
                   "gained", "lost"]  # fmt: skip
        return Table("The service's cut-off (%)", columns, rows)

    def _stored_table(self) -> Table:
        rows = [
            [name, f"{TYPES[name].width:g}", percent(recall)]
            for name, recall in self.stored.items()
        ]
        columns = ["stored as", "bytes a dimension", "recall@10"]
        return Table("Neighbours of float32 that translated vectors keep (%)", columns, rows)

    def _panels(self) -> list[Panel]:
        levels = {p.way: 100 * p.values[self.target] for p in self.points if p.way in (KEEP, WHOLE)}
        curves = []
        for way, order in self._paths():
            on = [p for p in self.points if p.path == (way, order)]
            curves.append(
                Curve(
                    f"{way} · {order}",
                    [100 * p.share for p in on],
                    [100 * p.values[self.target] for p in on],
                    [100 * p.interval[0] for p in on],
                    [100 * p.interval[1] for p in on],
                    group=way,
                    line=ORDERS[order].line if order in ORDERS else "-",
                )
            )
        return [Panel(self._measured, curves, levels)] if curves else []


def title_of(metric: str) -> str:
    """Return the spelling of a metric for readers."""
    return TITLES.get(metric, metric.upper() if metric.startswith("cmc") else metric)


def _duration(hours: float | None) -> str:
    if hours is None:
        return ""
    if hours >= 48:
        return f"{hours / 24:,.1f} d"
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def _money(spent: dict, budget: Budget) -> str:
    parts = [_duration(spent["hours"])] if spent["hours"] else []
    if spent["cost"]:
        parts.append(f"{spent['cost']:,.2f} {budget.currency}")
    return ", ".join(parts)
