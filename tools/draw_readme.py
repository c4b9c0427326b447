"""Draw the README's picture: the three ways out of an old gallery, and their quality.

  fct-jax demo --out fct_jax_demo
  python tools/draw_readme.py fct_jax_demo/report.json docs/upgrade.png

The curves come from the report of an assessment, with its 95 % intervals over the queries.
"""

import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

sys.path.insert(0, str(Path(__file__).parent.parent))  # run as a file or as a module

from tools.script import Parser, read_json, status

# (way of serving, order): colour, and name in the legend.
CURVES = {
    ("translated", "uncertainty"): ("#0072B2", "translate, then re-embed the least certain first"),
    ("dual", "uncertainty"): ("#D55E00", "serve both models while re-embedding in the same order"),
}
# The three ways out: heading, explanation, colour of the frame.
WAYS = (
    ("translate", "a map fitted on a sample moves\nevery old vector to the new space", "#0072B2"),
    ("serve both", "old and new vectors are searched\nside by side, scores calibrated", "#D55E00"),
    ("re-embed", "the items that gain most come first,\nwithin a budget", "#009E73"),
)
GREY = "#555555"


def box(axis, left, bottom, width, height, heading, text, colour) -> None:
    """Draw a rounded box with a bold heading and a line or two below it."""
    axis.add_patch(
        FancyBboxPatch(
            (left, bottom),
            width,
            height,
            boxstyle="round,pad=0.006,rounding_size=0.025",
            facecolor="white",
            edgecolor=colour,
            linewidth=1.8,
        )
    )
    middle = left + width / 2
    axis.text(middle, bottom + 0.68 * height, heading, ha="center", va="center", weight="bold")
    axis.text(
        middle, bottom + 0.32 * height, text, ha="center", va="center", fontsize=7.5, color=GREY
    )


def draw_ways(axis) -> None:
    """Draw old gallery ▸ three ways ▸ new model."""
    axis.set(xlim=(0, 1), ylim=(0, 1))
    axis.axis("off")
    box(axis, 0.01, 0.36, 0.2, 0.28, "old gallery", "vectors of the\nold model", GREY)
    box(axis, 0.79, 0.36, 0.2, 0.28, "new model", "answers the\nqueries", GREY)
    for number, (heading, text, colour) in enumerate(WAYS):
        bottom = 0.72 - 0.34 * number
        box(axis, 0.29, bottom, 0.42, 0.25, heading, text, colour)
        for start, end in (
            ((0.22, 0.5), (0.283, bottom + 0.125)),
            ((0.717, bottom + 0.125), (0.783, 0.5)),
        ):
            axis.add_patch(
                FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=colour)
            )


def draw_curves(axis, report: dict) -> None:
    """Draw the quality of each way against the share that is re-embedded."""
    metric, lowest = report["target"], 100.0
    for (way, order), (colour, label) in CURVES.items():
        points = sorted(
            (
                option["share"],
                option["values"][metric],
                *option["interval"],
            )
            for option in report["options"]
            if (option["way"], option["order"]) == (way, order)
        )
        if not points:
            continue
        share, value, low, high = (
            [100 * number for number in column] for column in zip(*points, strict=True)
        )
        axis.plot(share, value, color=colour, marker="o", markersize=3.5, label=label)
        axis.fill_between(share, low, high, color=colour, alpha=0.15, linewidth=0)
    for way, text in (("keep", "keep the old model"), ("re-embed all", "re-embed everything")):
        value = 100 * next(o["values"][metric] for o in report["options"] if o["way"] == way)
        lowest = min(lowest, value)
        axis.axhline(value, color=GREY, linewidth=1, linestyle=":", zorder=0)
        axis.annotate(
            f"{text}: {value:.1f}",
            (99, value),
            xytext=(0, 4),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=GREY,
        )
    axis.set(
        xlabel="gallery re-embedded (%)",
        ylabel="mAP (%)",
        title="handwritten digits, queries by the new model",
        xlim=(-2, 102),
        ylim=(lowest - 13, 103),  # room for the legend
    )
    axis.title.set_size(9)
    axis.grid(alpha=0.25)
    axis.legend(loc="lower right", fontsize=7.5)


def draw(report: dict, path: Path) -> None:
    """Draw the picture of a report.json to a PNG."""
    figure = Figure(figsize=(10.4, 3.7), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    ways, curves = figure.subplots(1, 2, width_ratios=(1.25, 1))
    draw_ways(ways)
    draw_curves(curves, report)
    figure.savefig(path, dpi=130)


def main(words) -> None:
    """Draw the picture that the command line asks for."""
    parser = Parser(__doc__)
    parser.add_argument("report", type=Path, help="report.json of an assessment")
    parser.add_argument("picture", type=Path, help="PNG to write")
    arguments = parser.parse_args(words)
    draw(read_json(arguments.report), arguments.picture)


if __name__ == "__main__":
    sys.exit(status(main))
