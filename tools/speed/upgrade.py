"""Measures speed and memory of fitting a map, and of translating and re-embedding a gallery.

    python tools/benchmark.py --only upgrade

A gallery of Gaussian vectors in each form is translated from 384 to 384 dimensions by a ridge map
with its uncertainty; then a tenth of its items is re-embedded from an EmbeddingSet. The baseline
reads the vectors, computes one NumPy product per block and writes the result. Every figure is
measured in its own process. Peak memory leaves out memory-mapped files, whose pages the system
takes back as needed.
"""

import multiprocessing
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from tools.speed.common import figure

DIM = 384
BLOCK = 1 << 16


def run(quick: bool) -> list[dict]:
    """Return all figures: 200,000 or 5 million vectors in each form; a 4,096-dimensional map."""
    count = 200_000 if quick else 5_000_000
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as fresh_process:
        results = fresh_process.submit(
            solve, *((10_000, 512) if quick else (100_000, 4096))
        ).result()
    for form in ("set", "faiss", "parquet") if quick else ("set", "faiss"):
        with ProcessPoolExecutor(1, mp_context=context) as fresh_process:
            results += fresh_process.submit(measure, form, count).result()
    return results


def solve(count: int, dim: int) -> list[dict]:
    """Compare a ridge map of float32 pairs with the map that made them; run in a fresh process."""
    from fct_jax.upgrade.maps import linear as closed_form

    rng = np.random.default_rng(0)
    true = rng.standard_normal((dim, dim), np.float32) / dim**0.5
    # Vectors share an offset, as after a ReLU; standard deviations span four orders of magnitude.
    old = 3 + rng.standard_normal((count, dim), np.float32) * np.geomspace(1, 1e-4, dim, dtype="f4")
    new = old @ true + 3
    fold = np.arange(count) % 3
    with AnonymousMemory() as memory:
        start = time.perf_counter()
        found, _ = closed_form.ridge(*closed_form.fold_sums(old, new, fold, 3))
        seconds, peak = time.perf_counter() - start, memory.peak_mb
    centred = old[:1000].astype(np.float64) - old.mean(axis=0, dtype=np.float64)
    error = np.linalg.norm(centred @ (found.weight - true)) / np.linalg.norm(centred @ true)
    note = f"λ by cross-validation; relative error {error:.1e}"
    return [figure(f"ridge {count:,} pairs × {dim}", seconds, None, peak, note)]


def measure(form: str, count: int) -> list[dict]:
    """Measure translating, planning and re-embedding for one form; run in a fresh process."""
    from fct_jax.upgrade.migration.upgrade import Upgrade

    with tempfile.TemporaryDirectory(dir=".") as folder:
        folder = Path(folder)
        source, map = _gallery(folder, form, count), _map()
        Upgrade(folder / "warm" / "up").apply(
            map, _gallery(folder / "warm", "set", 8192), unchecked=True
        )
        with AnonymousMemory() as memory:
            plain = _plain(folder, map, count) if form == "set" else None
            start = time.perf_counter()
            Upgrade(folder / "up").apply(map, source, unchecked=True)
            translating = time.perf_counter() - start
            translating_peak = memory.peak_mb
            start = time.perf_counter()
            Upgrade(folder / "up").plan(map, source, budget_items=count // 10)
            planning = time.perf_counter() - start
            start = time.perf_counter()
            Upgrade(folder / "up").apply(map, source, reembed=_Answers(map), batch_items=BLOCK // 4)
            reembedding = time.perf_counter() - start
        size = f"{count:,} × {DIM}"
        rate = f"{count / translating:,.0f} vectors a second with checks and syncs"
        return [
            figure(f"translate {form} {size}", translating, plain, translating_peak, rate),
            figure(f"plan {form} {size}", planning, None, memory.peak_mb, "checked, ordered, cut"),
            figure(
                f"re-embed {form} {count // 10:,}",
                reembedding,
                None,
                memory.peak_mb,
                f"{count // 10 / reembedding:,.0f} items a second without the model's own time",
            ),
        ]


class AnonymousMemory:
    """Context that measures the peak memory, beyond mapped files, that the process adds (Linux).

    Attributes:
      most: the most memory so far, in megabytes, with what there was before.
    """

    def __enter__(self) -> "AnonymousMemory":
        self._first = self.most = _anonymous_mb()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def peak_mb(self) -> float:
        """Return the peak so far, in megabytes."""
        return self.most - self._first

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.most = max(self.most, _anonymous_mb())


def _anonymous_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no RssAnon")


class _Answers:
    """Gives new vectors for ids: translated vectors plus noise, so that known answers are found."""

    __name__ = "answers"

    def __init__(self, map):
        self.map = map

    def __call__(self, ids):
        # Ids are row numbers; the time of a real model is not measured here.
        rng = np.random.default_rng(0)
        vectors = _rows_of_ids(ids) @ self.map.weights["weight"]
        return vectors + 0.01 * rng.standard_normal(vectors.shape, np.float32)


def _rows_of_ids(ids: np.ndarray) -> np.ndarray:
    """Return each id's old vector as a function of the id, so that no file has to be searched."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((1 << 12, DIM), np.float32)
    # Every id sums two rows of a table, which gives 16 million different sums.
    return table[ids % 4096] + table[(ids // 4096 * 2654435761 + ids) % 4096 ^ 1]


def _gallery(folder: Path, form: str, count: int) -> Path:
    """Write a gallery whose ids are row numbers, block by block."""
    folder.mkdir(exist_ok=True)
    path = folder / f"old-{form}"
    path.mkdir()
    if form == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        for number, ids in enumerate(_id_blocks(count)):
            flat = pa.array(_rows_of_ids(ids).reshape(-1))
            lists = pa.FixedSizeListArray.from_arrays(flat, DIM)
            table = pa.table({"id": ids, "vector": lists})
            pq.write_table(table, path / f"part-{number:04d}.parquet")
        return path
    if form == "faiss":
        from fct_jax.upgrade.galleries.faiss_layout import vectors_offset, write_empty

        path = path / "old.faiss"
        write_empty(path, np.arange(count), DIM, "l2")
        vectors = np.memmap(path, np.float32, "r+", vectors_offset(), (count, DIM))
    else:
        np.save(path / "ids.npy", np.arange(count))
        vectors = np.lib.format.open_memmap(path / "vectors.npy", "w+", np.float32, (count, DIM))
    for ids in _id_blocks(count):
        vectors[ids[0] : ids[-1] + 1] = _rows_of_ids(ids)
    vectors.flush()
    return path


def _id_blocks(count: int):
    for first in range(0, count, BLOCK):
        yield np.arange(first, min(first + BLOCK, count))


def _map():
    """Return a ridge map with a fitted uncertainty."""
    from fct_jax.storage.embedding_set import EmbeddingSet
    from fct_jax.upgrade.maps.fitting import fit

    rng = np.random.default_rng(1)
    old = _rows_of_ids(np.arange(4000) + 10**9)
    turn = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0].astype(np.float32)
    new = old @ turn + 0.1 * rng.standard_normal(old.shape, np.float32)
    return fit(EmbeddingSet.of(old), EmbeddingSet.of(new), method="ridge")


def _plain(folder: Path, map, count: int) -> float:
    """Return the seconds to read, multiply once per block and write, which no code can avoid."""
    weight = map.weights["weight"]
    start = time.perf_counter()
    with (folder / "old-set" / "vectors.npy").open("rb") as source:
        np.lib.format.read_magic(source)
        np.lib.format.read_array_header_1_0(source)
        with (folder / "plain").open("wb") as target:
            for ids in _id_blocks(count):
                block = np.fromfile(source, np.float32, len(ids) * DIM).reshape(-1, DIM)
                (block @ weight).tofile(target)
    (folder / "plain").unlink()
    return time.perf_counter() - start
