"""Compare FCT and FastFill with and without side information, over several seeds.

  python tools/benchmark_side.py --seeds 3                       # the digits, minutes on a CPU
  python tools/benchmark_side.py --data cifar100 --data_dir DIR  # likewise imagenet

For every seed it trains the old and the new model, a SimCLR model on the old classes, and each
transformation twice: alone and with SimCLR's embeddings as side information. It prints the means
and writes them to WORKDIR/report. Models that were trained before are not trained again.
"""

import importlib
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # run as a file or as a module

from fct_jax.errors import UserError, unknown
from tools.script import Parser, status

DATA = ("digits", "cifar100", "imagenet")
METHODS = {"FCT": "fct", "FastFill": "fastfill"}  # row: its part of the config's name
WITH = " with side information"


def parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--data", default="digits", help=f"{', '.join(DATA)} (default digits)")
    parser.add_argument("--data_dir", default="", help="config.data.dir of the data set")
    parser.add_argument("--workdir", type=Path, help="default runs/DATA_side")
    parser.add_argument("--seeds", type=int, default=1, help="trainings to average (default 1)")
    return parser


def read_config(data: str, kind: str):
    """Return ``get_config()`` of ``configs/DATA_KIND.py``."""
    return importlib.import_module(f"configs.{data}_{kind}").get_config()


def train_and_evaluate(data: str, data_dir: str, seed: int, folder: Path) -> dict:
    """Return {row: metrics} of one seed; keep its runs and report in ``folder``."""
    from fct_jax.evaluate.command import evaluate
    from fct_jax.train.loop import train

    def config_of(kind: str):
        config = read_config(data, kind)
        config.seed = seed
        config.data.dir = data_dir or config.data.dir
        return config

    old, new, side = (str(folder / name) for name in ("old", "new", "simclr"))
    runs = [("old", "backbone_old", {}), ("new", "backbone_new", {}), ("simclr", "simclr", {})]
    for kind in METHODS.values():
        runs.append((kind, kind, {"old": old, "new": new}))
        runs.append((f"{kind}_side", kind, {"old": old, "new": new, "side": side}))
    for number, (name, kind, changes) in enumerate(runs, 1):
        print(f"\nseed {seed}, {number}/{len(runs)}: {name}", flush=True)
        config = config_of(kind)
        config.update(changes)
        train(config, folder / name)
    found = folder / "report" / "report.json"
    if not found.is_file():
        config = config_of("evaluate")
        config.update({"old": old, "new": new, "side": side})
        config.transformed = ",".join(
            f"{row}{more}={folder / (kind + ending)}"
            for row, kind in METHODS.items()
            for more, ending in (("", ""), (WITH, "_side"))
        )
        evaluate(config, folder / "report")
    return json.loads(found.read_text())["retrieval"]


def mean_rows(seeds: list[dict]) -> dict:
    """Return {row: mean metrics} of several seeds."""
    return {
        row: {name: float(np.mean([rows[row][name] for rows in seeds])) for name in values}
        for row, values in seeds[0].items()
    }


def verdicts(seeds: list[dict]) -> list[str]:
    """Return a line per method: mAP without and with side information, and how often it helps."""
    lines = []
    for method in METHODS:
        pairs = [[rows[f"{method}{more} new/old"]["map"] for more in ("", WITH)] for rows in seeds]
        without, with_side = 100 * np.mean(pairs, axis=0)
        higher = sum(with_side > without for without, with_side in pairs)
        lines.append(
            f"{method}: mAP {without:.1f} without side information, {with_side:.1f} with it; "
            f"higher in {higher} of {len(pairs)} seeds"
        )
    return lines


def run(arguments: list[str]) -> list[dict]:
    """Run the benchmark; return {row: metrics} of each seed."""
    flags = parser().parse_args(arguments)
    if flags.data not in DATA:
        raise unknown("data set", flags.data, DATA)
    if flags.seeds < 1:
        raise UserError(f"--seeds must be at least 1, not {flags.seeds}")
    workdir = flags.workdir or Path("runs") / f"{flags.data}_side"
    if (workdir / "report").exists():
        raise UserError(f"{workdir / 'report'} exists already; nothing was overwritten")

    from fct_jax.evaluate.report import Evaluation
    from fct_jax.runtime.report import Report
    from fct_jax.storage.files import new_directory

    seeds = [
        train_and_evaluate(flags.data, flags.data_dir, seed, workdir / f"seed{seed}")
        for seed in range(flags.seeds)
    ]
    shown = read_config(flags.data, "evaluate")
    means = Evaluation(shown.metric, tuple(shown.ks), shown.map_at, mean_rows(seeds))
    report = Report(
        title=f"Side information on {flags.data}",
        verdict=verdicts(seeds),
        tables=means.tables(),
        measured_on={"data": flags.data, "seeds": str(flags.seeds)},
        settings={"data": flags.data, "data_dir": flags.data_dir, "seeds": flags.seeds},
        data={"mean": means.rows, "seeds": seeds},
    )
    with new_directory(workdir / "report") as folder:
        report.write(folder)
    report.show()
    print(f"The report is in {workdir / 'report'}")
    return seeds


if __name__ == "__main__":
    sys.exit(status(run))
