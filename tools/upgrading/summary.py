"""Summarises all cells: tables, one figure, and the sentences above them."""

import collections
import statistics
from collections.abc import Callable, Iterable

import numpy as np
import scipy.stats

from fct_jax.evaluate.orders import ORDERS
from fct_jax.runtime.report import Curve, Panel, Report
from fct_jax.runtime.tables import Table, percent
from fct_jax.upgrade.assessment.verdict import ADVICE
from fct_jax.upgrade.ways import WAYS, simplicity

RANDOM = "random"
_LEVEL = 0.95


def report_of(cells: list[dict], settings: dict, notes: Iterable[str] = ()) -> Report:
    """Return the report of records of ``cells.measure``, each with its pair, map, size and seed."""
    refused = [cell for cell in cells if "refused" in cell]
    cells = [cell for cell in cells if "refused" not in cell]
    largest = _largest(cells)
    said = [
        "Figures of an advice, a way or an order are those of fresh queries, which had no part in "
        "choosing it. ± is the standard deviation over the seeds.",
        "Retention is the share of the new model's own quality, area the mean along the curve "
        "from 0 to 100 % re-embedded; both in percent. Advantage is in points above keep.",
        "Ways and orders are shown at the largest sample, with the map whose translated gallery "
        "was best on the deciding queries; so are the settings of a blend and of a cascade.",
        *notes,
    ]
    counts = collections.Counter(
        f"{cell['pair']}, {cell['map']}: {cell['refused']}" for cell in refused
    )
    said += [f"Refused {count} times: {text}" for text, count in counts.items()]
    return Report(
        title="Upgrades judged on every pair",
        verdict=_verdict(cells),
        tables=[
            _advice_table(cells), _way_table(largest), _order_table(largest), _size_table(cells),
            _interval_table(cells),
        ] if cells else [],
        panels=_panels(largest),
        measured_on={
            cell["pair"]: f"{cell['queries'][0]:,} and {cell['queries'][1]:,} queries in "
            f"{cell['items']:,} items, judged by {cell['judged_by']}, {cell['target']} decides"
            for cell in {cell["pair"]: cell for cell in cells}.values()
        },
        notes=said,
        settings=settings,
        data={"cells": [{k: v for k, v in cell.items() if k != "points"} for cell in cells],
              "refused": refused},
    )  # fmt: skip


def expected_share(queries: int, fresh: int) -> float:
    """Return how often an honest 95 % interval over some queries contains the mean of fresh ones.

    The fresh mean varies as well: the difference between both has the variance σ²/n + σ²/m.

    >>> round(expected_share(100, 100), 3)  # not 0.95
    0.834
    """
    z = scipy.stats.norm.ppf((1 + _LEVEL) / 2)
    return float(2 * scipy.stats.norm.cdf(z / np.sqrt(1 + queries / fresh)) - 1)


def area(points: list[dict], key: str = "fresh_value") -> float:
    """Return the mean along a path, by trapezoids over its shares; one point gives its value."""
    points = sorted(points, key=lambda p: p["share"])
    if len(points) == 1:
        return points[0][key]
    return float(np.trapezoid([p[key] for p in points], [p["share"] for p in points]))


def paths_of(cell: dict, way: str) -> dict[str, list[dict]]:
    """Return {order: points} of a way, for the variant that was best on the deciding queries."""
    mine = [p for p in cell["points"] if p["way"] == way]
    by_label: dict[str, list[dict]] = {}
    for p in mine:
        by_label.setdefault(p["label"], []).append(p)
    if not by_label:
        return {}
    best = max(by_label.values(), key=lambda points: np.mean([p["value"] for p in points]))
    found: dict[str, list[dict]] = {}
    for p in best:
        found.setdefault(p["order"], []).append(p)
    return found


def decided_path(cell: dict, way: str) -> list[dict]:
    """Return the points of a way along the order that was best on the deciding queries."""
    return max(paths_of(cell, way).values(), key=lambda points: area(points, "value"), default=[])


def _largest(cells: list[dict]) -> dict[str, list[dict]]:
    """Return {pair: a cell per seed}, with the largest size and the map that was decided for."""
    found: dict[str, dict[int, dict]] = {}
    for cell in cells:
        mine = found.setdefault(cell["pair"], {})
        other = mine.get(cell["seed"])
        if other is None or _rank(cell) > _rank(other):
            mine[cell["seed"]] = cell
    return {pair: list(of.values()) for pair, of in found.items()}


def _rank(cell: dict) -> tuple[int, float]:
    start = (p["value"] for p in cell["points"] if p["way"] == "translated" and p["share"] == 0)
    return cell["size"], max(start, default=0.0)


def _ways(cells: Iterable[dict]) -> list[str]:
    found = {p["way"] for cell in cells for p in cell["points"]} - {"keep", "re-embed all"}
    return sorted(found, key=simplicity)


def _grouped(cells: list[dict], key: Callable[[dict], tuple]) -> dict[tuple, list[dict]]:
    found: dict[tuple, list[dict]] = {}
    for cell in cells:
        found.setdefault(key(cell), []).append(cell)
    return found


def _verdict(cells: list[dict]) -> list[str]:
    if not cells:
        return ["Nothing was measured."]
    counts = collections.Counter(cell["advice"] for cell in cells)
    advised = [cell["fresh_gain"] for cell in cells if cell["fresh_gain"] is not None]
    below = sum(gain[2] < 0 for gain in advised)
    wrong = sum(cell["advice"] == "keep" and cell["new_gain"][1] > 0 for cell in cells)
    said = ", ".join(f"{name} {counts[name]}" for name in ADVICE if counts[name])
    return [
        f"{len(cells)} assessments: {said}.",
        f"Of {len(advised)} paths that were advised, {below} "
        f"{'is' if below == 1 else 'are'} below keep on fresh queries, beyond the 95 % interval.",
        f"Of {counts['keep']} times that an upgrade was advised against, the new model was better "
        f"on fresh queries {wrong} times, beyond the interval.",
    ]


def _advice_table(cells: list[dict]) -> Table:
    rows = []
    for (pair, method, size), mine in _grouped(
        cells, lambda c: (c["pair"], c["map"], c["size"])
    ).items():
        advised = [c for c in mine if c["fresh_gain"] is not None]
        ways = collections.Counter(_advised(c) for c in mine)
        gains = [c["fresh_gain"][0] for c in advised]
        kept = [(c["keep"] + c["fresh_gain"][0]) / c["new"] for c in advised if c["new"]]
        rows.append(
            [
                pair, method, f"{size:,}", percent(_mean(c["keep"] for c in mine)),
                percent(_mean(c["new"] for c in mine)),
                "; ".join(f"{name} ({count})" for name, count in ways.items()),
                _signed(gains), percent(_mean(kept), 0),
                f"{_mean(c['fit_s'] for c in mine):.1f}",
                f"{_mean(c['assess_s'] for c in mine):.1f}",
            ]
        )  # fmt: skip
    columns = ["pair", "map", "sample", "keep", "new", "advice (seeds)",
               "advantage on fresh queries", "retention", "fit (s)", "assess (s)"]  # fmt: skip
    return Table("What is advised, and what it gives", columns, rows, text=(0, 1, 5))


def _advised(cell: dict) -> str:
    if cell["advice"] != "upgrade":
        return "don't" if cell["advice"] == "keep" else cell["advice"]
    order = f" {cell['order']}" if cell["order"] else ""
    share = f" {100 * cell['share']:.0f} %" if cell["share"] else ""
    return f"{cell['way']}{order}{share}"


def _way_table(largest: dict[str, list[dict]]) -> Table:
    rows = []
    for pair, cells in largest.items():
        for way in _ways(cells):
            paths = [(cell, decided_path(cell, way)) for cell in cells]
            paths = [(cell, points) for cell, points in paths if points]
            starts = [(cell, min(points, key=lambda p: p["share"])) for cell, points in paths]
            gains = [p["fresh"][0] for _, p in starts]
            below = sum(p["fresh"][2] < 0 for _, points in paths for p in points)
            rows.append(
                [
                    pair, way, percent(_mean(p["fresh_value"] / c["new"] for c, p in starts), 0),
                    _signed(gains), f"{100 * min(gains):+.1f}",
                    percent(_mean(area(points) / c["new"] for c, points in paths), 0),
                    f"{below} of {sum(len(points) for _, points in paths)}",
                ]
            )  # fmt: skip
    columns = ["pair", "way", "retention, 0 % re-embedded", "advantage, 0 %", "worst seed",
               "retention, area", "points below keep"]  # fmt: skip
    return Table("Ways of serving", columns, rows, text=(0, 1))


def _order_table(largest: dict[str, list[dict]]) -> Table:
    """Return a table of the area of a random order, and by how much other orders exceed it."""
    areas = {
        (pair, way): [
            {order: area(points) for order, points in paths_of(cell, way).items()} for cell in cells
        ]
        for pair, cells in largest.items()
        for way in _ways(cells)
        if way not in WAYS or WAYS[way].done is not None
    }
    tried = {order for of in areas.values() for mine in of for order in mine} - {RANDOM}
    orders = sorted(tried, key=lambda name: (name not in ORDERS, name))
    rows = []
    for (pair, way), of in areas.items():
        row = [pair, way, percent(_mean(mine[RANDOM] for mine in of if RANDOM in mine))]
        for order in orders:
            gains = [mine[order] - mine[RANDOM] for mine in of if {order, RANDOM} <= set(mine)]
            above = sum(gain > 0 for gain in gains)
            row.append(f"{_signed(gains)} ({above}/{len(gains)})" if gains else "")
        rows.append(row)
    columns = ["pair", "way", RANDOM, *orders]
    title = "Orders of re-embedding: area, and points above random (in how many of the seeds)"
    return Table(title, columns, rows, text=(0, 1))


def _size_table(cells: list[dict]) -> Table:
    sizes = sorted({cell["size"] for cell in cells})
    rows = []
    for (pair, method), mine in _grouped(cells, lambda c: (c["pair"], c["map"])).items():
        row = [pair, method]
        for size in sizes:
            kept = [
                p["fresh_value"] / cell["new"]
                for cell in mine
                if cell["size"] == size
                for p in decided_path(cell, "translated")
                if p["share"] == 0
            ]
            row.append(percent(_mean(kept), 0))
        rows.append(row)
    columns = ["pair", "map", *(f"{size:,} pairs" for size in sizes)]
    return Table("Retention of the translated gallery by size of the sample (%)", columns, rows,
                 text=(0, 1))  # fmt: skip


def _interval_table(cells: list[dict]) -> Table:
    rows = []
    for (pair,), mine in _grouped(cells, lambda c: (c["pair"],)).items():
        held = [
            p["gain"][1] <= p["fresh"][0] <= p["gain"][2]
            for cell in mine
            for p in cell["points"]
            if p["gain"][1] < p["gain"][2]
        ]
        on_gallery = sum(cell["calibrated_on"] != "the sample" for cell in mine)
        rows.append(
            [
                pair, f"{len(held):,}", percent(_mean(held)),
                percent(_mean(expected_share(*cell["queries"]) for cell in mine)),
                f"{on_gallery} of {len(mine)}",
            ]
        )  # fmt: skip
    columns = ["pair", "points", "interval holds the fresh mean", "expected",
               "cells calibrated on the gallery"]  # fmt: skip
    return Table("Calibration: 95 % intervals against fresh queries (%)", columns, rows)


def _panels(largest: dict[str, list[dict]]) -> list[Panel]:
    """Return panels of the advantage over keep along each way: means over seeds, fresh queries."""
    panels = []
    for pair, cells in largest.items():
        curves = []
        for way in _ways(cells):
            gains: dict[float, list[float]] = {}
            for cell in cells:
                for p in decided_path(cell, way):
                    gains.setdefault(p["share"], []).append(100 * p["fresh"][0])
            if len(gains) == 1:
                gains[1.0] = next(iter(gains.values()))  # this way re-embeds nothing in advance
            x = sorted(gains)
            curves.append(
                Curve(
                    way, [100 * share for share in x], [_mean(gains[share]) for share in x],
                    [min(gains[share]) for share in x], [max(gains[share]) for share in x],
                )
            )  # fmt: skip
        whole = 100 * _mean(cell["new"] - cell["keep"] for cell in cells)
        panels.append(
            Panel(
                f"{pair}: points above keep",
                curves,
                {"keep": 0.0, "re-embed all": whole},
                y_label="points",
            )
        )
    return panels


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return float(np.mean(values)) if values else float("nan")


def _signed(gains: list[float]) -> str:
    """Return the mean in points with the standard deviation over seeds."""
    if not gains:
        return ""
    spread = f" ± {100 * statistics.stdev(gains):.1f}" if len(gains) > 1 else ""
    return f"{100 * _mean(gains):+.1f}{spread}"
