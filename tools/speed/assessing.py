"""Measure how long it takes to assess a large test gallery with all ways and shares.

    python tools/speed/assessing.py                     # 100,000 x 384 against 384, 2,000 queries
    python tools/speed/assessing.py --items 20000
    python tools/speed/assessing.py --items 10000000 --folder /data    # float16 files, mapped

The vectors are made up: clusters that both models see, and each model's own noise. The tool prints
the time and the peak of the anonymous memory (mapped files are not in it), and CPU seconds beside
those of `faiss.knn` alone: one exhaustive search for each of the five pairs of spaces that the ways
compare (the common space of two models of one size is a rotation and needs no further pair), with
the vectors in memory, on at most 100,000 items and scaled up.
With --folder the galleries are files, 1.5 kB an item, which are removed at the end.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent.parent))  # run as a file or as a module

from fct_jax import upgrade
from fct_jax.runtime import threads
from fct_jax.upgrade.ways import PAIRS
from tools.speed.upgrade import AnonymousMemory

BLOCK = 1 << 16  # items of a file that are made together
SEARCHED = 100_000  # items that faiss.knn alone is measured on
RANK = 64  # numbers that both models see of an item
COMPARED = [name for name, (by, _) in PAIRS.items() if by != "moved"]
NOISE = {"old": 2.0, "new": 1.5}  # MRR about 50 and 80: neither model finds everything


class Models:
    """Two models' vectors of made-up items."""

    def __init__(self, dim: int, seed: int):
        rng = np.random.default_rng(seed)
        self._centres = 2 * rng.normal(size=(200, RANK)).astype(np.float32)
        self._turns = {
            name: rng.normal(size=(RANK, dim)).astype(np.float32) / RANK**0.5 for name in NOISE
        }

    def items(self, count: int, rng) -> np.ndarray:
        """Return what both models see of ``count`` items (n, RANK)."""
        latent = rng.normal(size=(count, RANK)).astype(np.float32)
        return latent + self._centres[rng.integers(0, len(self._centres), count)]

    def vectors(self, latent: np.ndarray, rng) -> dict[str, np.ndarray]:
        """Return unit vectors (n, dim) by both models, "old" and "new"."""
        found = {}
        for name, turn in self._turns.items():
            made = latent @ turn
            made += NOISE[name] * rng.standard_normal(made.shape, np.float32)
            found[name] = made / np.linalg.norm(made, axis=1, keepdims=True)
        return found


def gallery(models: Models, count: int, wanted: np.ndarray, where: Path | None):
    """Return vectors of ``count`` items by both models, and what they see of the wanted ones.

    where: folder of float16 files that are mapped; None: float32 in memory.
    """
    shape, found = (count, models._turns["old"].shape[1]), {}
    for name in NOISE:
        if where is None:
            found[name] = np.empty(shape, np.float32)
        else:
            path = where / f"{name}.npy"
            found[name] = np.lib.format.open_memmap(path, "w+", np.float16, shape)
    seen = np.empty((len(wanted), RANK), np.float32)
    for start in range(0, count, BLOCK):
        rng = np.random.default_rng((0, start))
        latent = models.items(min(BLOCK, count - start), rng)
        here = (wanted >= start) & (wanted < start + len(latent))
        seen[here] = latent[wanted[here] - start]
        for name, made in models.vectors(latent, rng).items():
            found[name][start : start + len(latent)] = made
    if where is not None:
        for name, vectors in found.items():
            vectors.flush()
            found[name] = np.load(where / f"{name}.npy", mmap_mode="r")
    return found["old"], found["new"], seen


def searched(asked: np.ndarray, items: np.ndarray, k: int) -> float:
    """Return the CPU seconds of faiss.knn alone, for all pairs of spaces."""
    some = np.ascontiguousarray(items[:SEARCHED], np.float32)
    start = time.process_time()
    faiss.knn(asked, some, k, metric=faiss.METRIC_INNER_PRODUCT)
    return (time.process_time() - start) * len(items) / len(some) * len(COMPARED)


def main() -> None:
    """Measure once; the map is fitted before the clock starts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--pairs", type=int, default=5_000, help="pairs that the map is fitted on")
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--resamples", type=int, default=1_000)
    parser.add_argument("--folder", type=Path, help="folder for files; without it, in memory")
    chosen = parser.parse_args()
    where = None if chosen.folder is None else Path(tempfile.mkdtemp(dir=chosen.folder))
    try:
        measure(chosen, where)
    finally:
        if where is not None:
            shutil.rmtree(where)


def measure(chosen, where: Path | None) -> None:
    """Make the vectors, assess, and print the figures."""
    total, rng = chosen.items + chosen.pairs, np.random.default_rng(1)
    wanted = rng.permutation(total)[: chosen.queries]
    models = Models(chosen.dim, 0)
    old, new, seen = gallery(models, total, wanted, where)
    asked = models.vectors(seen + rng.normal(size=seen.shape).astype(np.float32), rng)
    free = np.setdiff1d(np.arange(total), wanted)[: chosen.pairs]
    start = time.perf_counter()
    mapping = upgrade.fit(old[free], new[free], candidates=("procrustes", "ridge"))
    print(f"fit: {time.perf_counter() - start:.1f} s")
    given = (old, new) if where is None else (where / "old.npy", where / "new.npy")
    start, spent = time.perf_counter(), time.process_time()
    with AnonymousMemory() as memory:
        found = upgrade.assess(
            mapping,
            *given,
            query_old=asked["old"],
            query_new=asked["new"],
            judged=wanted,
            resamples=chosen.resamples,
        )
    seconds, spent = time.perf_counter() - start, time.process_time() - spent
    with threads.single():
        alone = searched(asked["new"], new, 100)
    print(
        f"assess: {found.items:,} items, {found.queries:,} queries, {len(found.points)} points: "
        f"{seconds:.1f} s ({spent:.1f} s of CPU; faiss.knn alone, {len(COMPARED)} pairs of spaces: "
        f"{alone:.1f} s, ratio {spent / alone:.2f}), peak {memory.most:,.0f} MB; {found.text}"
    )


if __name__ == "__main__":
    main()
