"""A report as one HTML page without network access: text, tables, and interactive curves."""

import html
import json
import math
from collections.abc import Mapping
from importlib.resources import files

from fct_jax.runtime.report_svg import legend, panel_svg

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
<div id="values" role="status" hidden></div>
<script>
{script}</script>
</body>
</html>
"""


def page(report) -> str:
    """Return the HTML of a `fct_jax.runtime.report.Report`.

    The page is readable from a width of 320 px on, in light and dark mode. Without JavaScript each
    point of a curve still shows its values in the browser's own tooltip.
    """
    parts = []
    if report.verdict:
        first, *rest = (html.escape(sentence) for sentence in report.verdict)
        more = "".join(f"<p>{sentence}</p>" for sentence in rest)
        parts.append(f'<section class="verdict"><p class="first">{first}</p>{more}</section>')
    if report.panels:
        drawn = "\n".join(
            f"<figure><figcaption>{html.escape(panel.title)}</figcaption>"
            f"{panel_svg(panel, report.panels)}</figure>"
            for panel in report.panels
        )
        parts.append(
            f"<section><h2>Curves</h2>{legend(report.panels)}"
            f'<div class="panels">\n{drawn}\n</div></section>'
        )
    if report.tables:
        tables = "\n".join(table.html() for table in report.tables)
        parts.append(f"<section><h2>Figures</h2>\n{tables}</section>")
    for heading, facts in (("Measured on", report.measured_on), ("Cost", report.cost)):
        if facts:
            parts.append(f"<section><h2>{heading}</h2>{_facts(facts)}</section>")
    if report.notes:
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in report.notes)
        parts.append(f"<section><h2>Notes</h2><ul>{notes}</ul></section>")
    if report.settings:
        parts.append(
            "<section><details><summary>Settings</summary>"
            f"{_facts(flat(report.settings))}</details></section>"
        )
    own = files("fct_jax.runtime")
    return _PAGE.format(
        title=html.escape(report.title),
        body="\n".join(parts),
        style=own.joinpath("report.css").read_text(),
        script=own.joinpath("report.js").read_text(),
    )


def _facts(facts: Mapping[str, str]) -> str:
    rows = "".join(
        f"<dt>{html.escape(str(name))}</dt><dd>{html.escape(str(value))}</dd>"
        for name, value in facts.items()
    )
    return f"<dl>{rows}</dl>"


def flat(settings: Mapping, before: str = "") -> dict[str, str]:
    """Return nested settings as one table: {"data.name": "digits", …}."""
    found = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = value if isinstance(value, str) else json.dumps(plain(value))
    return found


def plain(value):
    """Return a value in the types of JSON; arrays become lists, NaN and infinity None."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if hasattr(value, "tolist"):  # NumPy's arrays and numbers
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return str(value)
