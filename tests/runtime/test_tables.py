"""The one table printer: nothing is lost at any width, and names of users are no markup."""

import io
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fct_jax.runtime.tables import Table, percent

WIDE = Table(
    "extended-data: mAP (%)",
    ["model", *(f"{name} {kind}" for name in "ABCDEF" for kind in ("self", "cross")), "P_comp"],
    [
        [name, *(f"{10 * row + i:.1f}" for i in range(13))]
        for row, name in enumerate(("old", "bct"))
    ],
    emphasised=(1,),
)


def printed(table, width):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    table.show(console)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [40, 80, 100, 400])
def test_every_cell_is_printed_whole_within_the_width(width):
    text = printed(WIDE, width)
    assert max(map(len, text.splitlines())) <= width
    words = text.split()
    for row in WIDE.rows:
        assert all(cell in words for cell in row)
    assert "…" not in text
    assert text.count("continued") == {40: 2, 80: 1, 100: 0, 400: 0}[width]
    assert words.count("bct") == text.count("continued") + 1  # each part names its rows


def test_headings_share_a_line_where_there_is_room():
    assert "A self" in printed(WIDE, 400) and "A self" not in printed(WIDE, 100)


@given(
    st.lists(st.lists(st.integers(0, 10**6), min_size=3, max_size=3), max_size=5),
    st.integers(30, 200),
)
def test_numbers_are_never_broken(numbers, width):
    table = Table("t", ["a", "b c", "d"], [[str(number) for number in row] for row in numbers])
    words = printed(table, width).split()
    assert all(str(number) in words for row in numbers for number in row)


def test_names_are_no_markup():
    table = Table("[bold]t", ["model", "x"], [["[red]old[/red]", "1"], ["a|b <c>", "2"]])
    assert "[red]old[/red]" in printed(table, 80) and "[bold]t" in printed(table, 80)
    assert r"| a\|b &lt;c> | 2 |" in table.markdown()

    found = []

    class Reader(HTMLParser):
        def handle_data(self, data):
            found.append(data)

    Reader().feed(table.html())
    assert "a|b <c>" in found


def test_long_words_are_wrapped():
    table = Table("t", ["way", "note"], [["keep", "x" * 300]], text=(0, 1))
    text = printed(table, 60)
    assert text.count("x") == 300 and max(map(len, text.splitlines())) <= 60


def test_rows_must_fit():
    with pytest.raises(ValueError, match="2 columns, but the row"):
        Table("t", ["a", "b"], [["1"]])


def test_percent():
    assert [percent(v) for v in (0.4567, None, float("nan"), np.float32(1))] == [
        "45.7", "", "", "100.0"
    ]  # fmt: skip
    assert percent(0.4567, 2) == "45.67"
