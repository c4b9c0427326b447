"""Takes a large made-up gallery through a whole upgrade, while its processes are killed.

    python tools/benchmark_scale.py --rows 10000000 --folder /data/scale    # a run
    python tools/benchmark_scale.py --quick --folder scale                  # 100,000 rows
    python tools/benchmark_scale.py --table                                 # what follows for 10⁸ …

A run makes a gallery of --rows × 384 float16 vectors, translates it by the plain NumPy loop, plans
to re-embed 1 % of it, translates it in two parts side by side and once more on Ray, re-embeds the
1 %, and rolls back. Every --kill-every seconds a part, or a worker or the driver of Ray, is killed
with SIGKILL and started again. The two translations and the one after the rollback must have the
same bytes. The last part publishes the gallery; it has no readers to switch, as a store has.

Rows a second are by the clock, kills and starts included. CPU seconds are those of all processes;
peak memory is the largest sum of their anonymous memory; bytes per row are those that they read and
wrote by calls (files that are mapped are missing) and, apart, what reached the disk; a row that a
killed process had computed counts again. Each run is added to OUT/scale.json, and OUT/growth.png
shows all of them. --folder needs three times the gallery's size (768 bytes a row).
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
from tools.scale.growth import Prices, draw, table
from tools.scale.watching import Watched
from tools.script import Parser, read_json, status

QUICK = 100_000
STEPS = {
    "plain loop": "the plain NumPy loop",
    "plan": "plan, which reads and translates once",
    "two parts": "apply --part 1/2 and 2/2, side by side",
    "ray": "apply --engine ray",
    "re-embed 1 %": "apply --reembed, made-up vectors of a function",
    "rollback": "rollback --to 0",
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
    parser.add_argument("--engines", default="parts,ray", help="parts, ray or both")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK:,} rows, a kill in 3 s")
    parser.add_argument("--table", action="store_true", help="print what follows from scale.json")
    Prices.add_arguments(parser)
    given = parser.parse_args(words)
    found = read_json(given.out / "scale.json") if (given.out / "scale.json").is_file() else {}
    if given.table:
        if not found:
            raise UserError(f"{given.out}/scale.json does not exist; measure first")
        print(table(found, Prices.of(given)))
        return
    if given.quick:
        given.rows, given.kill_every, given.kills = QUICK, 3, 1
    unknown = set(given.engines.split(",")) - {"parts", "ray"}
    if unknown or given.rows < 1000 or given.kill_every <= 0:
        parser.error("--engines are parts, ray or both, --rows at least 1000, --kill-every above 0")
    given.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the processes of a step end, too
    made = Run(given.folder, given.rows, given.kill_every, given.kills).all(given.engines)
    found[str(given.rows)] = {"machine": _machine(), "when": time.strftime("%Y-%m-%d"), **made}
    (given.out / "scale.json").write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
    draw(found, given.out / "growth.png")
    print(report(given.rows, made))


def report(rows: int, made: dict) -> str:
    """Return the figures of one run as a Markdown table."""
    lines = [
        f"| {rows:,} rows | rows/s | CPU s a million | peak MB | read, written a row "
        "| from, to disk | kills | at work again after |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, step in made["steps"].items():
        again = ", ".join(f"{s:g} s" for s in step["resumed_after"])
        lines.append(
            f"| {STEPS[name]} | {step['rows_per_second']:,} | {step['cpu_seconds_per_million']:,} "
            f"| {step['peak_mb']:,} | {step['read_per_row']:,.0f}, {step['written_per_row']:,.0f} "
            f"| {step['disk_read_per_row']:,.0f}, {step['disk_written_per_row']:,.0f} "
            f"| {step['kills']} | {again} |"
        )
    return "\n".join(lines + [f"\n{note}" for note in made["notes"]])


class Run:
    """One run, whose steps are processes of their own."""

    def __init__(self, folder: Path, rows: int, every: float, kills: int):
        self.folder, self.rows = folder.resolve() / f"rows-{rows}", rows
        self._every, self._kills = every, kills
        self.gallery, self.map = self.folder / "gallery", self.folder / "map"
        self.steps: dict[str, dict] = {}
        self.notes: list[str] = []

    def all(self, engines: str) -> dict:
        """Take all steps; remove the galleries at the end. Raises UserError if one fails."""
        if self.folder.exists():
            raise UserError(f"{self.folder} exists already; remove it, or give another --folder")
        self.folder.mkdir(parents=True)
        try:
            check_space(self.folder, self.rows)
            with self._watched() as watched:
                watched.run(
                    "-m", "tools.scale.gallery", "gallery", str(self.gallery), f"{self.rows}"
                )
                watched.run("-m", "tools.scale.gallery", "map", str(self.map))
            self._plain()
            sums = {name: getattr(self, f"_{name}")() for name in engines.split(",")}
            same = len(set(sums.values()) - {None}) == 1
            if not same:
                raise UserError(f"the translations differ: CRC-32 {sums}")
            return {"steps": self.steps, "notes": self.notes, "crc32": sums}
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
        with self._step("plan") as watched:
            watched.run("-m", "fct_jax", "plan", *self._named(up), "--budget-items", str(budget))
        parts = [
            ("-m", "fct_jax", "apply", str(up), "--part", f"{i}/2", "--unchecked") for i in (1, 2)
        ]
        with self._step("two parts") as watched:
            watched.survive(parts, self._every, self._kills)
        if not (up / "gallery" / "vectors.npy").is_file():
            raise UserError(f"both parts ended, but {up}/gallery is not there")
        translated = _checksum(up)
        with self._step("re-embed 1 %", budget) as watched:
            watched.run("-m", "fct_jax", "apply", str(up), "--reembed", "tools.scale.gallery:embed")
        if _checksum(up) == translated:
            raise UserError("re-embedding has changed no byte")
        with self._step("rollback", budget) as watched:
            watched.run("-m", "fct_jax", "rollback", str(up), "--to", "0")
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
            watched.survive([command], self._every, self._kills, _worker_of_ray)
        made = _checksum(up)
        shutil.rmtree(up)
        return made

    def _named(self, up: Path) -> tuple[str, ...]:
        return str(up), "--map", str(self.map), "--gallery", str(self.gallery)

    def _watched(self) -> Watched:
        environment = {GALLERY: str(self.gallery), "FCT_PROGRESS": "0"}
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
            self._run.steps[self._name] = self._watched.figures(self._rows)


def _worker_of_ray(watched: Watched) -> int | None:
    workers = watched.alive("ray::_Translator")  # not Ray's own processes, without which it ends
    return workers[0] if workers else None


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
