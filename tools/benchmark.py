"""Measures every speed figure of the project, as a ratio to a baseline in the same run.

    python tools/benchmark.py [--full] [--only evaluation,transformation] [--out benchmark]

It prints the tables and writes benchmark/benchmark.json, benchmark.md and growth.png.
The quick mode takes about three minutes on two cores, the full mode about twenty.
"""

import json
import os
import platform
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # run as a file or as a module

import jax
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fct_jax.runtime.progress import track
from tools.script import Parser, status
from tools.speed import backbone, compatible, curve, evaluation, galleries, transformation, upgrade

PARTS = {
    "evaluation": evaluation,
    "curve": curve,
    "transformation": transformation,
    "backbone": backbone,
    "compatible": compatible,
    "upgrade": upgrade,
    "galleries": galleries,
}


def main(words) -> None:
    """Measure what the command line asks for, and write the report."""
    parser = Parser(__doc__)
    parser.add_argument("--full", action="store_true", help="the sizes of the README's figures")
    parser.add_argument("--only", default=",".join(PARTS), help="parts to run, comma-separated")
    parser.add_argument("--out", type=Path, default=Path("benchmark"), help="directory to write to")
    arguments = parser.parse_args(words)
    names = arguments.only.split(",")
    for name in names:
        if name not in PARTS:
            parser.error(f"unknown part {name!r}; known: {', '.join(PARTS)}")
    start = time.perf_counter()
    results = {
        name: PARTS[name].run(quick=not arguments.full)
        for name in track(names, "benchmark", len(names), "parts")
    }
    report = {
        "machine": machine(),
        "mode": "full" if arguments.full else "quick",
        "seconds": round(time.perf_counter() - start),
        "results": results,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "benchmark.json").write_text(json.dumps(report, indent=2) + "\n")
    table = markdown(report)
    (arguments.out / "benchmark.md").write_text(table)
    if "evaluation" in results:
        draw_growth(results["evaluation"], arguments.out / "growth.png")
    print(table)


def machine() -> str:
    """Return a description of the machine that was measured."""
    devices = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    cores = f"{os.cpu_count()} cores ({platform.machine()})"
    return f"{cores}, {devices}, Python {platform.python_version()}, JAX {jax.__version__}"


def markdown(report: dict) -> str:
    """Return the figures as Markdown tables."""
    lines = [f"Measured on {report['machine']}; {report['mode']} mode, {report['seconds']} s."]
    for part, rows in report["results"].items():
        lines += ["", f"| {part} | ours | baseline | times faster | peak memory | |"]
        lines.append("|---|---:|---:|---:|---:|---|")
        for row in rows:
            baseline = "" if row["baseline_s"] is None else f"{row['baseline_s']:.3g} s"
            ratio = "" if row["ratio"] is None else f"{row['ratio']:.3g}"
            lines.append(
                f"| {row['name']} | {row['ours_s']:.3g} s | {baseline} | {ratio} "
                f"| {row['peak_mb']:,} MB | {row['note']} |"
            )
    return "\n".join(lines) + "\n"


def draw_growth(rows: list[dict], path: Path) -> None:
    """Draw the cost of a whole backfilling curve against the size of the gallery."""
    points = sorted({row["items"]: row for row in rows if "items" in row}.items())
    items = [n for n, _ in points]
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    panel.loglog(items, [row["ours_s"] for _, row in points], "o-", label="fct_jax")
    plain = [(n, row["baseline_s"]) for n, row in points if row["baseline_s"]]
    if plain:
        panel.loglog(*zip(*plain, strict=True), "s--", color="0.5", label="sort at every point")
    panel.set(xlabel="gallery items", ylabel="seconds", title="Backfilling curve of 22 points")
    panel.grid(alpha=0.3, which="both")
    panel.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(status(main))
