"""A table for a console, for Markdown and for HTML."""

import html
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

LONGEST_TEXT = 40  # characters of a text column on a console; longer text is wrapped
_BETWEEN = 2  # spaces between two columns


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
      title: heading of the table, with the unit if all cells share it ("Retrieval (%)").
      columns: (C,) headings.
      rows: (R, C) formatted cells (`percent`); "" for empty ones.
      emphasised: indices of the rows that a reader should see first.
      text: indices of the text columns, which are aligned to the left and wrapped; all others
        hold numbers.

    Example:
      >>> table = Table("Retrieval (%)", ["model", "mAP"], [["old", "30.1"], ["new", "45.0"]])
      >>> print(table.markdown())
      **Retrieval (%)**
      <BLANKLINE>
      | model | mAP |
      |---|---:|
      | old | 30.1 |
      | new | 45.0 |
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    emphasised: Collection[int] = ()
    text: Collection[int] = (0,)

    def __post_init__(self):
        """Raise ValueError if a row has more or fewer cells than there are columns."""
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.title}: {len(self.columns)} columns, but the row {row}")

    def show(self, console: Console | None = None) -> None:
        """Print the table; columns that do not fit continue below, with the first column again."""
        console = console or Console()
        widths = [self._least_width(column, console.width) for column in range(len(self.columns))]
        for number, part in enumerate(_parts(widths, console.width)):
            title = f"{self.title}, continued" if number else self.title
            console.print(Text(title, style="italic"))
            console.print(self._rich(part, widths, console.width))
            console.print()

    def _least_width(self, column: int, available: int) -> int:
        heading, cells = self.columns[column], [str(row[column]) for row in self.rows]
        if column in self.text:
            longest = max(map(cell_len, [heading, *cells]))
            return min(longest, LONGEST_TEXT, max(available // 3, 8))
        return max(map(cell_len, [*heading.split(), *cells, ""]))

    def _rich(self, part: list[int], widths: list[int], available: int) -> RichTable:
        made = RichTable(
            box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _BETWEEN - 1, 0, 0)
        )
        in_one_line = [max(widths[column], cell_len(self.columns[column])) for column in part]
        narrow = _width(in_one_line) > available
        for column, width in zip(part, in_one_line, strict=True):
            made.add_column(
                Text(self.columns[column]),
                justify="left" if column in self.text else "right",
                vertical="top",
                width=widths[column] if narrow or column in self.text else width,
                overflow="fold",
            )
        for index, row in enumerate(self.rows):
            cells = [Text(str(row[column])) for column in part]
            made.add_row(*cells, style="bold" if index in self.emphasised else None)
        return made

    def markdown(self) -> str:
        """Return the table in Markdown, its title in bold; emphasised rows are bold."""
        lines = [f"**{self.title}**", "", _markdown_row(self.columns)]
        marks = ("---" if column in self.text else "---:" for column in range(len(self.columns)))
        lines.append("|" + "|".join(marks) + "|")
        for index, row in enumerate(self.rows):
            bold = index in self.emphasised
            lines.append(_markdown_row([f"**{c}**" if bold and c else str(c) for c in row]))
        return "\n".join(lines)

    def html(self) -> str:
        """Return the table as an HTML element that scrolls sideways if necessary."""
        lines = [f"<figure><figcaption>{html.escape(self.title)}</figcaption>"]
        lines.append('<div class="scroll" tabindex="0"><table>')
        lines.append(f"<thead>{self._html_row(self.columns, 'th')}</thead><tbody>")
        for index, row in enumerate(self.rows):
            lines.append(self._html_row(row, "td", index in self.emphasised))
        return "\n".join([*lines, "</tbody></table></div></figure>"])

    def _html_row(self, cells: Sequence[str], tag: str, emphasised: bool = False) -> str:
        made = []
        for column, cell in enumerate(cells):
            words = ' class="text"' if column in self.text else ""
            made.append(f"<{tag}{words}>{html.escape(str(cell))}</{tag}>")
        mark = ' class="first"' if emphasised else ""
        return f"<tr{mark}>{''.join(made)}</tr>"


def percent(value: float | None, digits: int = 1) -> str:
    """Return a fraction as a percentage without its sign: 0.456 is "45.6", None and NaN are ""."""
    return "" if value is None or value != value else f"{100 * value:.{digits}f}"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_markdown_cell(str(cell)) for cell in cells) + " |"


def _markdown_cell(text: str) -> str:
    for mark, written in (("|", "\\|"), ("\n", " "), ("<", "&lt;")):
        text = text.replace(mark, written)
    return text


def _width(widths: Sequence[int]) -> int:
    return sum(widths) + _BETWEEN * (len(widths) - 1)


def _parts(widths: list[int], available: int) -> list[list[int]]:
    """Return groups of columns that fit side by side; each begins with the first column."""
    parts = [[0]]
    for column in range(1, len(widths)):
        side_by_side = [*parts[-1], column]
        if _width([widths[c] for c in side_by_side]) > available and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(column)
    return parts
