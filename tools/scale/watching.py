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
WRITTEN = "written", 1 << 20  # bytes by which a process has begun to work
READ = (
    "read",
    1 << 26,
)  # likewise if it hardly writes; Python itself reads 20 to 50 MiB at its start
_EVERY = 0.1  # seconds between two looks
_TICKS = os.sysconf("SC_CLK_TCK")
ROOT = Path(__file__).parent.parent.parent


class Kills:
    """Says when the next kill is due, by the clock, through all steps of a run."""

    def __init__(self, every: float):
        self._every = every
        self.again()

    def again(self) -> None:
        """Wait again from now on."""
        self._next = time.monotonic() + self._every

    @property
    def due(self) -> bool:
        """Return whether it is time to kill."""
        return time.monotonic() >= self._next


class Watched:
    """Context that measures all processes which `start` starts.

    Attributes:
      resumed: seconds from each kill until the process that was started for it had begun to work,
        or had ended.
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
        self._start, self._device_before = time.perf_counter(), self._device()
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

    def survive(self, commands, kills: "Kills", most: int, begun=WRITTEN, victims="") -> None:
        """Run commands beside each other until all succeed; kill one whenever a kill is due.

        Args:
          commands: arguments of Python.
          kills: says when a kill is due. A process is killed only after it has begun to work, and
            is started again at once.
          most: number of kills, after which none is killed any more.
          begun: (figure, least value) by which a process has begun to work.
          victims: beginning of the command line of processes that are killed at every second
            kill instead, and that others start again.
        """
        tasks = [_Task(self, command, begun, kills) for command in commands]
        lost: tuple[float, set] | None = None  # when a victim was killed, and those of that time
        while tasks := [task for task in tasks if not task.look()]:
            time.sleep(_EVERY)
            if lost is not None and any(
                self.begun(pid, begun) for pid in {*self.alive(victims)} - lost[1]
            ):
                self.resumed.append(time.monotonic() - lost[0])
                lost = None
                kills.again()
            if not kills.due or self.kills >= most:
                continue
            others = self.alive(victims) if victims and self.kills % 2 == 0 else []
            ready = [task for task in tasks if task.begun()]
            if others:
                lost = time.monotonic(), {*others}
                self._look()  # the figures of what is killed now
                os.kill(others[0], signal.SIGKILL)
            elif ready:
                self._look()
                ready[self.kills % len(ready)].kill()
            else:
                continue
            self.kills += 1
            kills.again()

    def begun(self, pid: int, least: tuple[str, int]) -> bool:
        """Return whether a process, or one that it has started, has begun to work."""
        name, value = least
        family, grown = {pid}, True
        while grown:
            more = {p for (p, _), facts in list(self._seen.items()) if facts["parent"] in family}
            grown, family = not more <= family, family | more
        return any(facts[name] > value for (p, _), facts in list(self._seen.items()) if p in family)

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
            "device_written_per_row": round((self._device() - self._device_before) / rows, 1),
            "kills": self.kills,
            "resumed_after": [round(s, 1) for s in self.resumed],
        }

    def _device(self) -> int:
        """Return the bytes that all processes have written to the disk of the log; 0: unknown."""
        number = self.log.parent.stat().st_dev
        path = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat")
        with contextlib.suppress(OSError):
            return int(path.read_text().split()[6]) * 512
        return 0

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


class _Task:
    """A command that is started again after each kill."""

    def __init__(self, watched: Watched, command, begun, kills: Kills):
        self._watched, self._command, self._least = watched, command, begun
        self._kills = kills
        self._process, self._killed = watched.start(*command), None

    def look(self) -> bool:
        """Note when it has begun again; return whether it has succeeded. Raises UserError."""
        if self._killed is not None and self.begun():
            self._watched.resumed.append(time.monotonic() - self._killed)
            self._killed = None
            self._kills.again()  # it works for as long as any, however slowly it starts
        if self._process.poll() is None:
            return False
        self._watched.check(self._process, self._command)
        if self._killed is not None:  # little was left
            self._watched.resumed.append(time.monotonic() - self._killed)
        return True

    def begun(self) -> bool:
        return self._watched.begun(self._process.pid, self._least)

    def kill(self) -> None:
        """Kill its process and those of its group, and start it again."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._killed = time.monotonic()
        self._process = self._watched.start(*self._command)


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
        "parent": int(fields[1]),
        "cpu": (int(fields[11]) + int(fields[12])) / _TICKS,
        "memory": int(files.get("RssAnon", 0)) << 10,
        "read": int(files["rchar"]),
        "written": int(files["wchar"]),
        "disk_read": int(files["read_bytes"]),
        "disk_written": int(files["write_bytes"]),
    }
