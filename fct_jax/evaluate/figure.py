"""Backfilling curves as panels of a report."""

from collections.abc import Mapping

from fct_jax.evaluate.backfill import BackfillCurve
from fct_jax.evaluate.orders import ORDERS
from fct_jax.runtime.report import Curve, Panel


def panels_of(
    curves: Mapping[str, BackfillCurve],
    levels: Mapping[str, Mapping[str, float]],
    titles: Mapping[str, str],
) -> list[Panel]:
    """Return one panel per metric, with a line per curve and a horizontal line for each level.

    Args:
      curves: {"FCT · random": curve, …}; the part before " · " determines the colour, the part
        after it the line style.
      levels: {"old/old": {"map": …}, …}, as fractions.
      titles: {"map": "mAP", …}: the metrics and their names.
    """
    return [
        Panel(
            title,
            [_curve(name, curve, metric) for name, curve in curves.items()],
            {name: 100 * values[metric] for name, values in levels.items()},
            y_label=f"{title} (%)",
        )
        for metric, title in titles.items()
    ]


def _curve(name: str, curve: BackfillCurve, metric: str) -> Curve:
    method, _, order = name.partition(" · ")
    x, y = (100 * curve.fraction).tolist(), (100 * curve.values[metric]).tolist()
    line = ORDERS[order].line if order in ORDERS else "-"
    return Curve(name, x, y, group=method, line=line)
