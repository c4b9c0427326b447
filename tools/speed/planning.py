"""Measure the memory and time of planning by uncertainty × traffic, for each item.

    python tools/speed/planning.py                     # 10 million items
    python tools/speed/planning.py --items 100000000 --only integers

A gallery of 4-dimensional vectors is planned with `fct-jax plan`, with a file of traffic that names
a tenth of its items: all of it is opened, its ids are compared, its vectors are read and checked,
and its items are ordered and written to the plan. So few dimensions leave out the time of reading
vectors, which does not count here. Ids are integers, or UUIDs as text (144 bytes in NumPy).

Memory is the peak of anonymous memory beyond what the process had after a plan of 10,000 items;
mapped files, whose pages the system takes back as needed, are not in it. Half as many items are
planned, too: the difference shows how memory grows, and what 100 million items need. So many or
more are planned alone. Disk is the peak of what all files take: gallery and plan in the folder, and
temporary files.
"""

import contextlib
import json
import multiprocessing
import stat
import sys
import tempfile
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent.parent))  # run as a file or as a module

from tools.script import Parser, status
from tools.speed.translating import Timed

DIM = 4
KINDS = ("integers", "text")
_BLOCK = 1 << 18
_ASKED = 10**8


def main(words) -> None:
    """Measure what the command line asks for, and print a table."""
    parser = Parser(__doc__)
    parser.add_argument("--items", type=int, default=10**7)
    parser.add_argument("--only", default=",".join(KINDS), help="integers or text")
    parser.add_argument(
        "--folder", default=tempfile.gettempdir(), help="folder for galleries and temporary files"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    given = parser.parse_args(words)
    context, results = multiprocessing.get_context("spawn"), []
    print(f"{'ids':<10}{'items':>12}{'seconds':>9}{'CPU s':>8}{'MB':>7}{'disk GB':>9}"
          f"{'bytes/item':>12}{'MB at 1e8':>11}")  # fmt: skip
    for kind in given.only.split(","):
        found = []
        for items in (given.items // 2, given.items) if given.items < _ASKED else (given.items,):
            with ProcessPoolExecutor(1, mp_context=context) as fresh_process:
                made = fresh_process.submit(measure, kind, items, given.folder)
                found.append(made.result())
        small, large = found[0], found[-1]
        if small is not large:
            slope = (large["peak_mb"] - small["peak_mb"]) / (large["items"] - small["items"])
            large["bytes_per_item"] = slope * 2**20
            large["mb_at_1e8"] = large["peak_mb"] + slope * (_ASKED - large["items"])
        results.append(large)
        grown = "".join(f"{large.get(name, float('nan')):{form}}" for name, form in
                        (("bytes_per_item", "12.1f"), ("mb_at_1e8", "11.0f")))  # fmt: skip
        print(f"{kind:<10}{large['items']:>12,}{large['seconds']:>9.1f}{large['cpu']:>8.1f}"
              f"{large['peak_mb']:>7.0f}{large['disk_gb']:>9.2f}{grown}", flush=True)  # fmt: skip
    if given.out is not None:
        given.out.write_text(json.dumps(results, indent=2) + "\n")


def measure(kind: str, items: int, where: str) -> dict:
    """Measure one plan; run in a fresh process."""
    from fct_jax.runtime.progress import silence
    from fct_jax.upgrade.migration.upgrade import Upgrade
    from tools.speed.upgrade import AnonymousMemory

    silence()
    with tempfile.TemporaryDirectory(dir=where) as folder:
        folder = Path(folder).resolve()
        tempfile.tempdir = str(folder / "temporary")
        Path(tempfile.tempdir).mkdir()
        write_gallery(folder / "warm", kind, 10_000)
        write_gallery(folder / "old", kind, items)
        mapping = stand_in()
        Upgrade(folder / "warm-up").plan(mapping, folder / "warm", traffic=folder / "warm.npy")
        with Disk(folder) as disk, AnonymousMemory() as memory, Timed() as plan:
            Upgrade(folder / "up").plan(mapping, folder / "old", traffic=folder / "old.npy")
    return {
        "ids": kind,
        "items": items,
        "seconds": plan.seconds,
        "cpu": plan.cpu,
        "peak_mb": memory.peak_mb,
        "disk_gb": disk.most / 1e9,
    }


class Disk:
    """Context that measures the most bytes that files take (Linux): ``most``.

    These are the files in a folder and those that the process has open, such as temporary files
    without a name.
    """

    def __init__(self, folder: Path):
        self._folder, self.most, self._ended = folder, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Disk":
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            taken = {}
            for path in (*self._folder.rglob("*"), *Path("/proc/self/fd").iterdir()):
                with contextlib.suppress(OSError):  # it is gone
                    found = path.stat()
                    if stat.S_ISREG(found.st_mode):
                        taken[found.st_dev, found.st_ino] = found.st_blocks * 512
            self.most = max(self.most, sum(taken.values()))


def stand_in():
    """Return a map of 4 dimensions whose log-variance is a vector's first value."""
    from fct_jax.upgrade.maps.functions import Linear
    from fct_jax.upgrade.maps.map import Map

    uncertainty = {
        "uncertainty_mean": np.zeros(DIM),
        "uncertainty_scale": np.ones(()),
        "uncertainty_hidden": np.zeros((DIM, 1)),
        "uncertainty_hidden_bias": np.zeros(1),
        "uncertainty_weight": np.array([1.0] + [0.0] * (DIM + 1)),
        "uncertainty_bias": np.zeros(()),
        "uncertainty_range": np.array([-10.0, 10.0]),
    }
    function = Linear(np.eye(DIM, dtype=np.float32), np.float32(1), np.zeros(DIM, np.float32))
    return Map({"method": "ridge", "dim_in": DIM, "dim_out": DIM}, function, uncertainty)


def write_gallery(folder: Path, kind: str, items: int) -> None:
    """Write a gallery block by block, and beside it FOLDER.npy with the traffic of a tenth."""
    from fct_jax.storage.ids import uuid_text
    from fct_jax.upgrade.galleries.rows import empty_npy

    rng, width = np.random.default_rng(0), np.dtype("U36" if kind == "text" else np.int64)
    folder.mkdir()
    empty_npy(folder / "vectors.npy", (items, DIM), np.float32)
    empty_npy(folder / "ids.npy", (items,), width)
    with (
        (folder / "vectors.npy").open("r+b") as vectors,
        (folder / "ids.npy").open("r+b") as ids,
        folder.with_suffix(".npy").open("wb") as traffic,
    ):
        for file in (vectors, ids):
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_2_0(file)
        held = np.dtype([("id", width), ("weight", np.float64)])
        header = {"descr": held.descr, "fortran_order": False, "shape": (-(-items // 10),)}
        np.lib.format.write_array_header_2_0(traffic, header)
        for first in range(0, items, _BLOCK * 10):
            count = min(_BLOCK * 10, items - first)
            rng.standard_normal((count, DIM), np.float32).tofile(vectors)
            names = np.arange(first, first + count)
            if kind == "text":
                numbers = np.zeros((count, 16), np.uint8)
                numbers[:, 8:] = rng.integers(0, 256, (count, 8), np.uint8)
                numbers[:, :8] = names.astype(">u8").view(np.uint8).reshape(-1, 8)
                names = uuid_text(numbers)
            names.tofile(ids)
            named = np.empty(len(names[::10]), held)
            named["id"], named["weight"] = names[::10], rng.integers(0, 5, len(named))
            named.tofile(traffic)


if __name__ == "__main__":
    sys.exit(status(main))
