"""Shared parts of the benchmarks: one form for every figure, time and memory."""

import resource
import sys
import time
from collections.abc import Callable


def figure(name: str, ours: float, baseline: float | None, peak: float, note: str) -> dict:
    """Return one row of the report.

    Args:
      name: the name of the figure.
      ours: seconds of our code.
      baseline: seconds of the plain baseline in the same run; None if only growth is shown.
      peak: megabytes that our code added to the process, or held on an accelerator.
      note: sizes, rates, and how a baseline was scaled.

    ``ratio`` is baseline / ours: above 1, our code is faster.
    """
    return {
        "name": name,
        "ours_s": round(ours, 4),
        "baseline_s": None if baseline is None else round(baseline, 4),
        "ratio": None if baseline is None else round(baseline / ours, 3),
        "peak_mb": round(peak),
        "note": note,
    }


def seconds(function: Callable, *arguments, **keywords) -> float:
    """Return the wall-clock time of one call."""
    start = time.perf_counter()
    function(*arguments, **keywords)
    return time.perf_counter() - start


def peak_mb() -> float:
    """Return the peak memory of this process, in megabytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
