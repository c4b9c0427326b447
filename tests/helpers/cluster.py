"""Groups of processes on loopback for the tests; no process outlives its test."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

from patience import LONG

REPOSITORY = Path(__file__).parents[2]


@contextlib.contextmanager
def started(arguments_of, count: int, logs: Path, devices: int = 2):
    """Context of ``count`` Python processes, process i with ``arguments_of(i)``, killed at its end.

    The output of process i goes to ``logs/i.txt``.
    """
    logs.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests' / 'helpers'}",
    }
    running = []
    try:
        for index in range(count):
            with (logs / f"{index}.txt").open("w") as log:
                command = [sys.executable, *map(str, arguments_of(index))]
                running.append(
                    subprocess.Popen(
                        command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log
                    )
                )
        yield running
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait(timeout=LONG)


def finished(running, logs: Path, timeout: float) -> tuple[list[int], list[str]]:
    """Return exit codes and outputs once all have ended. Raises TimeoutExpired with the outputs."""
    deadline = time.monotonic() + timeout
    codes = []
    for process in running:
        try:
            codes.append(process.wait(max(deadline - time.monotonic(), 0.1)))
        except subprocess.TimeoutExpired as error:
            said = "\n---\n".join(outputs(logs, len(running)))
            raise AssertionError(f"still running after {timeout} s:\n{said}") from error
    return codes, outputs(logs, len(running))


def outputs(logs: Path, count: int) -> list[str]:
    """Return the output of each process so far."""
    return [(logs / f"{index}.txt").read_text(errors="replace") for index in range(count)]


def run(arguments_of, count: int, logs: Path, timeout: float, devices: int = 2):
    """Run processes that end by themselves; return their exit codes and outputs."""
    with started(arguments_of, count, logs, devices) as running:
        return finished(running, logs, timeout)
