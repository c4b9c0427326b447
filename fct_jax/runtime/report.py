"""A description of a result, written as JSON, Markdown, an HTML page and a picture."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fct_jax.runtime.report_html import flat, page, plain
from fct_jax.runtime.tables import Table

FILES = ("report.json", "report.md", "report.html", "curves.png")


@dataclass(frozen=True)
class Curve:
    """A line of a `Panel`.

    Attributes:
      name: name in the legend.
      x, y: (P,) in the units of the panel's axes, x ascending.
      low, high: (P,) of an interval around y, or both None.
      group: curves of one group share a colour, in all panels; "" makes the name the group.
      line: style as Matplotlib writes it: "-", "--", ":", "-.", or (0, (drawn, left out, …)).
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    group: str = ""
    line: str | tuple = "-"


@dataclass(frozen=True)
class Panel:
    """Curves over one pair of axes.

    Attributes:
      title: the quantity on the y axis ("mAP").
      curves: the lines.
      levels: {name: y}, drawn as horizontal lines ("old/old").
      x_label, y_label: names of the axes, with their units.
    """

    title: str
    curves: Sequence[Curve]
    levels: Mapping[str, float] = field(default_factory=dict)
    x_label: str = "gallery re-embedded (%)"
    y_label: str = "%"


@dataclass(frozen=True)
class Report:
    """The content of a report; `write` makes its files.

    Attributes:
      title: title of the report, one line.
      verdict: sentences, the most important first.
      tables: `Table`s, in order.
      panels: curves; without any there is no curves.png.
      measured_on: {"gallery": "1,797 images of digits", …}, the data of the figures.
      cost: {"re-embed all": "3.2 h, 120 USD", …}, time and money.
      notes: remarks for the reader.
      settings: settings of the command; sections may be nested.
      data: further keys of report.json for programs, which may replace ``verdict`` and the
        other keys of this class.
    """

    title: str
    verdict: Sequence[str] = ()
    tables: Sequence[Table] = ()
    panels: Sequence[Panel] = ()
    measured_on: Mapping[str, str] = field(default_factory=dict)
    cost: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    data: Mapping[str, object] = field(default_factory=dict)

    def show(self, console: Console | None = None) -> None:
        """Print tables, notes and, at the end, where it stays visible, the verdict."""
        console = console or Console()
        for table in self.tables:
            table.show(console)
        for note in self.notes:
            console.print(Text(f"Note: {note}"))
        for number, sentence in enumerate(self.verdict):
            console.print(Text(sentence), style=None if number else "bold")

    def markdown(self) -> str:
        """Return the report in Markdown."""
        parts = [f"# {self.title}"]
        if self.verdict:
            parts.append(" ".join([f"**{self.verdict[0]}**", *self.verdict[1:]]))
        parts.append(_listed(self.measured_on))
        parts += [table.markdown() for table in self.tables]
        if self.panels:
            parts.append("![curves](curves.png)")
        if self.cost:
            parts.append(f"## Cost\n\n{_listed(self.cost)}")
        if self.notes:
            parts.append("## Notes\n\n" + "\n".join(f"- {note}" for note in self.notes))
        if self.settings:
            rows = list(flat(self.settings).items())
            table = Table("Settings of the command", ["key", "value"], rows, text=(0, 1))
            parts.append(f"## Settings\n\n{table.markdown()}")
        return "\n\n".join(part for part in parts if part) + "\n"

    def to_json(self) -> dict:
        """Return the content of report.json; NaN becomes None."""
        own = {
            "title": self.title,
            "verdict": list(self.verdict),
            "measured_on": dict(self.measured_on),
            "cost": dict(self.cost),
            "notes": list(self.notes),
        }
        return plain({**own, **self.data, "settings": self.settings})

    def write(self, folder: Path) -> None:
        """Write `FILES` to an existing folder; without panels there is no picture."""
        folder = Path(folder)
        text = json.dumps(self.to_json(), indent=2, allow_nan=False)
        (folder / "report.json").write_text(text + "\n")
        (folder / "report.md").write_text(self.markdown())
        (folder / "report.html").write_text(page(self))
        if self.panels:
            from fct_jax.runtime.report_picture import draw  # Matplotlib takes its time

            draw(self.panels, folder / "curves.png")


def _listed(facts: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())
