"""Compatible models side by side: the verdict in words, tables and curves."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fct_jax.compare.measures import SHARES, compatibility_scores, update_gain
from fct_jax.errors import UserError
from fct_jax.evaluate.orders import ORDERS
from fct_jax.runtime.report import Curve, Panel, Report
from fct_jax.runtime.tables import Table, percent

OLD, ALONE = "old", "new alone"
SCORES = ("p_up", "p_comp", "p_1", "update_gain")
# curve of `scoring.measure`: order of re-embedding
CURVES = {"curve": "random", "curve by uncertainty": "uncertainty"}


@dataclasses.dataclass
class Comparison:
    """The figures of a comparison; mAPs, rates and gaps are fractions.

    Attributes:
      title: title of the scenario ("extended-data", say).
      tests: {test set: {row: metrics}} as ``scoring.measure`` gives them. Rows are "old", "new
        alone" (trained without compatibility, M* of the scores; it may be missing) and the models.
      shares: re-embedded shares of the gallery, the points of the curves.
      runs: number of trainings that the metrics average.
      spread: {test set: {row: {"self", "cross"}}}, standard deviations over these trainings.
    """

    title: str
    tests: dict[str, dict[str, dict]]
    shares: Sequence[float] = SHARES
    runs: int = 1
    spread: dict[str, dict[str, dict]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        """Raise UserError if test sets have different rows, or no row of the old model."""
        rows = [list(found) for found in self.tests.values()]
        if not rows or any(names != rows[0] for names in rows):
            raise UserError(f"{self.title}: every test set needs the same rows: {rows}")
        if OLD not in rows[0]:
            raise UserError(f"{self.title}: a report needs the row {OLD!r}")

    @property
    def rows(self) -> list[str]:
        """Return all rows but the old model's, in the order of the table."""
        return [name for name in next(iter(self.tests.values())) if name != OLD]

    def column(self, row: str, name: str) -> np.ndarray:
        """Return one metric of a row over the test sets, (d,); NaN if it is missing."""
        return np.array([found[row].get(name, np.nan) for found in self.tests.values()])

    def scores(self) -> dict[str, dict[str, float]]:
        """Return {row: {"p_up", "p_comp", "p_1", "update_gain"}} over all test sets.

        All are None if there is no gain to compare with: no new model alone, or one that is as
        good as the old one on some test set. They are also None for a row that cannot search the
        old gallery.
        """
        nothing = {row: dict.fromkeys(SCORES) for row in self.rows}
        if ALONE not in self.rows:
            return nothing
        old, star = self.column(OLD, "self"), self.column(ALONE, "self")
        if (star == old).any() or (star == 0).any():
            return nothing
        found = nothing
        for row in self.rows:
            own, cross = self.column(row, "self"), self.column(row, "cross")
            if not np.isnan(cross).any():
                found[row] = compatibility_scores(own, cross, old, star)
                found[row]["update_gain"] = float(update_gain(cross, old, star).mean())
        return found

    def reached(self, row: str) -> tuple[int, int]:
        """Count the cases in which cross search beats the old model's own, and all cases."""
        count = self.runs * len(self.tests)
        return round(float(np.nanmean(self.column(row, "reaches_old"))) * count), count

    def verdict(self) -> str:
        """Return a sentence: the models that beat the old model's search in the old gallery."""
        models = [row for row in self.rows if "cross" in next(iter(self.tests.values()))[row]]
        models = [row for row in models if row != ALONE]
        if not models:
            return f"{self.title}: there is no model that can search the old gallery."
        always = [row for row in models if self.reached(row)[0] == self.reached(row)[1]]
        best = max(models, key=lambda row: float(self.column(row, "cross").mean()))
        cross = percent(float(self.column(best, "cross").mean()))
        own = percent(float(self.column(OLD, "self").mean()))
        several = len(self.tests) * self.runs > 1
        most = (
            f"{best} finds most in the old gallery, mAP {cross} % against {own} % of the old model"
            f"{' on average' if several else ''}."
        )
        if not always:
            where = " everywhere" if several else ""
            return f"{self.title}: no model beats the old one's own search{where}; {most}"
        names = ", ".join(always) if len(always) < len(models) else f"all {len(models)} models"
        if len(models) == 1:
            names = always[0]
        verb = "beats" if len(always) == 1 else "beat"
        return f"{self.title}: {names} {verb} the old model's own search in its gallery; {most}"

    def tables(self) -> list[Table]:
        """Return the main table, the details, and one for each test set that has more metrics."""
        more = [self._more(name) for name in self.tests]
        return [self._main(), self._details(), *(table for table in more if table.rows)]

    def _cell(self, test: str, row: str, key: str) -> str:
        text = percent(self.tests[test][row].get(key))
        spread = self.spread.get(test, {}).get(row, {}).get(key)
        return text if spread is None or not text else f"{text} ± {percent(spread)}"

    def _main(self) -> Table:
        names = list(self.tests)
        head = ["model"]
        for name in names:
            head += [f"{name} self", f"{name} cross"]
        head += ["cross > old", "P_up", "P_comp", "P_1"]
        old = [OLD]
        for name in names:
            old += [self._cell(name, OLD, "self"), ""]
        lines = [[*old, "", "", "", ""]]
        scores = self.scores()
        for row in self.rows:
            line = [row]
            for name in names:
                line += [self._cell(name, row, key) for key in ("self", "cross")]
            line += [self._reached(row), *(percent(scores[row][key]) for key in SCORES[:3])]
            lines.append(line)
        spread = f", mean ± standard deviation of {self.runs} seeds" if self.spread else ""
        return Table(f"{self.title}: mAP (%){spread}", head, lines)

    def _reached(self, row: str) -> str:
        if np.isnan(self.column(row, "reaches_old")).all():
            return ""
        reached, count = self.reached(row)
        return ("yes" if reached else "no") if count == 1 else f"{reached} of {count}"

    def _details(self) -> Table:
        """Update gain, negative flips, gap between classes, means of the curves."""
        head = ["model", "test set", "gain", "NFR", "relative NFR", "gap", "refresh"]
        by_uncertainty = any(
            "curve by uncertainty" in values
            for found in self.tests.values()
            for values in found.values()
        )
        lines = []
        for name, found in self.tests.items():
            star = found.get(ALONE, {}).get("self")
            for row in self.rows:
                values = found[row]
                old, cross, gain = found[OLD]["self"], values.get("cross"), None
                if None not in (star, cross) and star != old:
                    gain = float(update_gain(cross, old, star)[0])
                rates = [percent(values.get(key)) for key in ("nfr", "relative_nfr", "gap")]
                means = [
                    percent(float(np.mean(values[key])) if key in values else None)
                    for key in CURVES
                ]
                lines.append([row, name, percent(gain), *rates, *means[: 1 + by_uncertainty]])
        if by_uncertainty:
            head.append("refresh, by uncertainty")
        return Table(f"{self.title}: details (%)", head, lines, text=(0, 1))

    def _more(self, test: str) -> Table:
        """Return a test set's metrics besides the mAP: CMC of persons, TAR of faces."""
        found = self.tests[test]
        names = [key.removeprefix("self ") for key in found[OLD] if key.startswith("self ")]
        lines = []
        for row in [OLD, *self.rows] if names else []:
            for kind in ("self", "cross"):
                values = [percent(found[row].get(f"{kind} {name}")) for name in names]
                if any(values):
                    lines.append([row, kind, *values])
        return Table(f"{self.title}: {test} (%)", ["model", "search", *names], lines, text=(0, 1))

    def markdown(self) -> str:
        """Return the tables in Markdown."""
        return "\n\n".join(table.markdown() for table in self.tables()) + "\n"

    def to_json(self) -> dict:
        """Return everything as JSON values."""
        return {
            "runs": self.runs,
            "shares": list(self.shares),
            "tests": self.tests,
            "spread": self.spread,
            "scores": self.scores(),
        }

    def panels(self) -> list[Panel]:
        """Return hot-refresh curves, a panel for each test set."""
        return [
            Panel(
                f"{self.title}: {name}",
                [
                    self._curve(row, found[row][key], order)
                    for row in self.rows
                    for key, order in CURVES.items()
                    if key in found[row]
                ],
                {f"{row} self": 100 * found[row]["self"] for row in (OLD, ALONE) if row in found},
                y_label="mAP (%)",
            )
            for name, found in self.tests.items()
        ]

    def _curve(self, row: str, values, order: str) -> Curve:
        shares = [100 * share for share in self.shares]
        line = "-" if order == "random" else ORDERS[order].line
        name = row if order == "random" else f"{row}, by {order}"
        if order == "uncertainty":
            line = "--"
        return Curve(name, shares, [100 * v for v in values], group=row, line=line)


def report_of(title: str, tests: Mapping, shares: Sequence[float] = SHARES) -> Comparison:
    """Return the comparison of one run; marks rows whose cross search beats the old model's own."""
    marked = {}
    for name, found in tests.items():
        old = found[OLD]["self"]
        marked[name] = {
            row: {**values, "reaches_old": float(values["cross"] > old)}
            if "cross" in values and row != OLD
            else dict(values)
            for row, values in found.items()
        }
    return Comparison(title, marked, shares)


def mean_report(reports: Sequence[Comparison]) -> Comparison:
    """Return the mean over runs of the same comparison with other seeds, and their spread.

    Raises UserError where titles, test sets, rows or shares differ.
    """
    first = reports[0]
    for other in reports[1:]:
        same = (other.title, other.rows, list(other.tests)) == (
            first.title,
            first.rows,
            list(first.tests),
        ) and list(other.shares) == list(first.shares)
        if not same:
            raise UserError(f"the runs of {first.title} do not hold the same rows and test sets")

    def over(runs: Sequence[Comparison], reduce, wanted=None) -> dict:
        return {
            name: {
                row: {
                    key: reduce([other.tests[name][row][key] for other in runs], axis=0).tolist()
                    for key in values
                    if wanted is None or key in wanted
                }
                for row, values in found.items()
            }
            for name, found in first.tests.items()
        }

    def deviation(values, axis):
        return np.std(values, axis=axis, ddof=1)

    spread = over(reports, deviation, ("self", "cross")) if len(reports) > 1 else {}
    runs = sum(other.runs for other in reports)
    return Comparison(first.title, over(reports, np.mean), first.shares, runs, spread)


def described(
    comparisons: Sequence[Comparison],
    settings: Mapping | None = None,
    measured_on: Mapping[str, str] | None = None,
) -> Report:
    """Return the report of several comparisons together."""
    notes = []
    if any(c.runs == 1 for c in comparisons):
        notes.append("Each model is one training: differences of a few points may be the seed's.")
    notes.append(
        "self: the model searches its own gallery; cross: its queries search the old gallery, "
        "translated if the model is a transformation; refresh: the mean of the curve."
    )
    return Report(
        title="Comparison of compatible models",
        verdict=[comparison.verdict() for comparison in comparisons],
        tables=[table for comparison in comparisons for table in comparison.tables()],
        panels=[panel for comparison in comparisons for panel in comparison.panels()],
        measured_on=measured_on or {},
        notes=notes,
        settings=settings or {},
        data={"comparisons": {c.title: c.to_json() for c in comparisons}},
    )


def write_reports(comparisons: Sequence[Comparison], folder: Path, **more) -> Report:
    """Write the report of several comparisons to a folder; ``more``: arguments of `described`."""
    report = described(comparisons, **more)
    report.write(folder)
    return report
