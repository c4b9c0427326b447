"""Measure how close translating a gallery comes to the simplest loop that does the same.

    python tools/speed/translating.py                        # every form, size and type
    python tools/speed/translating.py --rows 20000           # small
    python tools/speed/translating.py --only set,parquet --out translating.json

`fct-jax apply` translates a gallery of 384-dimensional unit vectors to unit vectors by a ridge map
with its uncertainty, checks every vector, keeps checksums and a journal, and can be killed at any
moment.

The plain loop reads the same file block by block with NumPy, pyarrow or Lance, computes one
matrix product with all threads, and writes the vectors in the same form. It flushes its files to
disk as often as `apply` does: vectors, log-variances (zeros here) and a line of a journal every
65,536 rows, and every Parquet file at its end. `fct` compares a network with only its compiled
pass over a block in memory, without reading or writing anything, and on an eighth of the rows.

Both run alternately in one fresh process, and the fastest run of each counts. On a machine with
other work the ratio of CPU seconds says more than that of the clock. Memory is the largest
anonymous memory of the process, with Python and all libraries; mapped files are not in it.
"""

import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent.parent))  # run as a file or as a module

from tools.script import Parser, status

DIM = 384
OUT = (384, 768)
BLOCK = 1 << 16  # rows read, computed and flushed together by the plain loop
FILE = 1 << 18  # rows of a Parquet file
FORMS = {
    "set": ("<f4", "<f2"),
    "parquet": ("<f4", "<f2"),
    "lance": ("<f4", "<f2"),
    "faiss": ("<f4",),
}


def main(words) -> None:
    """Measure what the command line asks for, and print a table."""
    parser = Parser(__doc__)
    parser.add_argument("--rows", type=int, default=1 << 18, help="rows of each gallery")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each, the fastest counts")
    parser.add_argument("--only", default=f"{','.join(FORMS)},fct", help="comma-separated forms")
    parser.add_argument("--dims", default=",".join(map(str, OUT)), help="new dimensions")
    parser.add_argument(
        "--folder", default=tempfile.gettempdir(), help="folder on the disk to measure"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    given = parser.parse_args(words)
    wanted = given.only.split(",")
    unknown = set(wanted) - {*FORMS, "fct"}
    if unknown:
        parser.error(f"unknown form {min(unknown)!r}; known: {', '.join(FORMS)}, fct")
    cases = [
        (form, kind, int(dim))
        for form in wanted
        for kind in FORMS.get(form, ("<f4",))
        for dim in (given.dims.split(",") if form != "fct" else [DIM])
    ]
    context, results = multiprocessing.get_context("spawn"), []
    print(f"{'':>28}{'plain s':>9}{'ours s':>8}{'ratio':>7}{'CPU s':>8}{'CPU s':>7}{'ratio':>7}"
          f"{'rows/s':>10}{'MB':>6}")  # fmt: skip
    for case in cases:
        with ProcessPoolExecutor(1, mp_context=context) as fresh_process:
            made = fresh_process.submit(measure, *case, given.rows, given.rounds, given.folder)
            results.append(made.result())
        print(line(results[-1]), flush=True)
    if given.out is not None:
        given.out.write_text(json.dumps(results, indent=2) + "\n")


def line(found: dict) -> str:
    """Return one figure as a line of the table."""
    plain, ours = found["plain"], found["ours"]
    return (
        f"{found['name']:<28}{plain['seconds']:>9.2f}{ours['seconds']:>8.2f}{found['ratio']:>7.2f}"
        f"{plain['cpu']:>8.2f}{ours['cpu']:>7.2f}{found['cpu_ratio']:>7.2f}"
        f"{found['rows_per_second']:>10,.0f}{found['peak_mb']:>6,.0f}"
    )


def measure(form: str, kind: str, dim: int, rows: int, rounds: int, where: str) -> dict:
    """Measure one form, type and new dimension; run in a fresh process."""
    from fct_jax.runtime.progress import silence
    from fct_jax.upgrade.migration.upgrade import Upgrade
    from tools.speed.upgrade import AnonymousMemory

    silence()
    with tempfile.TemporaryDirectory(dir=where) as folder:
        folder = Path(folder)
        mapping = network(folder) if form == "fct" else ridge(kind, dim)
        stored, rows = ("set", rows // 8) if form == "fct" else (form, rows)
        write_gallery(folder / "warm", stored, kind, 1 << 13)
        Upgrade(folder / "warm-up").apply(mapping, place(folder / "warm", stored), unchecked=True)
        write_gallery(folder / "old", stored, kind, rows)
        plains, ours, peak = [], [], 0.0
        for number in range(rounds):
            up = folder / f"up{number}"
            with AnonymousMemory() as memory, Timed() as own:
                Upgrade(up).apply(mapping, place(folder / "old", stored), unchecked=True)
            peak = peak or memory.most  # before the plain loop has left memory in the process
            shutil.rmtree(up)
            weight = None if form == "fct" else mapping.weights["weight"]
            with Timed() as plain:
                if form == "fct":
                    compiled_pass(mapping, rows)
                else:
                    PLAIN[form](place(folder / "old", form), folder / "plain", weight, kind)
            shutil.rmtree(folder / "plain", ignore_errors=True)
            plains.append(plain)
            ours.append(own)
        plain, own = (min(runs, key=lambda run: run.seconds) for runs in (plains, ours))
        plain_cpu, own_cpu = (min(run.cpu for run in runs) for runs in (plains, ours))
    return {
        "name": f"{form} {np.dtype(kind).name} {DIM} → {dim}",
        "rows": rows,
        "plain": {"seconds": plain.seconds, "cpu": plain_cpu},
        "ours": {"seconds": own.seconds, "cpu": own_cpu},
        "ratio": own.seconds / plain.seconds,
        "cpu_ratio": own_cpu / plain_cpu,
        "rows_per_second": rows / own.seconds,
        "peak_mb": peak,
    }


class Timed:
    """Context that measures seconds of the clock, and of the processors with all threads.

    What earlier runs have written is flushed first.
    """

    def __enter__(self) -> "Timed":
        os.sync()
        self._start, self._cpu = time.perf_counter(), _cpu()
        return self

    def __exit__(self, *exception) -> None:
        self.seconds, self.cpu = time.perf_counter() - self._start, _cpu() - self._cpu


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def ridge(kind: str, dim: int):
    """Return a ridge map from 384 dimensions, fitted on the first items, with its uncertainty."""
    from fct_jax.storage.embedding_set import EmbeddingSet
    from fct_jax.upgrade.maps.fitting import fit

    rng, old = np.random.default_rng(1), vectors_of(kind)[:4000]
    turn = rng.standard_normal((DIM, dim), np.float32)
    new = old.astype(np.float32) @ turn + 0.1 * rng.standard_normal((4000, dim), np.float32)
    return fit(EmbeddingSet.of(old), EmbeddingSet.of(_unit(new)), method="ridge")


def vectors_of(kind: str) -> np.ndarray:
    """Return the vectors (BLOCK, 384) that every gallery repeats."""
    values = np.random.default_rng(0).standard_normal((BLOCK, DIM), np.float32)
    return _unit(values).astype(kind)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def network(folder: Path):
    """Return FCT's network of 384 dimensions with untrained weights, which cost the same."""
    import jax
    import jax.numpy as jnp

    from fct_jax import models
    from fct_jax.frozen.model import load_model, write_model
    from fct_jax.upgrade.maps.functions import Network
    from fct_jax.upgrade.maps.map import Map

    module = models.build("fct", embedding_dim=DIM)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((2, DIM)))
    sizes = {f"{role}_dim": DIM for role in ("old", "side")} | {"dim": DIM}
    unknown = ("old_fingerprint", "new_fingerprint", "side_fingerprint")
    described = {
        "kind": "transformation",
        "name": "fct",
        "kwargs": {"embedding_dim": DIM},
        "needs_side": False,
        **sizes,
        **dict.fromkeys(unknown),
    }
    write_model(folder / "run" / "model", described, variables)
    function = Network(load_model(folder / "run"))
    return Map({"method": "fct", "dim_in": DIM, "dim_out": DIM}, function)


def compiled_pass(mapping, rows: int) -> None:
    """Run the network's compiled function as often as ``rows`` rows need it."""
    import jax
    import jax.numpy as jnp

    block = jnp.zeros((4096, DIM))
    for _ in range(-(-rows // 4096)):
        result = mapping.function.transformer.run(block)
    jax.block_until_ready(result)


def blocks_of(rows: int):
    """Yield (first row, one past the last row) of each block."""
    for first in range(0, rows, BLOCK):
        yield first, min(first + BLOCK, rows)


def write_gallery(folder: Path, form: str, kind: str, rows: int) -> None:
    """Write a gallery of random vectors with row numbers as ids."""
    values = vectors_of(kind)
    folder.mkdir()
    if form == "faiss":
        from fct_jax.upgrade.galleries.faiss_layout import vectors_offset, write_empty

        write_empty(folder / "old.faiss", np.arange(rows), DIM, "l2")
        with (folder / "old.faiss").open("r+b") as file:
            file.seek(vectors_offset())
            for first, last in blocks_of(rows):
                values[: last - first].tofile(file)
    elif form == "set":
        from fct_jax.storage.embedding_set import EmbeddingSet

        # Written by EmbeddingSet, so that every shard has its checksum.
        vectors = np.lib.format.open_memmap(folder / "some.npy", "w+", kind, (rows, DIM))
        for first, last in blocks_of(rows):
            vectors[first:last] = values[: last - first]
        EmbeddingSet.of(vectors, meta={"normalized": True}).write(folder / "old")
        (folder / "some.npy").unlink()
    else:
        _write_tables(folder, form, values, rows)


def _write_tables(folder: Path, form: str, values: np.ndarray, rows: int) -> None:
    import pyarrow as pa

    def tables(start: int, stop: int):
        for first, last in blocks_of(stop - start):
            yield table(np.arange(start + first, start + last), values[: last - first])

    if form == "lance":
        import lance

        schema = table(np.arange(1), values[:1]).schema
        made = (batch for part in tables(0, rows) for batch in part.to_batches())
        lance.write_dataset(
            pa.RecordBatchReader.from_batches(schema, made), folder / "old.lance", schema
        )
        return
    import pyarrow.parquet as pq

    for number, start in enumerate(range(0, rows, FILE)):
        made = pa.concat_tables(tables(start, min(start + FILE, rows)))
        pq.write_table(made, folder / f"part-{number:04d}.parquet", row_group_size=BLOCK)


def table(ids: np.ndarray, vectors: np.ndarray):
    """Return an Arrow table of ids and vectors."""
    import pyarrow as pa

    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    return pa.table({"id": ids, "vector": lists})


def place(folder: Path, form: str) -> Path:
    """Return the path of the gallery that `write_gallery` made in a folder."""
    return folder / {"faiss": "old.faiss", "lance": "old.lance", "set": "old"}.get(form, "")


class Flushed:
    """The log-variances and the journal that the plain loop writes and flushes as `apply` does."""

    def __init__(self, folder: Path):
        folder.mkdir()
        self._files = [(folder / name).open("wb") for name in ("uncertainty", "journal")]

    def __call__(self, rows: int) -> None:
        """Write the log-variances of some rows, and a line."""
        for file, data in zip(self._files, (np.zeros(rows, "<f4"), b"line\n"), strict=True):
            file.write(data)
            sync(file)


def sync(file) -> None:
    """Flush a file to disk."""
    file.flush()
    os.fsync(file.fileno())


def plain_set(source: Path, folder: Path, weight: np.ndarray, kind: str) -> None:
    """Read blocks of an .npy file, multiply, and write."""
    flushed = Flushed(folder)
    with (source / "vectors.npy").open("rb") as file, (folder / "vectors").open("wb") as made:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        while len(old := np.fromfile(file, kind, BLOCK * DIM).reshape(-1, DIM)):
            _multiply(old, weight, kind, made)
            flushed(len(old))


def plain_faiss(source: Path, folder: Path, weight: np.ndarray, kind: str) -> None:
    """Read blocks of the vectors of a flat index, multiply, and write."""
    from fct_jax.upgrade.galleries.faiss_layout import vectors_offset

    flushed, rows = Flushed(folder), (source.stat().st_size - vectors_offset()) // (DIM * 4 + 8)
    with source.open("rb") as file, (folder / "vectors").open("wb") as made:
        made.write(file.read(vectors_offset()))
        for first, last in blocks_of(rows):
            old = np.fromfile(file, kind, (last - first) * DIM).reshape(-1, DIM)
            _multiply(old, weight, kind, made)
            flushed(len(old))
        made.write(file.read())


def plain_lance(source: Path, folder: Path, weight: np.ndarray, kind: str) -> None:
    """Read batches of a Lance dataset, multiply, and write as `apply` does, which writes .npy."""
    import lance

    flushed = Flushed(folder)
    with (folder / "vectors").open("wb") as made:
        for batch in lance.dataset(source).to_batches(columns=["vector"], batch_size=BLOCK):
            old = batch.column(0).flatten().to_numpy(zero_copy_only=False).reshape(-1, DIM)
            _multiply(old, weight, kind, made)
            flushed(len(old))


def _multiply(old: np.ndarray, weight: np.ndarray, kind: str, made) -> None:
    (old.astype("<f4", copy=False) @ weight).astype(kind, copy=False).tofile(made)
    sync(made)


def plain_parquet(source: Path, folder: Path, weight: np.ndarray, kind: str) -> None:
    """Read batches of each Parquet file, multiply, and write a file with all columns."""
    import pyarrow.parquet as pq

    flushed = Flushed(folder)
    for path in sorted(source.glob("*.parquet")):
        writer, reader = None, pq.ParquetFile(path)
        for batch in reader.iter_batches(BLOCK):
            old = batch["vector"].flatten().to_numpy(zero_copy_only=False).reshape(-1, DIM)
            new = (old.astype("<f4", copy=False) @ weight).astype(kind, copy=False)
            made = table(batch["id"], new)
            writer = writer or pq.ParquetWriter(folder / path.name, made.schema)
            writer.write_table(made, row_group_size=BLOCK)
            flushed(len(old))
        writer.close()
        with (folder / path.name).open("rb+") as file:
            os.fsync(file.fileno())


PLAIN = {
    "set": plain_set,
    "faiss": plain_faiss,
    "lance": plain_lance,
    "parquet": plain_parquet,
}


if __name__ == "__main__":
    sys.exit(status(main))
