"""Compatible methods side by side: tables, Markdown, JSON and hot-refresh curves."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from fct_jax.compare.measures import SHARES, compatibility_scores, update_gain
from fct_jax.errors import UserError
from fct_jax.evaluate.backfill import BackfillCurve
from fct_jax.evaluate.figure import draw_curves

OLD, ALONE = "old", "new alone"
SCORES = ("p_up", "p_comp", "p_1", "update_gain")


@dataclasses.dataclass
class CompatibleReport:
    """What a comparison found; mAPs, rates and gaps are fractions.

    Attributes:
      title: of the scenario ("extended-data", say).
      tests: {test set: {row: metrics}} as ``compatible_scoring.measure`` gives them. Rows are
        "old", "new alone" (trained without compatibility, M* of the scores) and the methods.
      shares: of the gallery, at which the curves were taken.
      runs: how many trainings the metrics are the mean of.
    """

    title: str
    tests: dict[str, dict[str, dict]]
    shares: Sequence[float] = SHARES
    runs: int = 1

    def __post_init__(self):
        """Checks that every test set has the same rows, with the two to compare with."""
        rows = [list(found) for found in self.tests.values()]
        if not rows or any(names != rows[0] for names in rows):
            raise UserError(f"{self.title}: every test set needs the same rows: {rows}")
        for needed in (OLD, ALONE):
            if needed not in rows[0]:
                raise UserError(f"{self.title}: a report needs the row {needed!r}")

    @property
    def rows(self) -> list[str]:
        """All but the old model, in the order of the table."""
        return [name for name in next(iter(self.tests.values())) if name != OLD]

    def column(self, row: str, name: str) -> np.ndarray:
        """(d,) one metric of a row over the test sets."""
        return np.array([found[row][name] for found in self.tests.values()])

    def scores(self) -> dict[str, dict[str, float]]:
        """{row: {"p_up", "p_comp", "p_1", "update_gain"}} over all test sets.

        All are None where the new model alone is no better or worse than the old one on some test
        set: there is no gain to compare with.
        """
        old, star = self.column(OLD, "self"), self.column(ALONE, "self")
        if (star == old).any() or (star == 0).any():
            return {row: dict.fromkeys(SCORES) for row in self.rows}
        found = {}
        for row in self.rows:
            own, cross = self.column(row, "self"), self.column(row, "cross")
            found[row] = compatibility_scores(own, cross, old, star)
            found[row]["update_gain"] = float(update_gain(cross, old, star).mean())
        return found

    def reached(self, row: str) -> tuple[int, int]:
        """In how many cases cross search is better than the old model's own, and of how many."""
        count = self.runs * len(self.tests)
        return round(float(np.mean(self.column(row, "reaches_old"))) * count), count

    def sections(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """(title, headings, rows of text) of each table."""
        more = [self._more(name) for name in self.tests]
        return [self._main(), self._details(), *(table for table in more if table[2])]

    def _main(self):
        names = list(self.tests)
        head = ["model"]
        for name in names:
            head += [f"{name} self", f"{name} cross"]
        head += ["cross > old", "P_up", "P_comp", "P_1"]
        old = [OLD]
        for name in names:
            old += [_percent(self.tests[name][OLD]["self"]), ""]
        lines = [[*old, "", "", "", ""]]
        scores = self.scores()
        for row in self.rows:
            line = [row]
            for name in names:
                line += [_percent(self.tests[name][row][key]) for key in ("self", "cross")]
            reached, count = self.reached(row)
            said = ("yes" if reached else "no") if count == 1 else f"{reached} of {count}"
            line += [said, *(_percent(scores[row][key]) for key in ("p_up", "p_comp", "p_1"))]
            lines.append(line)
        return f"{self.title}: mAP (%)", head, lines

    def _details(self):
        """Update gain, negative flips, gap between classes, mean of the hot-refresh curve."""
        head = ["model", "test set", "gain", "NFR", "relative NFR", "gap", "refresh"]
        lines = []
        for name, found in self.tests.items():
            for row in self.rows:
                values = found[row]
                old, star = found[OLD]["self"], found[ALONE]["self"]
                gain = None if star == old else float(update_gain(values["cross"], old, star)[0])
                rates = [_percent(values.get(key)) for key in ("nfr", "relative_nfr", "gap")]
                mean = _percent(float(np.mean(values["curve"])))
                lines.append([row, name, _percent(gain), *rates, mean])
        return f"{self.title}: details (%)", head, lines

    def _more(self, test: str):
        """What a test set is known for besides the mAP: CMC of persons, TAR at FAR of faces."""
        found = self.tests[test]
        names = [key.removeprefix("self ") for key in found[OLD] if key.startswith("self ")]
        lines = []
        for row in [OLD, *self.rows] if names else []:
            for kind in ("self",) if row == OLD else ("self", "cross"):
                values = [_percent(found[row][f"{kind} {name}"]) for name in names]
                lines.append([row, kind, *values])
        return f"{self.title}: {test} (%)", ["model", "search", *names], lines

    def show(self) -> None:
        """Prints the tables."""
        console = Console(width=None)
        for title, head, lines in self.sections():
            table = Table(title=title, title_justify="left")
            table.add_column(head[0], no_wrap=True)
            for heading in head[1:]:
                table.add_column(heading, justify="right")
            for line in lines:
                table.add_row(*line)
            console.print(table)

    def markdown(self) -> str:
        """The tables in Markdown."""
        parts = []
        for title, head, lines in self.sections():
            text = [f"**{title}**", "", "| " + " | ".join(head) + " |"]
            text.append("|---|" + "---:|" * (len(head) - 1))
            text += ["| " + " | ".join(line) + " |" for line in lines]
            parts.append("\n".join(text) + "\n")
        return "\n".join(parts)

    def to_json(self) -> dict:
        """Everything, as JSON holds it."""
        return {
            "title": self.title,
            "runs": self.runs,
            "shares": list(self.shares),
            "tests": self.tests,
            "scores": self.scores(),
        }

    def draw(self, path: Path) -> None:
        """Hot-refresh curves, a panel for each test set."""
        curves = {
            row: BackfillCurve(
                np.asarray(self.shares),
                {name: np.asarray(found[row]["curve"]) for name, found in self.tests.items()},
            )
            for row in self.rows
        }
        levels = {
            f"{row} self": {name: found[row]["self"] for name, found in self.tests.items()}
            for row in (OLD, ALONE)
        }
        draw_curves(curves, levels, {name: f"{name} mAP" for name in self.tests}, path)


def report_of(title: str, tests: Mapping, shares: Sequence[float] = SHARES) -> CompatibleReport:
    """The report of one run; marks the rows whose cross search beats the old model's own."""
    marked = {}
    for name, found in tests.items():
        old = found[OLD]["self"]
        marked[name] = {
            row: values if row == OLD else {**values, "reaches_old": float(values["cross"] > old)}
            for row, values in found.items()
        }
    return CompatibleReport(title, marked, shares)


def mean_report(reports: Sequence[CompatibleReport]) -> CompatibleReport:
    """The mean over runs of the same comparison with other seeds.

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
    tests = {
        name: {
            row: {
                key: np.mean([other.tests[name][row][key] for other in reports], axis=0).tolist()
                for key in values
            }
            for row, values in found.items()
        }
        for name, found in first.tests.items()
    }
    runs = sum(other.runs for other in reports)
    return CompatibleReport(first.title, tests, first.shares, runs)


def write_reports(reports: Sequence[CompatibleReport], folder: Path) -> None:
    """Writes results.json, table.md and a curve for each report, TITLE.png."""
    found = {report.title: report.to_json() for report in reports}
    (folder / "results.json").write_text(json.dumps(found, indent=2) + "\n")
    (folder / "table.md").write_text("\n".join(report.markdown() for report in reports))
    for report in reports:
        report.draw(folder / f"{report.title}.png")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
