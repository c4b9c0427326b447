"""The course of a stream of queries over a gallery that is re-embedded on demand, compiled."""

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def course(
    stream, candidates, budget, background, has, fails, ready, embedded, queued, present
):  # fmt: skip
    """Work through a stream (S,) of queries with candidates (Q, K), −1 for none.

    budget, background: as for `fct_jax.upgrade.ways.on_demand.replay`, −1 for no limit.
    has: (N,) bool, items with a new vector, which grows; fails: (N,) bool.
    Filled: ready (S, K), whether a candidate had a new vector when it was ranked; embedded,
    queued and present (S,). Returns the number of items whose embedding was tried in vain.
    """
    size = len(has)
    lost, waiting = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
    queue = np.empty(size, np.int64)  # an item is queued once at most
    first = last = failed = 0
    count = np.count_nonzero(has)
    for turn in range(len(stream)):
        rows = candidates[stream[turn]]
        for row in rows:
            if row < 0 or has[row] or lost[row]:
                continue
            if budget < 0 or embedded[turn] < budget:
                embedded[turn] += 1
                lost[row], has[row] = fails[row], not fails[row]
                count += has[row]
                failed += lost[row]
            elif not waiting[row]:
                waiting[row] = True
                queue[last] = row
                last += 1
                queued[turn] += 1
        for place in range(len(rows)):
            ready[turn, place] = rows[place] >= 0 and has[rows[place]]
        tried = 0
        while first < last and (background < 0 or tried < background):
            row = queue[first]
            first += 1
            if not has[row] and not lost[row]:
                tried += 1
                lost[row], has[row] = fails[row], not fails[row]
                count += has[row]
                failed += lost[row]
        present[turn] = count
    return failed
