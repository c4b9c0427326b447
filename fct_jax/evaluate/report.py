"""The result of an evaluation: a verdict in sentences, tables and curves."""

import dataclasses

from fct_jax.evaluate.backfill import BackfillCurve
from fct_jax.evaluate.figure import panels_of
from fct_jax.runtime.report import Report
from fct_jax.runtime.tables import Table, percent


@dataclasses.dataclass
class Evaluation:
    """The rows and curves of an evaluation; every number is a fraction in [0, 1].

    Attributes:
      metric: "l2" or "cosine".
      ks: the k of CMC@k.
      map_at: R of mAP@R; 0: mAP over the full ranking.
      rows: {"old/old": {"cmc@1": …, "map": …}, …}: query model / gallery model.
      curves: {transformation: {order: curve}}.
      per_class, per_group: {row: {class or group: metrics}}, if requested.
      measured_on: {"gallery": …, "queries": …}, in words.
      notes: remarks for the reader.
    """

    metric: str
    ks: tuple[int, ...]
    map_at: int
    rows: dict = dataclasses.field(default_factory=dict)
    curves: dict[str, dict[str, BackfillCurve]] = dataclasses.field(default_factory=dict)
    per_class: dict = dataclasses.field(default_factory=dict)
    per_group: dict = dataclasses.field(default_factory=dict)
    measured_on: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """Return the names of the metrics, in the order of the table."""
        return [*(f"cmc@{k}" for k in self.ks), "map"]

    def title(self, column: str) -> str:
        """Return the spelling of a metric for readers."""
        if column == "map":
            return f"mAP@{self.map_at}" if self.map_at else "mAP"
        return column.upper()

    def auc(self) -> dict[str, dict[str, float]]:
        """Return {"FCT · random": {"cmc@1": …}, …}: the mean of a curve's points."""
        return {
            f"{name} · {order}": {column: curve.auc(column) for column in curve.values}
            for name, curves in self.curves.items()
            for order, curve in curves.items()
        }

    def tables(self) -> list[Table]:
        """Return the table of retrieval and, if there are curves, the table of their areas."""
        found = [self._table("Retrieval (%)", "query / gallery", self.rows)]
        if self.curves:
            title = "Backfilling, area under the curve (%)"
            found.append(self._table(title, "order", self.auc()))
        return found

    def _table(self, title: str, heading: str, rows: dict) -> Table:
        lines = [
            [name, *(percent(values[column]) for column in self.columns)]
            for name, values in rows.items()
        ]
        return Table(title, [heading, *map(self.title, self.columns)], lines)

    def verdict(self) -> list[str]:
        """Return sentences: whether the new model is better, and the gain without re-embedding."""
        if not {"old/old", "new/new"} <= self.rows.keys():
            return []
        name = self.title("map")
        old, new = (self.rows[row]["map"] for row in ("old/old", "new/new"))
        if not new > old:
            return [
                f"The new model retrieves no better than the old one ({name} {percent(new)} % "
                f"against {percent(old)} %): an upgrade has nothing to gain."
            ]
        found = [
            f"The new model retrieves better than the old one: {name} {percent(new)} % against "
            f"{percent(old)} %."
        ]
        for model, curves in self.curves.items():
            before = self.rows[f"{model} new/old"]["map"]
            if before > old:
                share = f"{100 * (before - old) / (new - old):.0f} % of the gain"
            else:
                share = "no better than keeping the old model"
            sentence = f"{model}: {percent(before)} % before anything is re-embedded, {share}"
            areas = {order: curve.auc("map") for order, curve in curves.items()}
            if {"random", "uncertainty"} <= areas.keys():
                more = 100 * (areas["uncertainty"] - areas["random"])
                sentence += (
                    f"; re-embedding by uncertainty instead of at random changes the area under "
                    f"the curve by {more:+.1f} points"
                )
            found.append(f"{sentence}.")
        return found

    def to_json(self) -> dict:
        """Return the numbers as JSON values."""
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

    def report(self, settings: dict | None = None) -> Report:
        """Return the description from which `Report.write` makes files."""
        labelled = {
            f"{name} · {order}": curve
            for name, curves in self.curves.items()
            for order, curve in curves.items()
        }
        levels = {name: self.rows[name] for name in ("old/old", "new/new") if name in self.rows}
        titles = {column: self.title(column) for column in self.columns}
        return Report(
            title="Evaluation of an upgrade",
            verdict=self.verdict(),
            tables=self.tables(),
            panels=panels_of(labelled, levels, titles) if labelled else (),
            measured_on=self.measured_on,
            notes=self.notes,
            settings=settings or {},
            data=self.to_json(),
        )
