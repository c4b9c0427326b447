"""Run the quickstart with several seeds: means and spreads of its tables, mAP curves with bands.

  python tools/quickstart_spread.py --seeds 8          # the README's table; half an hour on a CPU

For every seed it trains the old and the new model of the digits, FCT and FastFill, with the configs
of ``make quickstart``, and evaluates them. Models that were trained before are not trained again.
The report is in WORKDIR/report; ``--picture FILE`` copies its curves.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # run as a file or as a module

from fct_jax.errors import UserError
from tools.benchmark_side import read_config
from tools.script import Parser, status

COLUMNS = {"cmc@1": "CMC@1", "map": "mAP"}
# A service can choose these: the oracle needs all new vectors, and FCT has no uncertainty.
SHOWN = ("FCT · random", "FastFill · random", "FastFill · uncertainty")


def parser() -> Parser:
    made = Parser(__doc__)
    made.add_argument("--seeds", type=int, default=3, help="trainings to average (default 3)")
    made.add_argument("--workdir", type=Path, default=Path("runs/digits_spread"))
    made.add_argument("--picture", type=Path, help="also write the curves to this PNG")
    return made


def one_seed(seed: int, folder: Path) -> dict:
    """Train and evaluate with one seed; return the content of its report.json."""
    from fct_jax.evaluate.command import evaluate
    from fct_jax.train.loop import train

    runs = {name: str(folder / name) for name in ("old", "new", "fct", "fastfill")}
    for name, run in runs.items():
        config = read_config("digits", f"backbone_{name}" if name in ("old", "new") else name)
        config.seed = seed
        if name in ("fct", "fastfill"):
            config.old, config.new = runs["old"], runs["new"]
        print(f"\nseed {seed}: {name}", flush=True)
        train(config, run)
    found = folder / "report" / "report.json"
    if not found.is_file():
        config = read_config("digits", "evaluate")
        config.old, config.new = runs["old"], runs["new"]
        config.transformed = f"FCT={runs['fct']},FastFill={runs['fastfill']}"
        evaluate(config, folder / "report")
    return json.loads(found.read_text())


def spread(values) -> str:
    """Return "mean ± standard deviation" in percent, or only the mean if there is one value."""
    values = 100 * np.asarray(values, np.float64)
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"


def table(title: str, heading: str, seeds: list[dict]):
    """Return the table of {row: {metric: fraction}} of several seeds."""
    from fct_jax.runtime.tables import Table

    rows = [
        [row, *(spread([found[row][name] for found in seeds]) for name in COLUMNS)]
        for row in seeds[0]
    ]
    return Table(title, [heading, *COLUMNS.values()], rows)


def panel(seeds: list[dict]):
    """Return the curves of mAP: means over the seeds, bands from the lowest to the highest."""
    from fct_jax.evaluate.orders import ORDERS
    from fct_jax.runtime.report import Curve, Panel

    curves = []
    for name in SHOWN:
        method, _, order = name.partition(" · ")
        found = [seed["curves"][method][order] for seed in seeds]
        points = 100 * np.array([curve["map"] for curve in found])
        curves.append(
            Curve(
                name,
                [100 * share for share in found[0]["fraction"]],
                points.mean(axis=0).tolist(),
                points.min(axis=0).tolist(),
                points.max(axis=0).tolist(),
                group=method,
                line=ORDERS[order].line,
            )
        )
    levels = {
        row: 100 * float(np.mean([seed["retrieval"][row]["map"] for seed in seeds]))
        for row in ("old/old", "new/new")
    }
    return Panel(f"mean and range of {len(seeds)} seeds", curves, levels, y_label="mAP (%)")


def run(arguments: list[str]):
    """Run the command; return the `fct_jax.runtime.report.Report`."""
    flags = parser().parse_args(arguments)
    if flags.seeds < 1:
        raise UserError(f"--seeds must be at least 1, not {flags.seeds}")
    if (flags.workdir / "report").exists():
        raise UserError(f"{flags.workdir / 'report'} exists already; nothing was overwritten")

    from fct_jax.runtime.report import Report
    from fct_jax.storage.files import new_directory

    seeds = [one_seed(seed, flags.workdir / f"seed{seed}") for seed in range(flags.seeds)]
    report = Report(
        title="The quickstart over several seeds",
        tables=[
            table("Retrieval (%)", "query / gallery", [seed["retrieval"] for seed in seeds]),
            table("Area under the backfilling curve (%)", "order", [seed["auc"] for seed in seeds]),
        ],
        panels=[panel(seeds)],
        measured_on={"data": "digits", "seeds": str(flags.seeds)},
        notes=["Figures are means ± standard deviations over the seeds."],
        settings={"seeds": flags.seeds},
        data={"seeds": [{key: seed[key] for key in ("retrieval", "auc")} for seed in seeds]},
    )
    with new_directory(flags.workdir / "report") as folder:
        report.write(folder)
    if flags.picture:
        shutil.copyfile(flags.workdir / "report" / "curves.png", flags.picture)
    report.show()
    print(f"The report is in {flags.workdir / 'report'}")
    return report


def main(arguments: list[str]) -> None:
    """Run the command on the console, where the report has been printed."""
    run(arguments)


if __name__ == "__main__":
    sys.exit(status(main))
