"""Measure how long it takes to assess a large test gallery with all ways and shares.

    python tools/speed/assessing.py                     # 100,000 x 384 against 384, 2,000 queries
    python tools/speed/assessing.py --items 20000

The vectors are made up: clusters that both models see, and each model's own noise. The tool prints
the time and the peak memory.
"""

import argparse
import resource
import time

import numpy as np

from fct_jax import upgrade


def vectors(items: int, queries: int, dim: int, seed: int):
    """Return (N, dim) and (Q, dim) by both models, and the row that each query should find."""
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(items, 64)).astype(np.float32)
    latent += 2 * rng.normal(size=(200, 64)).astype(np.float32)[rng.integers(0, 200, items)]
    wanted = rng.permutation(items)[:queries]
    asked = latent[wanted] + rng.normal(size=(queries, 64)).astype(np.float32)
    found = []
    for noise in (2.0, 1.5):  # MRR about 50 and 80: neither model finds everything
        turn = rng.normal(size=(64, dim)).astype(np.float32) / 8
        for part in (latent, asked):
            made = part @ turn + noise * rng.normal(size=(len(part), dim)).astype(np.float32)
            found.append(made / np.linalg.norm(made, axis=1, keepdims=True))
    return *found, wanted


def main() -> None:
    """Measure once; the map is fitted before the clock starts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--pairs", type=int, default=5_000, help="pairs that the map is fitted on")
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--resamples", type=int, default=1_000)
    chosen = parser.parse_args()
    total = chosen.items + chosen.pairs
    old, asked_old, new, asked_new, wanted = vectors(total, chosen.queries, chosen.dim, 0)
    free = np.setdiff1d(np.arange(total), wanted)[: chosen.pairs]
    start = time.perf_counter()
    mapping = upgrade.fit(old[free], new[free], candidates=("procrustes", "ridge"))
    print(f"fit: {time.perf_counter() - start:.1f} s")
    start, spent = time.perf_counter(), time.process_time()
    found = upgrade.assess(
        mapping,
        old,
        new,
        query_old=asked_old,
        query_new=asked_new,
        judged=wanted,
        resamples=chosen.resamples,
    )
    seconds, spent = time.perf_counter() - start, time.process_time() - spent
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"assess: {found.items:,} items, {found.queries:,} queries, {len(found.points)} points: "
        f"{seconds:.1f} s ({spent:.1f} s of CPU), peak {peak:.1f} GiB; {found.text}"
    )


if __name__ == "__main__":
    main()
