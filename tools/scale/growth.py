"""The growth of an upgrade's cost with the gallery: the picture, and the table of the docs."""

import dataclasses
from pathlib import Path

from fct_jax.upgrade.migration.estimate import CORE_HOUR

SIZES = {100_000_000: "10⁸", 1_000_000_000: "10⁹", 10_000_000_000: "10¹⁰"}


@dataclasses.dataclass(frozen=True)
class Prices:
    """The assumptions of the table.

    Attributes:
      cores: cores at work at a time; core_hour: price of an hour of one.
      disk: bytes a second that these cores read or write together.
      gpu_rate: vectors a second of the new model on one GPU; gpu_hour: price of an hour of one.
      share: share of the gallery that is re-embedded.
    """

    cores: int = 64
    core_hour: float = CORE_HOUR  # as `fct-jax plan` assumes it
    disk: float = 1e9
    gpu_rate: float = 2000.0
    gpu_hour: float = 2.0
    share: float = 0.1

    @classmethod
    def add_arguments(cls, parser) -> None:
        """Add a flag for each assumption."""
        for field in dataclasses.fields(cls):
            name = f"--{field.name.replace('_', '-')}"
            said = f"assumption of --table (default: {field.default:g})"
            parser.add_argument(name, type=type(field.default), default=field.default, help=said)

    @classmethod
    def of(cls, given) -> "Prices":
        """Return the assumptions of a parsed command line."""
        return cls(**{field.name: getattr(given, field.name) for field in dataclasses.fields(cls)})


def table(found: dict, prices: Prices) -> str:
    """Return the Markdown table that follows from the largest run.

    CPU seconds and bytes a row are taken to stay as they are there; see the picture for why.
    """
    measured = max(found, key=int)
    (planning, planned), (cpu, moved) = (_a_row(found[measured], s) for s in ("plan", "two parts"))
    lines = [
        f"| vectors | plan: hours | translate: core hours | hours on {prices.cores} cores | money "
        f"| re-embed {prices.share:.0%}: GPU hours | money | re-embed all: GPU hours | money |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for size, name in SIZES.items():
        alone = size * max(planning, planned / prices.disk) / 3600
        hours = size * max(cpu / prices.cores, moved / prices.disk) / 3600
        money = (alone + hours * prices.cores) * prices.core_hour  # cores that wait are paid, too
        gpu = size / prices.gpu_rate / 3600
        lines.append(
            f"| {name} | {alone:,.1f} | {size * cpu / 3600:,.1f} | {hours:,.1f} | ${money:,.2f} "
            f"| {gpu * prices.share:,.0f} | ${gpu * prices.share * prices.gpu_hour:,.0f} "
            f"| {gpu:,.0f} | ${gpu * prices.gpu_hour:,.0f} |"
        )
    lines.append(
        f"\nMeasured at {int(measured):,} rows of 384 float16 numbers: for a million rows "
        f"{planning * 1e6:,.0f} CPU seconds to plan, in one process, and {cpu * 1e6:,.0f} to "
        f"translate, with {moved / 1e3:,.2f} GB read and written. Assumed: {prices.cores} cores at "
        f"${prices.core_hour:g} an hour each, {prices.disk / 1e9:g} GB/s of storage for all of "
        f"them, a model that embeds {prices.gpu_rate:,.0f} items a second on a GPU of "
        f"${prices.gpu_hour:g} an hour."
    )
    return "\n".join(lines)


def grown(found: dict, steps: dict[str, str]) -> str:
    """Return a Markdown table of the steps' CPU seconds and bytes at every size.

    steps: {name: what it does}, in the order of the table. Those of a store are left out.
    """
    sizes = sorted(found, key=int)
    heads = [f"{int(size):,} rows" for size in sizes]
    lines = [
        "| CPU seconds for a million, bytes read and written for one | " + " | ".join(heads) + " |",
        "|---|" + "---:|" * len(sizes),
    ]
    for name, said in steps.items():
        if name.startswith("store"):
            continue
        cells = []
        for size in sizes:
            step = found[size]["steps"].get(name)
            cells.append("" if step is None else _cell(step))
        lines.append(f"| {said} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(step: dict) -> str:
    cpu, moved = step["cpu_seconds_per_million"], step["read_per_row"] + step["written_per_row"]
    return f"{cpu:,.1f} s, {moved:,.0f}"


def _a_row(run: dict, name: str) -> tuple[float, float]:
    """Return the CPU seconds and the bytes of a row in a step; zeros if it was not measured."""
    step = run["steps"].get(name)
    if step is None:
        return 0.0, 0.0
    return step["cpu_seconds_per_million"] / 1e6, step["read_per_row"] + step["written_per_row"]


def draw(found: dict, path: Path) -> None:
    """Draw CPU seconds a million rows and bytes a row against the number of rows.

    The steps of the store are left out, as they have rows of their own number.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    sizes = sorted(found, key=int)
    names = dict.fromkeys(
        name for size in sizes for name in found[size]["steps"] if not name.startswith("store")
    )
    for name in names:
        some = [size for size in sizes if name in found[size]["steps"]]
        steps = [found[size]["steps"][name] for size in some]
        values = (
            [step["cpu_seconds_per_million"] for step in steps],
            [step["read_per_row"] + step["written_per_row"] for step in steps],
        )
        for panel, heights in zip(panels, values, strict=True):
            panel.loglog([int(size) for size in some], heights, "o-", label=name)
    for panel, label in zip(
        panels, ("CPU seconds a million rows", "bytes read and written a row"), strict=True
    ):
        panel.set(xlabel="rows of the gallery", ylabel=f"{label} or item")
        panel.grid(alpha=0.3, which="both")
    panels[1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120)
