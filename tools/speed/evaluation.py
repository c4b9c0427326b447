"""Measures evaluation: backfilling curves and search, each against a plain baseline.

    python tools/benchmark.py --only evaluation

Every figure is measured in its own process, where our code and its baseline run one after the other
on the same data (clustered Gaussian vectors, D = 128). The report gives their seconds, the ratio,
and the peak memory of our code. If the baseline would take minutes, it is measured on fewer queries
and points and scaled up; the note says how.
"""

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import faiss
import numpy as np
from sklearn.metrics import average_precision_score

from fct_jax.evaluate.backfill import backfill_curve
from fct_jax.evaluate.orders import backfill_order
from fct_jax.evaluate.search import knn, ranked_metrics
from tools.speed.common import figure, peak_mb
from tools.speed.common import seconds as time_of

DIMS = 128
POINTS = 22
SPREAD = 2.0  # spread of a class relative to the centres; gives an mAP of about 0.2


def run(quick: bool) -> list[dict]:
    """Return all figures; see ``tools.speed.common.figure``; ``items`` marks growing sizes.

    They take some minutes on two cores, with ``quick`` under a minute.
    """
    jobs = [(_growth, (1_000, 10)), (_growth, (3_000, 30))]
    jobs += [(_curve, (10_000, 100, 100 if quick else 400))]
    if quick:
        jobs += [(_search, (100_000, 2_000))]
    else:
        jobs += [(_growth, (20_000, 200)), (_curve, (50_000, 1_000, 60))]
        jobs += [(_search, (1_000_000, 10_000))]
    results = []
    context = multiprocessing.get_context("spawn")
    for job, arguments in jobs:
        with ProcessPoolExecutor(1, mp_context=context) as fresh_process:
            results += fresh_process.submit(job, *arguments).result()
    return results


def clusters(n: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return vectors of a new model, noisier ones of a transformation, and labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, n)
    centres = rng.standard_normal((classes, DIMS), np.float32)
    new = centres[labels] + SPREAD * rng.standard_normal((n, DIMS), np.float32)
    transformed = new + SPREAD / 2 * rng.standard_normal((n, DIMS), np.float32)
    return new, transformed, labels


def _our_curve(n: int, classes: int):
    """Return data, an order, and the time and memory of our whole curve."""
    data = clusters(n, classes)
    order = backfill_order("random", n=n)
    before = peak_mb()
    # Both variants are compiled first, on few items: float64 for small sets, float32 for large.
    for small in (50, 8_500):
        few = clusters(small, small // 10)
        backfill_curve(*few, backfill_order("random", n=small), steps=POINTS - 2)
    ours = time_of(backfill_curve, *data, order, steps=POINTS - 2)
    return data, order, ours, peak_mb() - before


def _growth(n: int, classes: int) -> list[dict]:
    _, _, ours, peak = _our_curve(n, classes)
    note = f"{POINTS} points, {classes} classes"
    return [{**figure(f"curve n={n}", ours, None, peak, note), "items": n}]


def _curve(n: int, classes: int, queries: int) -> list[dict]:
    (new, transformed, labels), order, ours, peak = _our_curve(n, classes)
    products = time_of(_two_products, new, transformed)
    mixed = transformed.copy()
    mixed[order[: n // 2]] = new[order[: n // 2]]
    scale = n / queries * POINTS
    plain = time_of(plain_point, new, mixed, labels, queries) * scale
    name = f"curve n={n}"
    note = (
        f"{POINTS} points, {classes} classes; baseline: distances, full sort and scikit-learn "
        f"AP, measured at 1 point for {queries} queries and multiplied by {scale:.0f}"
    )
    return [
        {**figure(name, ours, plain, peak, note), "items": n},
        figure(
            f"{name} vs. products",
            ours,
            products,
            peak,
            f"baseline: only the two n×n matrix products, in blocks of rows; ours takes "
            f"{ours / products:.1f} times as long",
        ),
    ]


def _two_products(new: np.ndarray, transformed: np.ndarray) -> None:
    rows = 500
    block = np.empty((rows, len(new)), np.float32)
    for start in range(0, len(new), rows):
        part = new[start : start + rows]
        np.matmul(part, new.T, out=block[: len(part)])
        np.matmul(part, transformed.T, out=block[: len(part)])


def plain_point(new, gallery, labels, queries: int) -> dict[str, float]:
    """Return one point of the curve by its definition for the first queries, as the baseline."""
    squares = (new[:queries] ** 2).sum(1)[:, None] + (gallery**2).sum(1)
    distance = np.sqrt(np.maximum(squares - 2 * new[:queries] @ gallery.T, 0))
    own = np.arange(queries)
    distance[own, own] = np.inf
    ranked = np.argsort(distance, axis=1, kind="stable")
    hits = labels[ranked] == labels[:queries, None]
    aps = []
    for i in range(queries):
        others = np.delete(np.arange(len(labels)), i)
        positive = labels[others] == labels[i]
        if positive.any():
            aps.append(average_precision_score(positive, -distance[i, others]))
    return {
        "cmc@1": float(hits[:, 0].mean()),
        "cmc@5": float(hits[:, :5].any(axis=1).mean()),
        "map": float(np.mean(aps)),
    }


def _search(n: int, queries: int) -> list[dict]:
    rng = np.random.default_rng(0)
    classes = n // 100
    centres = rng.standard_normal((classes, DIMS), np.float32)
    labels, query_labels = rng.integers(0, classes, n), rng.integers(0, classes, queries)
    query = centres[query_labels] + rng.standard_normal((queries, DIMS), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vectors.npy"
        gallery = np.lib.format.open_memmap(file, "w+", np.float32, (n, DIMS))
        for start in range(0, n, 50_000):
            part = centres[labels[start : start + 50_000]]
            gallery[start : start + 50_000] = part + rng.standard_normal(part.shape, np.float32)
        del gallery
        gallery = np.load(file, mmap_mode="r")

        def ours():
            _, ids = knn(query, gallery, 100)
            ranked_metrics(ids, query_labels, labels, map_at=100)

        before = peak_mb()
        seconds = time_of(ours)
        peak = peak_mb() - before
        baseline = time_of(faiss.knn, query, np.asarray(gallery), 100)
    note = (
        "CMC@1, CMC@5 and mAP@100 from memory-mapped vectors; baseline: faiss.knn alone; "
        f"ours takes {seconds / baseline:.2f} times as long; "
        f"peak may include the {gallery.nbytes >> 20} MB mapped"
    )
    return [figure(f"search {n}×{queries}", seconds, baseline, peak, note)]
