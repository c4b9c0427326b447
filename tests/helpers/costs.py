"""Records the cost of each test: ``pytest --costs FILE`` appends a line per test.

A line holds the processor seconds of a test and of the child processes that it waited for, the
wall-clock seconds, the memory of the worker afterwards (MiB), its growth, and the test's name. A
fixture that several tests share has a line of its own. Other processes do not disturb the counts.
``python tests/helpers/costs.py FILE`` sums the lines by file.
"""

import collections
import os
import resource
import sys
import time
from pathlib import Path

import pytest


class Costs:
    """The pytest plugin that writes the lines."""

    def __init__(self, path: Path):
        self.path = path
        self.shared = (0.0, 0.0, 0.0)  # costs of the shared fixtures that the current test set up

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item):
        self.shared = (0.0, 0.0, 0.0)
        before = now()
        result = yield
        own = [n - b - s for n, b, s in zip(now(), before, self.shared, strict=True)]
        self._write(own, item.nodeid)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef, request):
        before = now()
        result = yield
        if fixturedef.scope != "function":
            cost = [n - b for n, b in zip(now(), before, strict=True)]
            self.shared = tuple(s + c for s, c in zip(self.shared, cost, strict=True))
            if cost[0] >= 0.1:
                self._write(cost, f"{request.node.nodeid}::fixture {fixturedef.argname}")
        return result

    def _write(self, cost: list[float], name: str) -> None:
        processor, clock, grown = cost
        line = f"{processor:.2f}\t{clock:.2f}\t{resident():.0f}\t{grown:.0f}\t{name}\n"
        with self.path.open("a") as file:  # one short write, so that workers do not mix
            file.write(line)


def now() -> tuple[float, float, float]:
    """Return processor seconds, wall-clock seconds and MiB held."""
    return processor_seconds(), time.monotonic(), resident()


def processor_seconds() -> float:
    """Return the processor seconds of this process and its finished children."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def resident() -> float:
    """Return the MiB that this process holds now, or 0 without Linux's /proc."""
    pages = Path("/proc/self/statm")
    if not pages.is_file():
        return 0.0
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def summary(lines: list[str]) -> str:
    """Return the seconds and peak memory by file, costliest first, and the sum."""
    seconds, memory = collections.Counter(), collections.Counter()
    for line in lines:
        processor, _, held, _, name = line.rstrip("\n").split("\t", 4)
        file = name.split("::")[0]
        seconds[file] += float(processor)
        memory[file] = max(memory[file], int(held))
    rows = [
        f"{value:8.1f} s {memory[file]:6d} MiB  {file}" for file, value in seconds.most_common()
    ]
    total = f"{sum(seconds.values()):8.1f} s {max(memory.values(), default=0):6d} MiB  in all"
    return "\n".join([*rows, total])


if __name__ == "__main__":
    print(summary(Path(sys.argv[1]).read_text().splitlines()))
