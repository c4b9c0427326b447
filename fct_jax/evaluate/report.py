"""The result of an evaluation as console tables, Markdown, JSON and a figure."""

import dataclasses
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fct_jax.evaluate.backfill import BackfillCurve
from fct_jax.evaluate.figure import draw_curves

TITLES = {"map": "mAP"}


@dataclasses.dataclass
class Report:
    """What an evaluation found; every number a fraction in [0, 1].

    Attributes:
      metric: "l2" or "cosine".
      ks: of CMC@k.
      map_at: R of mAP@R; 0: mAP over the full ranking.
      rows: {"old/old": {"cmc@1": …, "map": …}, …}: query model / gallery model.
      curves: {transformation: {order: curve}}.
      per_class, per_group: {row: {class or group: metrics}}, where asked for.
    """

    metric: str
    ks: tuple[int, ...]
    map_at: int
    rows: dict = dataclasses.field(default_factory=dict)
    curves: dict[str, dict[str, BackfillCurve]] = dataclasses.field(default_factory=dict)
    per_class: dict = dataclasses.field(default_factory=dict)
    per_group: dict = dataclasses.field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """Names of the metrics, in the order of the table."""
        return [*(f"cmc@{k}" for k in self.ks), "map"]

    def title(self, column: str) -> str:
        """A metric's name as people write it."""
        if column == "map":
            return f"mAP@{self.map_at}" if self.map_at else "mAP"
        return column.upper()

    def auc(self) -> dict[str, dict[str, float]]:
        """{"FCT · random": {"cmc@1": …}, …}: the mean of a curve's points."""
        return {
            f"{name} · {order}": {column: curve.auc(column) for column in curve.values}
            for name, curves in self.curves.items()
            for order, curve in curves.items()
        }

    def sections(self) -> list[tuple[str, str, dict]]:
        """(title, heading of the first column, rows) of each table."""
        found = [("Retrieval (%)", "query / gallery", self.rows)]
        if self.curves:
            found.append(("Backfilling, area under the curve (%)", "order", self.auc()))
        return found

    def show(self) -> None:
        """Prints the tables."""
        console = Console(width=None)
        for title, heading, rows in self.sections():
            table = Table(title=title, title_justify="left")
            table.add_column(heading)
            for column in self.columns:
                table.add_column(self.title(column), justify="right")
            for name, values in rows.items():
                table.add_row(name, *(f"{100 * values[column]:.1f}" for column in self.columns))
            console.print(table)

    def markdown(self) -> str:
        """The tables in Markdown."""
        parts = []
        for title, heading, rows in self.sections():
            head = [heading, *map(self.title, self.columns)]
            lines = [f"**{title}**", "", "| " + " | ".join(head) + " |"]
            lines.append("|---|" + "---:|" * len(self.columns))
            for name, values in rows.items():
                cells = [f"{100 * values[column]:.1f}" for column in self.columns]
                lines.append("| " + " | ".join([name, *cells]) + " |")
            parts.append("\n".join(lines) + "\n")
        return "\n".join(parts)

    def to_json(self) -> dict:
        """Everything, as JSON holds it."""
        curves = {
            name: {
                order: {
                    "fraction": curve.fraction.tolist(),
                    **{column: values.tolist() for column, values in curve.values.items()},
                }
                for order, curve in orders.items()
            }
            for name, orders in self.curves.items()
        }
        found = {
            "metric": self.metric,
            "map_at": self.map_at,
            "retrieval": self.rows,
            "auc": self.auc(),
            "curves": curves,
        }
        for name in ("per_class", "per_group"):
            if getattr(self, name):
                found[name] = getattr(self, name)
        return found


def write_report(report: Report, config: dict, folder: Path) -> None:
    """Writes results.json, config.json, table.md and, where there are curves, curve.png."""
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "results.json").write_text(json.dumps(report.to_json(), indent=2) + "\n")
    (folder / "table.md").write_text(report.markdown())
    if report.curves:
        labelled = {
            f"{name} · {order}": curve
            for name, curves in report.curves.items()
            for order, curve in curves.items()
        }
        levels = {name: report.rows[name] for name in ("old/old", "new/new")}
        titles = {column: report.title(column) for column in report.columns}
        draw_curves(labelled, levels, titles, folder / "curve.png")
