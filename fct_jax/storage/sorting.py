"""Sorting of more items than memory holds: they are distributed to files, which are sorted alone.

This is a sample sort: splitters taken from a sample cut the items into buckets of about equal size.
Items equal to a splitter get a bucket of their own, because many items may be equal, such as those
without traffic.

Source: Frazer and McKellar, "Samplesort: A sampling approach to minimal storage tree sorting",
Journal of the ACM 1970, https://doi.org/10.1145/321592.321600.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from fct_jax.storage import spilled

BLOCK = 1 << 21  # items sorted in memory
_FILES = 64  # a quarter of the most files that are open at a time
_RUNS, _RUN = 256, 512  # stretches of items in a sample, and the length of each

# keys of the items from start to stop
Keys = Callable[[int, int], tuple[np.ndarray, ...]]


def descending(keys: Keys, count: int, block: int = BLOCK) -> np.ndarray:
    """Return the rows of ``count`` items by descending keys, (count,) int64.

    Rows with equal keys are in ascending order. A long result is kept in a file (`spilled`). Memory
    is needed for a few blocks; the folder for temporary files needs 16 bytes for each item and 8
    for each of its keys.

    Args:
      keys: gives, for the rows from start to stop, the arrays (n,) of numbers without NaN that they
        are sorted by; a later one decides where the earlier ones are equal.
      count: number of items.
      block: number of items that are sorted in memory.
    """
    found = spilled.empty(count, np.int64)

    def negated(start: int, stop: int) -> list[np.ndarray]:
        return [-np.asarray(key, np.float64) for key in keys(start, stop)]

    at = 0
    for rows in _ascending(negated, lambda positions: positions, count, block):
        found[at : at + len(rows)] = rows
        at += len(rows)
    return found


def _ascending(keys: Keys, rows_at: Callable, count: int, block: int) -> Iterator[np.ndarray]:
    """Yield rows by ascending keys, some at a time; ``rows_at`` gives the rows of positions."""
    if not keys(0, 1):  # all keys are equal, and the positions are in the order of the rows
        for part in spilled.blocks(count, block):
            yield rows_at(np.arange(part.start, part.stop))
    elif count <= block:
        yield rows_at(np.lexsort(keys(0, count)[::-1]))
    else:
        yield from _distributed(keys, rows_at, count, max(block, count // _FILES))


def _distributed(keys: Keys, rows_at: Callable, count: int, block: int) -> Iterator[np.ndarray]:
    """Yield rows as `_ascending` does, of more items than are sorted in memory."""
    splitters = _splitters(keys, count, 2 * -(-count // block))
    names = [f"key{number}" for number in range(len(keys(0, 1)))]
    kind = np.dtype([*((name, np.float64) for name in names), ("row", np.int64)])
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / str(number) for number in range(2 * len(splitters) + 1)]
        with contextlib.ExitStack() as opened:
            files = [opened.enter_context(path.open("wb")) for path in paths]
            for part in spilled.blocks(count):
                found = keys(part.start, part.stop)
                records = np.empty(len(found[0]), kind)
                records["row"] = rows_at(np.arange(part.start, part.stop))
                for name, key in zip(names, found, strict=True):
                    records[name] = key
                bucket = np.searchsorted(splitters, found[0], "left") * 2
                last = np.minimum(bucket // 2, len(splitters) - 1)
                bucket += splitters[last] == found[0]
                order = np.argsort(bucket, kind="stable")
                ends = np.searchsorted(bucket[order], np.arange(len(paths) + 1))
                for number in np.flatnonzero(np.diff(ends)):
                    records[order[ends[number] : ends[number + 1]]].tofile(files[number])
        for number, path in enumerate(paths):
            if path.stat().st_size:
                held = np.memmap(path, kind, "r")
                # In every second bucket the first keys are equal.
                left = names[number % 2 :]

                def keys_of(start, stop, held=held, left=left):
                    return [np.array(held[name][start:stop]) for name in left]

                def rows_of(positions, held=held):
                    return held["row"][positions]

                yield from _ascending(keys_of, rows_of, len(held), block)
            path.unlink()


def _splitters(keys: Keys, count: int, number: int) -> np.ndarray:
    """Return at most ``number`` different values that cut the first keys of a sample evenly."""
    starts = np.linspace(0, max(count - _RUN, 0), _RUNS).astype(np.int64).tolist()
    sample = [keys(start, min(start + _RUN, count))[0] for start in starts]
    sample = np.sort(np.concatenate(sample))
    return np.unique(sample[np.linspace(0, len(sample) - 1, number + 2).astype(np.int64)[1:-1]])
