"""A scenario benchmark: train its missing models, and compare all of them.

Besides ``get_config``, the config file of a benchmark has a function ``benchmark`` that names
scenarios, test sets, transformations and, if a method's publication requires them, changes
of its config; ``configs/digits_compatible.py`` is an example.
"""

from collections.abc import Sequence
from pathlib import Path

from fct_jax import data
from fct_jax.compare.command import measured_on
from fct_jax.compare.models import judge
from fct_jax.compare.report import ALONE, Comparison, described, mean_report, report_of
from fct_jax.compare.test_sets import open_test
from fct_jax.errors import UserError, unknown
from fct_jax.frozen.model import is_run
from fct_jax.runtime.config_files import find_config, run_config
from fct_jax.storage.files import new_directory
from fct_jax.train.compatible.methods import METHODS as KNOWN

METHODS = ("bct", "lce", "hot_refresh", "unibct", "advbct", "oca", "bt2", "mixbct")


def benchmark(
    config,
    workdir=None,
    *,
    seeds: int = 1,
    scenarios: Sequence[str] | None = None,
    methods: Sequence[str] = METHODS,
) -> list[Comparison]:
    """Train all models of a benchmark, compare them, and write WORKDIR/report.

    Every scenario has an old model, a new model trained alone, a new model with each method, and
    the transformations (FCT and FastFill, say) from the old model to the new one alone. Existing
    models are not trained again.

    Args:
      config: file with ``get_config`` and ``benchmark``, or the name of a packaged one.
      workdir: directory of runs and report; None: ``runs/NAME`` of the config.
      seeds: number of trainings to average.
      scenarios: some of the config's scenarios; None: all.
      methods: methods of compatible training.

    Returns: a `Comparison` for each scenario.

    Raises:
      UserError: unknown names, an existing report, a missing image.
    """
    if seeds < 1:
        raise UserError(f"seeds must be at least 1, not {seeds}")
    path = find_config(str(config))
    plan = run_config(path)
    if "benchmark" not in plan:
        raise UserError(f"{path} has no benchmark(); see configs/digits_compatible.py")
    known = plan["benchmark"]()["scenarios"]
    names = list(known) if scenarios is None else list(scenarios)
    for chosen, table, what in (
        (names, known, "scenario"),
        (methods, KNOWN, "compatible training method"),
    ):
        for name in chosen:
            if name not in table:
                raise unknown(what, name, table)
    workdir = Path(workdir) if workdir is not None else Path("runs") / path.stem
    if (workdir / "report").exists():
        raise UserError(f"{workdir / 'report'} exists already; nothing was overwritten")
    for name in names:
        Scenario(name, plan, 0, workdir / name / "seed0").check(methods)
    _keep_compiled(workdir / "compiled")
    made = []
    for name in names:
        of_seeds = []
        for seed in range(seeds):
            scenario = Scenario(name, plan, seed, workdir / name / f"seed{seed}")
            scenario.train(methods)
            of_seeds.append(scenario.compare(methods))
        made.append(mean_report(of_seeds))
    settings = {"config": str(path), "seeds": seeds, "scenarios": names, "methods": list(methods)}
    report = described(made, settings, scenario.measured_on())
    with new_directory(workdir / "report") as folder:
        report.write(folder)
    report.show()
    print(f"\nThe report is in {workdir / 'report'}; report.html is for the browser.")
    return made


class Scenario:
    """The trainings of one scenario with one seed."""

    def __init__(self, name: str, config: dict, seed: int, folder: Path):
        self.name, self._config, self._seed = name, config, seed
        plan = config["benchmark"]()
        self._old_changes, self._new_changes = plan["scenarios"][name]
        self._tests, self._transformations = plan["tests"], plan["transformations"]
        self._of_method = plan.get("methods", {})
        self.folder = folder
        # Scenarios with the same old model share its run.
        self.old = folder.parent.parent / f"old-{_slug(self._old_changes)}" / f"seed{seed}"

    def check(self, methods: Sequence[str]) -> None:
        """Check that all files exist, so that days of training do not end at a missing image.

        Raises UserError. Nothing is checked if everything is already trained.
        """
        if all(is_run(workdir) for _, workdir, _ in self._runs(methods)):
            return
        # The new model's data comes first: it mostly includes the old one's, and all gaps count.
        for changes in (self._new_changes, self._old_changes):
            config = self._new_config("none", changes)
            data.open_source(config.data, "train")
            if config.pretrained and not Path(config.pretrained).is_file():
                raise UserError(f"no file {config.pretrained} (config.pretrained)")
        for test in self._open_tests().values():
            test.check_images()

    def train(self, methods: Sequence[str]) -> None:
        """Train all missing models."""
        from fct_jax.train.loop import train

        runs = self._runs(methods)
        for number, (name, workdir, config) in enumerate(runs, 1):
            print(f"\n{self.name}, seed {self._seed}, {number}/{len(runs)}: {name}", flush=True)
            train(config, workdir)

    def compare(self, methods: Sequence[str]) -> Comparison:
        """Return the scores of all models on all test sets."""
        alone = self.folder / "alone"
        models = {name: self.folder / name for name in (*methods, *self._transformations)}
        found = {
            name: judge(test, self.old, alone, models, self.folder / "galleries")
            for name, test in self._open_tests().items()
        }
        return report_of(self.name, found)

    def measured_on(self) -> dict[str, str]:
        """Return the test sets in words."""
        return measured_on(self._open_tests())

    def _open_tests(self) -> dict:
        return {
            name: open_test(self._new_config("none", {**self._new_changes, **changes}))
            for name, changes in self._tests.items()
        }

    def _runs(self, methods: Sequence[str]) -> list[tuple]:
        """Return (row, directory, config) of every training, each after that of its old model."""
        old = self._new_config("none", self._old_changes)
        # The seed differs, because models with the same initial weights are compatible anyway.
        old.seed += 1000
        runs = [("old", self.old, old)]
        runs.append((ALONE, self.folder / "alone", self._new_config("none", self._new_changes)))
        for method in methods:
            changes = {**self._new_changes, **self._of_method.get(method, {})}
            config = self._new_config(method, changes)
            config.old, row = str(self.old), KNOWN[method]
            size = config.model.embedding_dim
            config.model.embedding_dim = row.size.of(size, old.model.embedding_dim, size)
            if row.teacher:
                config.teacher = str(self.folder / "alone")
            runs.append((method, self.folder / method, config))
        for name, template in self._transformations.items():
            config = template.copy_and_resolve_references()
            config.old, config.new = str(self.old), str(self.folder / "alone")
            config.data.update(self._new_config("none", self._new_changes).data)
            config.seed = self._seed
            runs.append((name, self.folder / name, config))
        return runs

    def _new_config(self, method: str, changes: dict):
        config = self._config["get_config"]()
        config.update_from_flattened_dict(changes)
        config.method, config.seed = method, self._seed
        return config


def _keep_compiled(folder: Path) -> None:
    """Keep what XLA compiles for all trainings of one architecture: half of the digits' time."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:  # the user's own goes first
        jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def _slug(changes: dict) -> str:
    text = "-".join(str(value) for value in changes.values())
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in text) or "default"
