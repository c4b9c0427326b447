"""Threads for linear algebra: one for a small problem, and never more than this process may use.

A BLAS library starts a thread on every core that it sees. If other processes are busy, or in a
container with a CPU quota, these threads wait for one another by spinning: a singular value
decomposition of 384 × 384 that takes 0.6 s with one thread took 40 s with two on two busy cores.
So each call runs on one thread here, and large problems are cut into blocks that run side by side
(`in_order`). Their results then do not depend on the number of cores, to the last bit.
"""

import contextlib
import itertools
import math
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from threadpoolctl import ThreadpoolController

_CGROUP = Path("/sys/fs/cgroup")
_lock = threading.Lock()
_users = 0
_limits: list = []
_loaded = (0, None)  # modules when the libraries were looked for, and the controller of these


def available() -> int:
    """Return the number of threads that this process may keep busy, at least 1.

    It is the smallest of the CPUs it may run on, the CPU quota of its container (cgroup 1 or 2,
    rounded up), and ``OMP_NUM_THREADS`` if it is set.
    """
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if wanted.isdigit() and int(wanted) > 0:
        count = min(count, int(wanted))
    return max(1, math.ceil(min(count, _quota(_CGROUP))))


def _quota(folder: Path) -> float:
    """Return the CPUs that a container's cgroup grants; infinity without a limit."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()  # version 2: "max 100000"
        return math.inf if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota = int((folder / "cpu" / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu" / "cpu.cfs_period_us").read_text())
        return math.inf if quota <= 0 else quota / period
    return math.inf


@contextlib.contextmanager
def single() -> Iterator[None]:
    """Limit BLAS and LAPACK to one thread a call; may be nested, and used by several threads.

    The limit holds for the process; the last context to exit restores the previous state. Each
    context that is entered also limits libraries imported since.
    """
    global _users, _loaded
    with _lock:
        _users += 1
        # Looking for libraries takes 5 ms, more than many a decomposition; only an import adds one.
        if new := len(sys.modules) != _loaded[0]:
            _loaded = len(sys.modules), ThreadpoolController()
        if new or not _limits:
            _limits.append(_loaded[1].limit(limits=1, user_api="blas"))
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            while not _users and _limits:
                _limits.pop().restore_original_limits()  # the first one's come last


def in_order(function: Callable, items: Iterable) -> Iterator:
    """Yield ``function(item)`` of each item, in order; several are computed at a time.

    At most two items for each available thread are taken ahead of the yielded ones, so that a long
    stream needs little memory. An error of ``function`` is raised in place of its result.

    Example::

        total = sum(threads.in_order(lambda block: block.T @ block, blocks))
    """
    workers = available()
    items = iter(items)
    with single():
        if workers == 1:
            yield from map(function, items)
            return
        with ThreadPoolExecutor(workers, thread_name_prefix="fct_jax") as pool:
            waiting = deque(pool.submit(function, i) for i in itertools.islice(items, 2 * workers))
            try:
                while waiting:
                    found = waiting.popleft().result()
                    waiting.extend(pool.submit(function, i) for i in itertools.islice(items, 1))
                    yield found
            finally:
                for future in waiting:
                    future.cancel()


def ahead(items: Iterable, depth: int = 2) -> Iterator:
    """Yield the items of an iterable, which a thread of its own takes, at most ``depth`` ahead.

    An error of the iterable is raised after the items before it.
    """
    items, end = iter(items), object()
    with ThreadPoolExecutor(1, thread_name_prefix="fct_jax") as pool:
        waiting = deque(pool.submit(next, items, end) for _ in range(depth))
        try:
            while (found := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(next, items, end))
                yield found
        finally:
            for future in waiting:
                future.cancel()
