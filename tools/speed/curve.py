"""Measures a whole backfilling curve by the number of classes, and its growth with few huge ones.

    python tools/benchmark.py --only curve [--full]

Times are processor seconds, so that other work on the machine does not count. The baseline is the
matrix products alone, between the queries and both models' vectors, which every curve needs.
"""

import resource

import numpy as np
from threadpoolctl import threadpool_limits

from fct_jax.evaluate.backfill import backfill_curve
from fct_jax.evaluate.distances import Keys
from fct_jax.evaluate.orders import backfill_order
from tools.speed.common import figure, peak_mb
from tools.speed.evaluation import POINTS, clusters


def run(quick: bool) -> list[dict]:
    """Return all figures; about four minutes on a core, with ``quick`` one."""
    n = 5_000 if quick else 10_000
    for small in (50, 8_500):  # float64 and float32 are compiled first
        _curve(*clusters(small, small // 10))
    sizes = [(n, classes) for classes in (1_000, 100, 10, 2)] + [(n // 2, 2), (2 * n, 2)]
    return [_figure(*size) for size in sizes]


def _figure(n: int, classes: int) -> dict:
    data = clusters(n, classes)
    before = peak_mb()
    ours, peak = _processor_seconds(_curve, *data), peak_mb() - before
    products = _processor_seconds(_products, *data[:2])
    each = ours / n * 1e6
    note = (
        f"CPU seconds, {POINTS} points; {each:,.0f} µs a query, "
        f"{each / (n * np.log2(n)) * 1e3:.2f} ns by n·log₂n; baseline: the matrix products alone"
    )
    return figure(f"curve of {n} items in {classes} classes", ours, products, peak, note)


def _curve(new, transformed, labels) -> None:
    order = backfill_order("random", n=len(new))
    backfill_curve(new, transformed, labels, order, steps=POINTS - 2)


def _products(new, transformed) -> None:
    keys = Keys(new, np.concatenate([transformed, new]), "l2")
    rows = 64
    block = np.empty((rows, keys.shape[1]), keys.dtype)
    with threadpool_limits(1):
        for start in range(0, len(new), rows):
            keys.fill(start, min(start + rows, len(new)), block)


def _processor_seconds(function, *arguments) -> float:
    before = resource.getrusage(resource.RUSAGE_SELF)
    function(*arguments)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
