"""The curves of a report as a PNG."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fct_jax.runtime.report_svg import groups_of

# Colour-blind readers can distinguish these colours.
_COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"),
    *("#56B4E9", "#882255", "#999933", "#332288", "#7A4B1E"),
)
_LEVELS = ("0.65", "0.2")
_SIDE_BY_SIDE = 3  # panels in a row


def draw(panels: Sequence, path: Path) -> None:
    """Draw the panels of `fct_jax.runtime.report.Report` to the PNG ``path``."""
    across = min(len(panels), _SIDE_BY_SIDE)
    down = -(-len(panels) // across)
    figure = Figure(figsize=(4.2 * across, 3.6 * down), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    colours = groups_of(panels)
    for axis, panel in zip(axes, panels, strict=False):
        for curve in panel.curves:
            colour = _COLOURS[colours[curve.group or curve.name]]
            axis.plot(curve.x, curve.y, color=colour, linestyle=curve.line, label=curve.name)
            if curve.low is not None:
                axis.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.14, lw=0)
        for number, (name, value) in enumerate(panel.levels.items()):
            tone = _LEVELS[number % len(_LEVELS)]
            axis.axhline(value, color=tone, linewidth=1, zorder=0)
            axis.annotate(
                name,
                (0, value),
                xycoords=axis.get_yaxis_transform(),  # x as a share of the width
                xytext=(3, 3),
                textcoords="offset points",
                fontsize=8,
                color=tone,
            )
        axis.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        axis.margins(x=0)
        axis.grid(alpha=0.25)
    for axis in axes[len(panels) :]:
        axis.remove()
    named = {}
    for axis in axes[: len(panels)]:
        named |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(
        named.values(),
        named,
        fontsize=8,
        loc="outside lower center",
        ncols=min(len(named), across * 2),
    )
    figure.savefig(path, dpi=120)
