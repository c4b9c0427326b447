"""Measures the time and memory to open and read once galleries of awkward shapes.

    python tools/benchmark.py --only galleries

They are 10,000 Parquet files under a limit of 1,024 open files, one row group of a million rows, a
million UUIDs, and vectors as text in CSV. Each is written first and measured in its own process.
"""

import importlib
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from tools.speed.common import figure, peak_mb

OPEN_FILES = 1024


def run(quick: bool) -> list[dict]:
    """Return all figures, for the sizes in docs/formats.md or, if ``quick``, a tenth of them."""
    part = 10 if quick else 1
    kinds = {
        "files": (10_000 // part, 16),
        "row group": (1_000_000 // part, 256),
        "uuids": (1_000_000 // part, 4),
        "csv": (100_000 // part, 384),
    }
    results = []
    context = multiprocessing.get_context("spawn")
    for kind, (count, dim) in kinds.items():
        with tempfile.TemporaryDirectory(dir=".") as folder:
            for step in (write, measure):
                with ProcessPoolExecutor(1, mp_context=context) as fresh_process:
                    made = fresh_process.submit(step, kind, Path(folder), count, dim).result()
            results.append(made)
    return results


def write(kind: str, folder: Path, count: int, dim: int) -> None:
    """Write ``count`` vectors, or files of five; run in a fresh process."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)

    def vectors(rows: int):
        flat = pa.array(rng.standard_normal(rows * dim, dtype=np.float32))
        return pa.FixedSizeListArray.from_arrays(flat, dim)

    if kind == "files":
        for number in range(count):
            where = folder / f"date={number % 300}"
            where.mkdir(exist_ok=True)
            table = pa.table({"id": np.arange(5) + 5 * number, "vector": vectors(5)})
            pq.write_table(table, where / f"part-{number}.parquet")
    elif kind == "csv":
        with (folder / "x.csv").open("w") as file:
            file.write("id,vector\n")
            for row in range(count):
                values = ",".join(map(str, rng.standard_normal(dim, dtype=np.float32)))
                file.write(f'{row},"[{values}]"\n')
    else:
        ids = pa.array(np.arange(count))
        if kind == "uuids":
            data = pa.py_buffer(rng.bytes(16 * count))
            ids = pa.Array.from_buffers(pa.binary(16), count, [None, data])
        table = pa.table({"id": ids, "vector": vectors(count)})
        pq.write_table(table, folder / "x.parquet", row_group_size=count, use_dictionary=False)


def measure(kind: str, folder: Path, count: int, dim: int) -> dict:
    """Open a gallery and read it once; run in a fresh process."""
    from fct_jax.upgrade.galleries.base import open_gallery

    for form in ("text_tables", "parquet"):  # their libraries' memory is not the gallery's
        importlib.import_module(f"fct_jax.upgrade.galleries.{form}")

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, most))
    before, start = peak_mb(), time.perf_counter()
    gallery = open_gallery(folder)
    opened = time.perf_counter() - start
    rows = sum(len(ids) for ids, _ in gallery.blocks(4096))
    seconds = time.perf_counter() - start
    rate = rows / (seconds - opened)
    note = f"{rows:,} rows × {dim}; opened in {opened:.1f} s; {rate:,.0f} rows/s"
    return figure(f"gallery: {count:,} {kind}", seconds, None, peak_mb() - before, note)
