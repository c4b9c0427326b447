"""Processes that are measured while they run, and killed now and then.

A process and all that it starts, Ray's workers too, are found by a variable in their environment.
Their figures are read from /proc until they end, so this needs Linux. What a process does in the
last tenth of a second of its life may be missing.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from fct_jax.errors import UserError

MARK = "FCT_SCALE_MARK"
_EVERY = 0.1  # seconds between two looks
_BEGUN = 1 << 20  # bytes written by a process that has begun to work
_TICKS = os.sysconf("SC_CLK_TCK")
ROOT = Path(__file__).parent.parent.parent


class Watched:
    """Context that measures all processes which `start` starts.

    Attributes:
      resumed: seconds from each start after a kill until the process had written a MiB.
      kills: number of processes that were killed.
    """

    def __init__(self, log: Path, environment=None):
        self.mark, self.log = secrets.token_hex(8), log
        self.environment = {**os.environ, **(environment or {}), MARK: self.mark}
        paths = [str(ROOT), self.environment.get("PYTHONPATH", "")]
        self.environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        self.resumed: list[float] = []
        self.kills = 0
        self._seen: dict[tuple[int, int], dict] = {}
        self._others: set[tuple[int, int]] = set()
        self._peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watched":
        self._start = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self.seconds = time.perf_counter() - self._start
        self._ended.set()
        self._thread.join()
        for pid in self.alive():  # what a killed driver has left
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def start(self, *command: str) -> subprocess.Popen:
        """Start Python with some arguments, in a process group of its own."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *command], env=self.environment, cwd=ROOT,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def run(self, *command: str) -> None:
        """Run Python with some arguments. Raises UserError if it fails."""
        self.check(self.start(*command), command)

    def check(self, process: subprocess.Popen, command) -> None:
        """Wait for a process. Raises UserError if it fails."""
        if process.wait():
            end = self.log.read_text(errors="replace")[-1500:]
            raise UserError(f"{' '.join(command)} ended with status {process.returncode}: {end}")

    def survive(self, commands, every: float, most: int, victims=None) -> None:
        """Run commands beside each other until all succeed; kill one every ``every`` seconds.

        Args:
          commands: arguments of Python.
          every: seconds between two kills. A process is killed only after it has begun to write,
            and is started again at once.
          most: number of kills, after which none is killed any more.
          victims: function that returns the pid of another process to kill at every second kill,
            or None; nothing is started for it.
        """
        running = {i: (self.start(*command), None) for i, command in enumerate(commands)}
        due, turn = time.monotonic() + every, 0
        while running:
            time.sleep(_EVERY)
            for i, (process, since) in list(running.items()):
                if since is not None and self.written(process.pid) > _BEGUN:
                    self.resumed.append(time.monotonic() - since)
                    running[i] = process, None
                if process.poll() is None:
                    continue
                self.check(process, commands[i])
                del running[i]
            if time.monotonic() < due or self.kills >= most or not running:
                continue
            other = victims(self) if victims is not None and self.kills % 2 == 0 else None
            if other is not None:
                os.kill(other, signal.SIGKILL)
            else:
                i = sorted(running)[turn % len(running)]
                process = running[i][0]
                if self.written(process.pid) <= _BEGUN:
                    continue
                turn += 1
                self._look()  # the figures of what is killed now
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                running[i] = self.start(*commands[i]), time.monotonic()
            self.kills += 1
            due = time.monotonic() + every

    def written(self, pid: int) -> int:
        """Return the bytes that a process has written so far."""
        with contextlib.suppress(OSError, ValueError):
            return _facts(pid)["written"]
        return 0

    def alive(self, name: str = "") -> list[int]:
        """Return the pids of the marked processes whose command line begins with a name."""
        return [
            pid for pid, _ in list(self._seen)
            if Path(f"/proc/{pid}").is_dir() and _command(pid).startswith(name)
        ]  # fmt: skip

    def figures(self, rows: int) -> dict:
        """Return what the processes needed, after the end."""
        seen = self._seen.values()

        def total(name):
            return sum(facts[name] for facts in seen)

        cpu = total("cpu")
        return {
            "seconds": round(self.seconds, 2),
            "rows_per_second": round(rows / self.seconds),
            "cpu_seconds": round(cpu, 2),
            "cpu_seconds_per_million": round(cpu / rows * 1e6, 2),
            "peak_mb": round(self._peak / 2**20),
            "read_per_row": round(total("read") / rows, 1),
            "written_per_row": round(total("written") / rows, 1),
            "disk_read_per_row": round(total("disk_read") / rows, 1),
            "disk_written_per_row": round(total("disk_written") / rows, 1),
            "kills": self.kills,
            "resumed_after": [round(s, 1) for s in self.resumed],
        }

    def _watch(self) -> None:
        while not self._ended.wait(_EVERY):
            self._look()
        self._look()

    def _look(self) -> None:
        memory = 0
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError, ValueError, IndexError):
                key = int(entry.name), _begun(entry.name)
                if key in self._others:
                    continue
                if key not in self._seen:
                    marked = f"{MARK}={self.mark}".encode()
                    if marked not in Path(entry.path, "environ").read_bytes().split(b"\0"):
                        if time.clock_gettime(time.CLOCK_BOOTTIME) - key[1] / _TICKS > 2:
                            self._others.add(key)  # a younger one may get its environment yet
                        continue
                facts = _facts(key[0])
                self._seen[key] = facts
                memory += facts["memory"]
        self._peak = max(self._peak, memory)


def _begun(pid) -> int:
    return int(_stat(pid)[19])


def _stat(pid) -> list[str]:
    """Return the fields of /proc/PID/stat behind the name."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def _facts(pid: int) -> dict:
    """Return CPU seconds, anonymous memory, and bytes read and written by calls and from disk."""
    fields, files = _stat(pid), {}
    for name in ("io", "status"):
        for line in Path(f"/proc/{pid}/{name}").read_text().splitlines():
            key, _, value = line.partition(":")
            files[key] = value.split()[0] if value.split() else ""
    return {
        "cpu": (int(fields[11]) + int(fields[12])) / _TICKS,
        "memory": int(files.get("RssAnon", 0)) << 10,
        "read": int(files["rchar"]),
        "written": int(files["wchar"]),
        "disk_read": int(files["read_bytes"]),
        "disk_written": int(files["write_bytes"]),
    }
