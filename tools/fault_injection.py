"""Kill small runs again and again; their results must equal those of an undisturbed run.

    python tools/fault_injection.py --kills 20 --seed 0
    python tools/fault_injection.py --kills 6 --seed 1 --task advbct,embed

Every round runs one command, kills it (SIGKILL) at several moments, restarts it each time, lets it
finish, and compares weights, metrics and embeddings bit by bit. Some moments are drawn over the
whole duration, others are aimed at a step, at the write of a checkpoint, at the export, or at a
shard of embeddings. The exit status is 1 if anything differs, hangs or fails. A round takes about a
minute on two free cores.
"""

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))  # run as a file or as a module

from tools.faults.cases import CASES
from tools.faults.compare import differences, last_step
from tools.script import Parser, status

DEFAULT = "backbone,embed,fct,stream,lce,transform,advbct"
_LIMIT = 600  # seconds that one process may take
_POLL = 0.0005


class Moment(NamedTuple):
    """A moment at which to kill.

    Attributes:
      kind: "time", "step", or the meaning of a file that appears: "checkpoint", "export", …
      value: seconds after the start, or the step; for a file, seconds after it appears.
      pattern: the file's pattern, relative to the directory of the runs; "" if no file is meant.
    """

    kind: str
    value: float
    pattern: str = ""


class Kill(NamedTuple):
    """The outcome of a moment; ``hit`` tells whether the process was still running then."""

    moment: Moment
    hit: bool
    where: str


def started(module: str, arguments: list[str], home: Path) -> subprocess.Popen:
    """Start the command in ``home``; its output goes to ``home/output``."""
    environment = {"JAX_COMPILATION_CACHE_DIR": str(home.parent / "compiled"), **os.environ}
    with (home / "output").open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=home,
            env={**environment, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )


class Runner:
    """Runs the cases below one folder, which also keeps the outputs that other cases need.

    Args:
      folder: the folder to work in.
      start: a function that starts a command, as `started` does.
      say: a function that is called with messages.
    """

    def __init__(self, folder: Path, start=started, say=print):
        self._folder, self._start_command, self._say = folder, start, say
        self._references: dict[str, Path] = {}
        self._seconds: dict[str, float] = {}

    def reference(self, name: str) -> Path:
        """Return the directory of an undisturbed run and of its inputs."""
        if name not in self._references:
            home = self._home(name, "reference")
            self._references[name] = home
            self._finish(name, home)
            self._say(f"{name}: undisturbed in {self._seconds[name]:.1f} s")
        return self._references[name]

    def seconds(self, name: str) -> float:
        """Return the time of the fastest run that was not killed."""
        return self._seconds[name]

    def round(self, name: str, number: int, moments: list[Moment]) -> tuple[list[Kill], list[str]]:
        """Kill a run at each of the moments; return the kills, and the differences in the end.

        Raises:
          RuntimeError: if a run fails or hangs.
        """
        reference = self.reference(name)
        home = self._home(name, f"round-{number}")
        kills = []
        for moment in moments:
            process, start = self._start(name, home), time.monotonic()
            hit = _killed(process, home / name, moment)
            kills.append(Kill(moment, hit, _where(home, name)))
            self._say(f"{name}: {kills[-1].where}")
            if not hit:
                self._check_ended(name, home, process, time.monotonic() - start)
                break
        else:
            self._finish(name, home)
        found = differences(reference, home, name)
        if not found:
            shutil.rmtree(home)
        return kills, found

    def _home(self, name: str, kind: str) -> Path:
        home = self._folder / f"{name}-{kind}"
        home.mkdir()
        for needed in CASES[name].needs:
            shutil.copytree(self.reference(needed) / needed, home / needed)
        return home

    def _start(self, name: str, home: Path):
        case = CASES[name]
        return self._start_command(f"fct_jax.{case.module}", case.arguments(name), home)

    def _finish(self, name: str, home: Path) -> None:
        process, start = self._start(name, home), time.monotonic()
        while process.poll() is None and time.monotonic() - start < _LIMIT:
            time.sleep(0.02)
        self._check_ended(name, home, process, time.monotonic() - start)

    def _check_ended(self, name: str, home: Path, process, seconds: float) -> None:
        if process.poll() is None:
            process.kill()
            raise RuntimeError(f"{name} hung for {_LIMIT} s in {home}")
        said = (home / "output").read_text()
        # Embedding leaves existing files alone: the run was killed after it had finished its work.
        if process.returncode and "exists already; nothing was overwritten" not in said:
            raise RuntimeError(f"{name} ended with {process.returncode} in {home}:\n{said[-3000:]}")
        self._seconds[name] = min(seconds, self._seconds.get(name, seconds))


def draw(name: str, seconds: float, steps: int, count: int, rng) -> list[Moment]:
    """Return moments for one round, in the order in which a run reaches them."""
    if CASES[name].module == "embed":
        shard = f".{name}.partial/shards/{rng.integers(0, 8):05d}.json"
        aimed = [
            Moment("embedding", rng.uniform(0, 0.02), f".{name}.partial"),
            Moment("embedding", rng.uniform(0, 0.005), shard),
            Moment("end", rng.uniform(0, 0.01), f".{name}.partial/set/ids.npy"),
            Moment("end", rng.uniform(0, 0.01), f"{name}/vectors.npy"),
        ]
    else:
        aimed = [
            Moment("step", int(rng.integers(0, steps))),
            Moment("checkpoint", rng.uniform(0, 0.05), f"{name}/checkpoints/*tmp*"),
            Moment("step", int(rng.integers(steps // 2, steps))),
            Moment("export", rng.uniform(0, 0.003), f"{name}/.model.new"),
            Moment("end", rng.uniform(0, 0.002), f"{name}/model"),
        ]
    chosen = sorted(rng.permutation(len(aimed))[: max(count - 1, 1)])
    # This covers most of a run: later runs find the undisturbed run's programs in the cache.
    free = [Moment("time", rng.uniform(0, 0.7 * seconds))] if count > len(chosen) else []
    return free + [aimed[i] for i in chosen]


def _killed(process, workdir: Path, moment: Moment) -> bool:
    """Wait for the moment and kill the process; return False if it ended before."""
    home, start, began = workdir.parent, time.monotonic(), time.time()
    known = _files(home, moment.pattern)
    while process.poll() is None:
        elapsed = time.monotonic() - start
        if elapsed > _LIMIT:
            return False
        if moment.kind == "time":
            due = elapsed >= moment.value
        elif moment.kind == "step":
            due = last_step(workdir, since=began) >= moment.value
        else:
            due = bool(_files(home, moment.pattern) - known)
            if due:
                time.sleep(moment.value)
        if due:
            process.kill()
            break
        time.sleep(_POLL)
    process.wait(timeout=600)
    return process.returncode < 0


def _files(home: Path, pattern: str) -> set:
    """Return matching paths with their inodes, which tell new files from old ones of one name."""
    found = set()
    for path in home.glob(pattern) if pattern else ():
        try:
            found.add((path, path.stat().st_ino))
        except FileNotFoundError:
            continue
    return found


def _where(home: Path, name: str) -> str:
    """Return what a killed run was doing, judged by the files that it left."""
    workdir, partial = home / name, home / f".{name}.partial"
    if CASES[name].module == "embed":
        if workdir.exists():
            return "set complete"
        if partial.is_dir():
            return f"embedding, {len(list(partial.glob('shards/*.json')))} shards done"
        return "before the first shard"
    if (workdir / "model").is_dir():
        return "model exported"
    if (workdir / ".model.new").is_dir():
        return "exporting the model"
    if temporary := list(workdir.glob("checkpoints/*tmp*")):
        return f"writing checkpoint {temporary[0].name.split('.')[0]}"
    saved = [int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit()]
    step = last_step(workdir)
    if step < 0 and not saved:
        return "before the first logged step"
    return f"after step {step}, checkpoint {max(saved, default='none')}"


def inject(names: list[str], kills: int, seed: int, folder: Path) -> tuple[Table, bool]:
    """Run the rounds; return a table of all kills, and whether everything was equal.

    Args:
      names: names in ``CASES``, taken in turn.
      kills: the number of kills over all rounds.
      seed: seed of the moments.
      folder: the folder to work in.
    """
    rng = np.random.default_rng(seed)
    runner, sound, done = Runner(folder), True, 0
    columns = ("round", "run", "moment", "hit", "start", "equal")
    table = Table(*columns, title=f"{kills} kills, seed {seed}")
    for number, name in enumerate(itertools.cycle(names)):
        if done >= kills:
            return table, sound
        try:
            steps = max(last_step(runner.reference(name) / name), 2)
            moments = draw(name, runner.seconds(name), steps, min(4, kills - done), rng)
            found, differ = runner.round(name, number, moments)
        except RuntimeError as error:
            print(error)
            table.add_row(str(number), name, "", "", "", "failed")
            return table, False
        for line in differ:
            print(f"{name}: {line}")
        sound = sound and not differ
        for start, kill in enumerate(found, start=1):
            done += kill.hit
            kind, value, _ = kill.moment
            moment = f"{kind} {value}" if kind == "step" else f"{kind} + {value:.3f} s"
            hit = kill.where if kill.hit else "ended before"
            equal = "no" if differ else "yes"
            table.add_row(str(number), name, moment, hit, str(start), equal)


def main(words) -> int:
    """Run the rounds that the command line asks for; return the exit status."""
    parser = Parser(__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task", default=DEFAULT, help=f"comma-separated, of: {', '.join(CASES)}")
    parser.add_argument(
        "--folder", type=Path, help="folder to work in, which is kept (default: a temporary one)"
    )
    arguments = parser.parse_args(words)
    names = arguments.task.split(",")
    for name in names:
        if name not in CASES:
            parser.error(f"unknown task {name!r}; known: {', '.join(CASES)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        table, sound = inject(names, arguments.kills, arguments.seed, folder)
    Console(width=110).print(table)
    return int(not sound)


if __name__ == "__main__":
    sys.exit(status(main))
