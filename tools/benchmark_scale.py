"""Takes a large made-up gallery through a whole upgrade, while its processes are killed.

    python tools/benchmark_scale.py --rows 10000000 --folder /data/scale    # a run
    python tools/benchmark_scale.py --quick --folder scale                  # 100,000 rows
    python tools/benchmark_scale.py --table                   # how costs grow, and what follows

A run makes a gallery of --rows × 384 float16 vectors, translates it by the plain NumPy loop, plans
to re-embed 1 % of it, translates it in two parts side by side and once more on Ray, re-embeds the
1 %, and rolls back. The two translations and the one after the rollback must have the same bytes.
Files have no readers to switch, so the first --store-rows rows go into a LanceDB table as well,
which is planned, translated into another table, re-embedded, switched to, and switched back from.

Every --kill-every seconds, whatever step it is, a process is killed with SIGKILL once it has begun
to work, and started again: a part, a worker or the driver of Ray, or the command. What has no
record to resume from (plan, rollback, switch) is killed once at most.

Rows a second are by the clock, kills and starts included; for re-embedding and rolling back they
are the items. CPU seconds are those of all processes; peak memory is the largest sum of their
anonymous memory; bytes per row are those that they read and wrote by calls (files that are mapped
are missing); a row that a killed process had computed counts again. "At work again" is the time
from a kill until the new process has written a MiB, or read 64 MiB where it hardly writes; the
next kill comes that much later. OUT/scale.json also has the pages that the processes read from disk
or changed (disk_read, disk_written), of which a file system may write only the changed blocks, and
what the disk wrote for all processes (device_written).

Each run is added to OUT/scale.json, beside what other --engines gave for as many rows, and
OUT/growth.png shows all of them. --folder needs 2.1 times the gallery's size (768 bytes a row), or
the gallery and 7,680 bytes for each row of the store.
"""

import json
import os
import platform
import shutil
import signal
import sys
import time
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # run as a file or as a module

from fct_jax.errors import UserError
from tools.scale.gallery import GALLERY, check_space
from tools.scale.growth import Prices, draw, grown, table
from tools.scale.store import uri
from tools.scale.watching import READ, WRITTEN, Kills, Watched
from tools.script import Parser, read_json, status

QUICK = 100_000
ENGINES = "parts", "ray", "store"
STEPS = {
    "plain loop": "the plain NumPy loop",
    "plan": "plan, which reads and translates once",
    "two parts": "apply --part 1/2 and 2/2, side by side",
    "ray": "apply --engine ray",
    "re-embed 1 %": "apply --reembed, made-up vectors of a function",
    "rollback": "rollback --to 0",
    "store: plain loop": "LanceDB: the plain loop into another table",
    "store: plan": "LanceDB: plan",
    "store: apply": "LanceDB: apply",
    "store: re-embed 1 %": "LanceDB: apply --reembed",
    "store: switch": "LanceDB: switch",
    "store: switch back": "LanceDB: switch --back",
}
REEMBED = "--reembed", "tools.scale.gallery:embed"
COMMANDS = {  # whether a killed one resumes, and how to see that it has begun to work
    "plan": (False, READ),
    "apply": (True, WRITTEN),
    "rollback": (False, WRITTEN),
    "switch": (False, READ),
}


def main(words) -> None:
    """Measure what the command line asks for, or print the table."""
    parser = Parser(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the gallery")
    parser.add_argument(
        "--folder", type=Path, default=Path("scale"), help="folder of the galleries"
    )
    parser.add_argument("--out", type=Path, default=Path("scale"), help="folder of scale.json")
    parser.add_argument("--kill-every", type=float, default=60, help="seconds between two kills")
    parser.add_argument("--kills", type=int, default=8, help="largest number of kills in a step")
    parser.add_argument("--engines", default=",".join(ENGINES), help="some of these")
    parser.add_argument("--store-rows", type=int, help=f"rows of the store ({QUICK:,})")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK:,} rows, a kill every 3 s")
    parser.add_argument(
        "--table", action="store_true", help="print how costs grow, and what follows"
    )
    Prices.add_arguments(parser)
    given = parser.parse_args(words)
    if given.table:
        if not (given.out / "scale.json").is_file():
            raise UserError(f"{given.out}/scale.json does not exist; measure first")
        found = read_json(given.out / "scale.json")
        print(f"{grown(found, STEPS)}\n\n{table(found, Prices.of(given))}")
        return
    if given.quick:
        given.rows, given.kill_every, given.kills = QUICK, 3, 1
    if given.store_rows is None:
        given.store_rows = min(given.rows, QUICK)
    unknown = set(given.engines.split(",")) - {*ENGINES}
    if unknown or given.rows < 1000 or given.kill_every <= 0:
        parser.error("--engines are parts, ray, store, --rows at least 1000, --kill-every above 0")
    if not 1000 <= given.store_rows <= given.rows:
        parser.error(f"--store-rows are from 1000 to --rows ({given.rows:,})")
    given.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the processes of a step end, too
    run = Run(given.folder, given.rows, given.store_rows, Kills(given.kill_every), given.kills)
    made = run.all(given.engines)
    found = read_json(given.out / "scale.json") if (given.out / "scale.json").is_file() else {}
    found[str(given.rows)] = {
        "machine": _machine(),
        "when": time.strftime("%Y-%m-%d"),
        **_joined(found.get(str(given.rows), {}), made),
    }
    (given.out / "scale.json").write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
    draw(found, given.out / "growth.png")
    print(report(given.rows, made))


def _joined(earlier: dict, made: dict) -> dict:
    """Return a run with the steps that only an earlier one took, if it gave the same bytes."""
    steps, sums = ({**earlier.get(key, {}), **made[key]} for key in ("steps", "crc32"))
    if len(set(sums.values())) > 1:
        return made
    return {**made, "steps": steps, "crc32": sums}


def report(rows: int, made: dict) -> str:
    """Return the figures of one run as a Markdown table."""
    lines = [
        f"| {rows:,} rows | rows/s | CPU s a million | peak MB | read, written a row "
        "| kills | at work again after |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [_line(name, step) for name, step in made["steps"].items()]
    return "\n".join(lines + [f"\n{note}" for note in made["notes"]])


def _line(name: str, step: dict) -> str:
    again = ", ".join(f"{s:g} s" for s in step["resumed_after"])
    return (
        f"| {STEPS[name]} | {step['rows_per_second']:,} | {step['cpu_seconds_per_million']:,} "
        f"| {step['peak_mb']:,} | {step['read_per_row']:,.0f}, {step['written_per_row']:,.0f} "
        f"| {step['kills']} | {again} |"
    )


class Run:
    """One run, whose steps are processes of their own."""

    def __init__(self, folder: Path, rows: int, store_rows: int, kills: Kills, most: int):
        self.folder, self.rows = folder.resolve() / f"rows-{rows}", rows
        self._store_rows, self._kills, self._most = store_rows, kills, most
        self.gallery, self.map = self.folder / "gallery", self.folder / "map"
        self.steps: dict[str, dict] = {}
        self.notes: list[str] = []

    def all(self, engines: str) -> dict:
        """Take all steps; remove the galleries at the end. Raises UserError if one fails."""
        if self.folder.exists():
            raise UserError(f"{self.folder} exists already; remove it, or give another --folder")
        self.folder.mkdir(parents=True)
        try:
            check_space(self.folder, self.rows, self._store_rows if "store" in engines else 0)
            with self._watched() as watched:
                watched.run(
                    "-m", "tools.scale.gallery", "gallery", str(self.gallery), f"{self.rows}"
                )
                watched.run("-m", "tools.scale.gallery", "map", str(self.map))
            self._plain()
            sums = {name: getattr(self, f"_{name}")() for name in engines.split(",")}
            sums = {name: found for name, found in sums.items() if found is not None}
            if len(set(sums.values())) > 1:
                raise UserError(f"the translations differ: CRC-32 {sums}")
            return {
                "steps": self.steps,
                "notes": self.notes,
                "crc32": sums,
                "store_rows": self._store_rows,
            }
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _plain(self) -> None:
        out = self.folder / "plain"
        with self._step("plain loop") as watched:
            watched.run(
                "-m", "tools.scale.gallery", "plain", str(self.gallery), str(self.map), str(out)
            )
        shutil.rmtree(out)

    def _parts(self) -> str:
        """Upgrade with two parts, re-embed, and roll back; return the checksum."""
        up = self.folder / "parts"
        budget = max(1, self.rows // 100)
        self._command("plan", "plan", *self._named(up), "--budget-items", str(budget))
        parts = [
            ("-m", "fct_jax", "apply", str(up), "--part", f"{i}/2", "--unchecked") for i in (1, 2)
        ]
        with self._step("two parts") as watched:
            watched.survive(parts, self._kills, self._most)
        if not (up / "gallery" / "vectors.npy").is_file():
            raise UserError(f"both parts ended, but {up}/gallery is not there")
        translated = _checksum(up)
        self._command("re-embed 1 %", "apply", str(up), *REEMBED, rows=budget)
        if _checksum(up) == translated:
            raise UserError("re-embedding has changed no byte")
        self._command("rollback", "rollback", str(up), "--to", "0", rows=budget)
        if _checksum(up) != translated:
            raise UserError("the gallery after the rollback is not the translated one")
        shutil.rmtree(up)
        return translated

    def _ray(self) -> str | None:
        """Translate on Ray; return the checksum, or None where Ray is not installed."""
        up = self.folder / "ray"
        with self._watched() as watched:
            if watched.start("-c", "import ray").wait():
                self.notes.append("Ray is not installed, so it was not measured.")
                return None
        command = ("-m", "fct_jax", "apply", *self._named(up), "--engine", "ray", "--unchecked")
        with self._step("ray") as watched:
            # Ray's own processes are left alone, because it ends without them.
            watched.survive([command], self._kills, self._most, victims="ray::_Translator")
        made = _checksum(up)
        shutil.rmtree(up)
        return made

    def _store(self) -> None:
        """Upgrade a LanceDB table, send its readers to the new one, and back."""
        with self._watched() as watched:
            if watched.start("-c", "import lancedb").wait():
                self.notes.append("LanceDB is not installed, so no store was measured.")
                return
            folder, up, rows = self.folder / "store", self.folder / "up", self._store_rows
            module, mapping = "tools.scale.store", str(self.map)
            watched.run("-m", module, "table", str(folder), str(self.gallery), str(rows))
        with self._step("store: plain loop", rows) as watched:
            watched.run("-m", module, "plain", str(folder), mapping)
        budget = max(1, rows // 100)
        named = (str(up), "--map", mapping, "--gallery", uri(folder))
        self._command("store: plan", "plan", *named, "--budget-items", str(budget), rows=rows)
        self._command("store: apply", "apply", str(up), "--unchecked", rows=rows)
        self._command("store: re-embed 1 %", "apply", str(up), *REEMBED, rows=budget)
        for name, *back in (("switch",), ("switch back", "--back")):
            self._command(f"store: {name}", "switch", str(up), *back, rows=rows)
            with self._watched() as watched:
                said = "back" if back else "switched"
                watched.run("-m", module, said, str(folder), mapping, str(rows))
        for path in (folder, up):
            shutil.rmtree(path)

    def _command(self, step: str, command: str, *words: str, rows: int = 0) -> None:
        """Run one command of `fct-jax` as a step that is killed, by default of all rows."""
        resumes, begun = COMMANDS[command]
        with self._step(step, rows) as watched:
            most = self._most if resumes else min(1, self._most)
            watched.survive([("-m", "fct_jax", command, *words)], self._kills, most, begun)

    def _named(self, up: Path) -> tuple[str, ...]:
        return str(up), "--map", str(self.map), "--gallery", str(self.gallery)

    def _watched(self) -> Watched:
        # Ray's workers would give way to all other work on the machine.
        environment = {"FCT_PROGRESS": "0", "RAY_worker_niceness": "0"}
        environment[GALLERY] = str(self.gallery)
        return Watched(self.folder / "log.txt", environment)

    def _step(self, name: str, rows: int = 0) -> "Step":
        print(f"{self.rows:,} rows: {STEPS[name]}", file=sys.stderr, flush=True)
        return Step(self, name, rows or self.rows)


class Step:
    """Context whose processes are measured, and whose figures are kept if it succeeds."""

    def __init__(self, run: Run, name: str, rows: int):
        self._run, self._name, self._rows = run, name, rows
        self._watched = run._watched()

    def __enter__(self) -> Watched:
        os.sync()
        return self._watched.__enter__()

    def __exit__(self, kind, *exception) -> None:
        self._watched.__exit__(kind, *exception)
        if kind is None:
            step = self._run.steps[self._name] = self._watched.figures(self._rows)
            print(_line(self._name, step), file=sys.stderr, flush=True)  # a later step may fail


def _checksum(up: Path) -> str:
    """Return the CRC-32 of the vectors of an upgrade's gallery."""
    found = 0
    with (up / "gallery" / "vectors.npy").open("rb") as file:
        while data := file.read(1 << 24):
            found = zlib.crc32(data, found)
    return f"{found:08x}"


def _machine() -> str:
    return f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}"


if __name__ == "__main__":
    sys.exit(status(main))
