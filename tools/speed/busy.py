"""Measure how close `fit`, `assess` and `apply` come to their fair share beside busy processes.

    python tools/speed/busy.py                    # beside 8 busy loops
    python tools/speed/busy.py --loops 2 fit

Each task runs in a fresh process, first alone and then beside the loops. The system divides the
processors among all threads that want one, so that a task's fair time follows from the CPU time
that a loop got meanwhile:

    fair seconds = CPU seconds needed / (threads × share)
    needed       = the fewer CPU seconds, of those spent alone and those spent beside the loops
    share        = CPU seconds of a loop / seconds that the task took beside the loops
    threads      = CPU seconds alone / seconds alone, at least 1

The ratio of the time taken to the fair time is 1 if nothing is lost. Threads that spin while they
wait for each other, or that wait for each other in turn, make it larger. Other busy processes slow
down the loops as well, so that the ratio remains valid beside them.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))  # run as a file or as a module

DIM = 384
_LIMIT = 1800  # seconds for one task


def fit(folder: Path):
    """Return a function that fits Procrustes to 3,000 pairs of 384 dimensions."""
    from fct_jax import upgrade

    old, new = _pairs(3000)
    return lambda: upgrade.fit(old, new, method="procrustes")


def assess(folder: Path):
    """Return a function that assesses a ridge map by labels of 2,000 items and 300 queries."""
    from fct_jax import upgrade

    old, new = _pairs(2000)
    labels = np.arange(len(old)) % 50
    return lambda: upgrade.assess(
        None, old, new, labels=labels, method="ridge", max_queries=300, resamples=200
    )


def apply(folder: Path):
    """Return a function that translates a gallery of 20,000 rows."""
    from fct_jax import upgrade
    from fct_jax.storage.embedding_set import EmbeddingSet
    from fct_jax.upgrade.migration.upgrade import Upgrade

    old, new = _pairs(20_000)
    mapping = upgrade.fit(old[:2000], new[:2000], method="ridge")
    EmbeddingSet.of(old).write(folder / "gallery")
    return lambda: Upgrade(folder / "upgrade").apply(mapping, folder / "gallery", unchecked=True)


TASKS = {"fit": fit, "assess": assess, "apply": apply}


@dataclasses.dataclass(frozen=True)
class Measured:
    """Seconds of the clock and of the processors, and the CPU seconds of a loop meanwhile."""

    seconds: float
    cpu: float
    loop: float = 0.0


def _pairs(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    middles = rng.normal(size=(50, DIM))[np.arange(count) % 50]
    old = middles + rng.normal(size=(count, DIM))
    new = old @ np.linalg.qr(rng.normal(size=(DIM, DIM)))[0] + 0.1 * rng.normal(size=(count, DIM))
    return old.astype(np.float32), new.astype(np.float32)


def ratio(alone: Measured, beside: Measured) -> float:
    """Return the seconds taken beside the loops ÷ the fair seconds; see the module's docstring."""
    threads = max(1.0, alone.cpu / alone.seconds)
    share = beside.loop / beside.seconds
    return beside.seconds / (min(alone.cpu, beside.cpu) / (threads * share))


def measure(task: str, loops: int) -> Measured:
    """Run a task in a fresh process, beside ``loops`` busy loops that start when it is ready."""
    command = [sys.executable, str(Path(__file__).absolute()), "--run", task]
    context = multiprocessing.get_context("spawn")
    spent = context.Array("d", max(loops, 1), lock=False)
    busy = [context.Process(target=_spin, args=(spent, i), daemon=True) for i in range(loops)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        if child.stdout.readline().strip() != "ready":
            raise RuntimeError(f"{task} ended before it was ready")
        for process in busy:
            process.start()
        while loops and not min(spent):  # until all loops are busy
            time.sleep(0.05)
        before = list(spent)
        said, _ = child.communicate("go\n", timeout=_LIMIT)
        after = list(spent)
    finally:
        child.kill()
        child.wait()
        for process in busy:
            if process.pid:
                process.kill()
                process.join()
    if child.returncode:
        raise RuntimeError(f"{task} ended with status {child.returncode}")
    found = json.loads(said.splitlines()[-1])
    got = np.subtract(after, before).mean()
    return Measured(found["seconds"], found["cpu"], float(got))


def _spin(spent, number: int) -> None:
    while True:
        spent[number] = time.process_time()


def _run(task: str) -> None:
    """Prepare the task, wait for a line of input, run the task and print its times."""
    with tempfile.TemporaryDirectory() as folder:
        call = TASKS[task](Path(folder))
        print("ready", flush=True)
        sys.stdin.readline()
        start, spent = time.perf_counter(), sum(os.times()[:4])
        call()
        taken = {"seconds": time.perf_counter() - start, "cpu": sum(os.times()[:4]) - spent}
    print(json.dumps(taken))


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", nargs="*", default=[], help=f"{', '.join(TASKS)}; none: all")
    parser.add_argument("--loops", type=int, default=8, help="busy processes (default 8)")
    parser.add_argument("--run", choices=TASKS, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.run:
        _run(given.run)
        return
    if wrong := [task for task in given.tasks if task not in TASKS]:
        parser.error(f"unknown task {wrong[0]!r}; known: {', '.join(TASKS)}")
    if given.loops < 1:
        parser.error("--loops must be at least 1")
    if hasattr(os, "getloadavg"):
        print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    print(f"| | alone (CPU) | beside {given.loops} loops (CPU) | share of a thread | ratio |")
    print("|---|---:|---:|---:|---:|")
    for task in given.tasks or TASKS:
        alone, beside = measure(task, 0), measure(task, given.loops)
        cells = [task, *(f"{m.seconds:.1f} s ({m.cpu:.1f} s)" for m in (alone, beside))]
        cells += [f"{100 * beside.loop / beside.seconds:.0f} %", f"{ratio(alone, beside):.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
