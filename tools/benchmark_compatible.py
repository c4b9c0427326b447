"""Compatible training compared: all methods, FCT and FastFill, on one benchmark.

  python tools/benchmark_compatible.py                        # the digits, minutes on a CPU
  python tools/benchmark_compatible.py --config configs/gldv2_compatible.py   # the published one

For every scenario of the config it trains an old model, a new model alone and one with each
method, and FCT and FastFill from the old to the new model alone; then it prints how each is
searched with itself and with the old gallery, and writes tables and figures to WORKDIR/report.
What was trained before is not trained again.
"""

import argparse
import runpy
import sys
from pathlib import Path

from fct_jax.errors import UserError, unknown

METHODS = ("bct", "lce", "hot_refresh", "unibct", "advbct")
ALONE = "new alone"


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all others."""

    def error(self, message: str):
        raise UserError(f"{message} (see --help)")


def parser() -> Parser:
    parser = Parser(
        prog="benchmark_compatible.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    here = Path(__file__).resolve().parent.parent / "configs" / "digits_compatible.py"
    parser.add_argument("--config", type=Path, default=here, help="file with benchmark()")
    parser.add_argument(
        "--workdir", type=Path, help="where runs and report go (default runs/NAME of the config)"
    )
    parser.add_argument("--seeds", type=int, default=1, help="trainings to average (default 1)")
    parser.add_argument("--scenarios", help="some of the config's, with commas (default all)")
    parser.add_argument("--methods", default=",".join(METHODS), help=f"default {','.join(METHODS)}")
    return parser


def read_config(path: Path) -> dict:
    """What the config file defines."""
    if not path.is_file():
        raise UserError(f"no config file {path}")
    sys.path.append(str(path.resolve().parent.parent))  # for `from configs import common`
    found = runpy.run_path(str(path))
    if "benchmark" not in found:
        raise UserError(f"{path} has no benchmark(); see configs/digits_compatible.py")
    return found


def chosen(what: str, text: str | None, known) -> list[str]:
    """The names of a list with commas; None: all."""
    names = list(known) if text is None else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise unknown(what, name, known)
    return names


class Scenario:
    """The trainings of one scenario with one seed."""

    def __init__(self, name: str, config: dict, seed: int, folder: Path):
        self.name, self._config, self._seed = name, config, seed
        plan = config["benchmark"]()
        self._old_changes, self._new_changes = plan["scenarios"][name]
        self._tests, self._transformations = plan["tests"], plan["transformations"]
        self.folder = folder
        # Scenarios with the same old model share its run.
        self.old = folder.parent.parent / f"old-{_slug(self._old_changes)}" / f"seed{seed}"

    def check(self, methods: list[str]) -> None:
        """Looks for all files, lest days of training end at a missing image.

        Raises UserError; nothing is looked for where all is trained already.
        """
        from fct_jax import data
        from fct_jax.compare.test_sets import open_test
        from fct_jax.frozen.model import is_run

        if all(is_run(workdir) for _, workdir, _ in self._runs(methods)):
            return
        # The new model's data first: mostly the old one's is a part, and all missing are counted.
        for changes in (self._new_changes, self._old_changes):
            config = self._new_config("none", changes)
            data.open_source(config.data, "train")
            if config.pretrained and not Path(config.pretrained).is_file():
                raise UserError(f"no file {config.pretrained} (config.pretrained)")
        for changes in self._tests.values():
            config = self._new_config("none", {**self._new_changes, **changes})
            open_test(config).check_images()

    def train(self, methods: list[str]) -> None:
        """Trains everything that is not trained yet."""
        from fct_jax.train.loop import train

        runs = self._runs(methods)
        for number, (name, workdir, config) in enumerate(runs, 1):
            print(f"\n{self.name}, seed {self._seed}, {number}/{len(runs)}: {name}", flush=True)
            train(config, workdir)

    def _runs(self, methods: list[str]) -> list[tuple]:
        """(row, directory, config) of every training, in an order that finds its old model."""
        old = self._new_config("none", self._old_changes)
        # Another seed: models that start from the same weights are compatible by themselves.
        old.seed += 1000
        runs = [("old", self.old, old)]
        runs.append((ALONE, self.folder / "alone", self._new_config("none", self._new_changes)))
        for method in methods:
            config = self._new_config(method, self._new_changes)
            config.old = str(self.old)
            runs.append((method, self.folder / method, config))
        for name, template in self._transformations.items():
            config = template.copy_and_resolve_references()
            config.old, config.new = str(self.old), str(self.folder / "alone")
            config.data.update(self._new_config("none", self._new_changes).data)
            config.seed = self._seed
            runs.append((name, self.folder / name, config))
        return runs

    def report(self, methods: list[str]):
        """Scores of all rows on all test sets."""
        from fct_jax.compare.report import report_of
        from fct_jax.compare.test_sets import compare, open_test
        from fct_jax.frozen.model import is_run

        runs = {ALONE: self.folder / "alone", **{m: self.folder / m for m in methods}}
        transformations = {
            name: (self.folder / "alone", self.folder / name) for name in self._transformations
        }
        for name, folder in list(runs.items()):
            if is_run(folder / "gallery"):  # LCE with a transformation of the old gallery
                transformations[name] = runs.pop(name), folder / "gallery"
        tests = {}
        for name, changes in self._tests.items():
            config = self._new_config("none", {**self._new_changes, **changes})
            test = open_test(config)
            kept = self.folder / "galleries"
            tests[name] = compare(test, self.old, runs, transformations, kept)
        return report_of(self.name, tests)

    def _new_config(self, method: str, changes: dict):
        config = self._config["get_config"]()
        config.update_from_flattened_dict(changes)
        config.method, config.seed = method, self._seed
        return config


def run(arguments: list[str]) -> list:
    """The benchmark; returns its reports."""
    flags = parser().parse_args(arguments)
    if flags.seeds < 1:
        raise UserError(f"--seeds must be at least 1, not {flags.seeds}")
    config = read_config(flags.config)
    scenarios = chosen("scenario", flags.scenarios, config["benchmark"]()["scenarios"])

    from fct_jax.compare.report import mean_report, write_reports
    from fct_jax.storage.embedding_set import new_directory
    from fct_jax.train.compatible.methods import METHODS as known

    methods = chosen("compatible training method", flags.methods, known)
    workdir = flags.workdir or Path("runs") / flags.config.stem
    if (workdir / "report").exists():
        raise UserError(f"{workdir / 'report'} exists already; nothing was overwritten")
    for name in scenarios:
        Scenario(name, config, 0, workdir / name / "seed0").check(methods)
    _keep_compiled(workdir / "compiled")
    reports = []
    for name in scenarios:
        seeds = []
        for seed in range(flags.seeds):
            scenario = Scenario(name, config, seed, workdir / name / f"seed{seed}")
            scenario.train(methods)
            seeds.append(scenario.report(methods))
        reports.append(mean_report(seeds))
        reports[-1].show()
    with new_directory(workdir / "report") as folder:
        write_reports(reports, folder)
    print()
    for report in reports:
        report.show()
    print(f"\nresults.json, table.md and the curves are in {workdir / 'report'}")
    return reports


def _keep_compiled(folder: Path) -> None:
    """Trainings of one architecture share what XLA compiles: for the digits half of the time."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:  # the user's own goes first
        jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def _slug(changes: dict) -> str:
    text = "-".join(str(value) for value in changes.values())
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in text) or "default"


def main() -> int:
    try:
        run(sys.argv[1:])
    except UserError as error:
        print(f"benchmark_compatible.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
