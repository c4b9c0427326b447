"""Backfilling curves as a picture."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fct_jax.evaluate.backfill import BackfillCurve
from fct_jax.evaluate.orders import ORDERS

# Colours that the colour-blind can tell apart; an order keeps its line style in every figure.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999933")


def draw_curves(
    curves: dict[str, BackfillCurve],
    levels: dict[str, dict[str, float]],
    titles: dict[str, str],
    path: Path,
) -> None:
    """One panel a metric, a line a curve, and a horizontal line for each level.

    Args:
      curves: {"FCT · random": curve, …}; what stands before " · " chooses the colour.
      levels: {"old/old": {"map": …}, …}, drawn across.
      titles: {"map": "mAP", …}: which metrics, and their names.
      path: the PNG to write.
    """
    figure = Figure(figsize=(4.2 * len(titles), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(titles), squeeze=False)[0]
    colours: dict[str, str] = {}
    for panel, (column, title) in zip(panels, titles.items(), strict=True):
        for name, curve in curves.items():
            method, _, order = name.partition(" · ")
            colour = colours.setdefault(method, _COLOURS[len(colours) % len(_COLOURS)])
            panel.plot(
                100 * curve.fraction,
                100 * curve.values[column],
                color=colour,
                linestyle=ORDERS[order].line if order in ORDERS else "-",
                label=name,
            )
        for (name, values), tone in zip(levels.items(), ("0.65", "0.2"), strict=False):
            panel.axhline(100 * values[column], color=tone, linewidth=1, zorder=0)
            panel.annotate(
                name,
                (0, 100 * values[column]),
                xytext=(3, 3),
                textcoords="offset points",
                fontsize=8,
                color=tone,
            )
        panel.set(title=title, xlabel="gallery re-embedded (%)", ylabel="%", xlim=(0, 100))
        panel.grid(alpha=0.25)
    panels[-1].legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=120)
