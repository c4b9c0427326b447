"""The command ``fct-jax apply`` on Ray in a process of its own, which a test watches and kills."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from patience import LONG

REPOSITORY = Path(__file__).parents[2]
HELPERS = REPOSITORY / "tests" / "helpers"


# The command, which gives a cluster longer to answer than its user would.
_COMMAND = f"""
import sys
from fct_jax import cli
from fct_jax.upgrade.parts import ray_cluster
ray_cluster.REACHED = {LONG}.0
sys.exit(cli.main(sys.argv[1:]))
"""


def environment(**more) -> dict:
    """Return this process's environment, with the package and the helpers on the path."""
    paths = f"{HELPERS}{os.pathsep}{REPOSITORY}"
    return {**os.environ, "PYTHONPATH": paths, "RAY_raylet_start_wait_time_s": "600", **more}


def _works_for_ray(number: int) -> bool:
    """Return whether a process is one of Ray's; one that has ended has no command line."""
    try:
        return b"ray" in Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return False


class Driver:
    """The command in a process of its own, with its output in a file.

    slow: seconds that `slow_model` takes for a block, long enough for the test to kill in between.
    """

    def __init__(self, log: Path, *words, slow: float = 0.0):
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", _COMMAND, "apply", *map(str, words)],
                env=environment(
                    ASKED=str(log.with_name("asked")),
                    NEW=str(log.with_name("new")),
                    HOLD=str(log.with_name("go on")),
                    SLOW=str(slow),
                ),
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
            )
        self.seen: set[int] = set()

    def descendants(self) -> dict[int, str]:
        """Return the names of the processes that it started, and that these did, by number."""
        found, parents = {}, {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                text = stat.read_text()
                title = (stat.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, UnicodeDecodeError):
                continue
            parents[int(stat.parent.name)] = int(text.rpartition(")")[2].split()[1]), title
        known = {self.process.pid}
        while True:
            more = {n for n, (parent, _) in parents.items() if parent in known} - known
            if not more:
                break
            known |= more
        found = {n: parents[n][1] for n in known if n in parents}
        self.seen |= set(found)
        return found

    def until(self, reached) -> None:
        """Wait until something is reached, or the process ends."""
        begun = looked = time.monotonic()
        while not reached() and self.process.poll() is None:
            if time.monotonic() - looked > 1:
                self.descendants()
                looked = time.monotonic()
            assert looked - begun < LONG, self.log.read_text()
            time.sleep(0.05)

    def kill_worker(self, title: str) -> None:
        """Kill one worker that is at work."""
        found = [n for n, name in self.descendants().items() if name.startswith(f"ray::{title}")]
        assert found, self.log.read_text()
        os.kill(found[0], signal.SIGKILL)

    def kill(self) -> None:
        """Kill the process; Ray's own end with it, or are killed here."""
        self.descendants()
        self.process.kill()
        self.process.wait()
        time.sleep(1)
        others = self.seen - {self.process.pid}
        for number in filter(_works_for_ray, others):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        begun = time.monotonic()
        while any(map(_works_for_ray, others)):  # what a dying worker still writes is there then
            assert time.monotonic() - begun < LONG
            time.sleep(0.05)

    def done(self, code: int = 0) -> str:
        """Return the output of a process that ends by itself, with no traceback and noise in it."""
        self.until(lambda: False)
        said = self.log.read_text()
        assert self.process.returncode == code, said
        for noise in ("Traceback", "ray::", "(pid=", "(raylet)", "rpc_client", "core_worker"):
            assert noise not in said, said
        return said
