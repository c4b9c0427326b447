"""Translated blocks go to disk, and are recorded chunk by chunk."""

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from fct_jax.upgrade.galleries.rows import npy_rows
from fct_jax.upgrade.galleries.target import Target
from fct_jax.upgrade.migration.translating import Made, counted


class ChunkWriter:
    """Writes translated blocks in their order; a chunk of them is flushed and recorded together."""

    def __init__(self, work, row: int):
        """Take a `Migration`, whose target is open, and the first row to write."""
        self._work, self._row, self._begun = work, row, time.monotonic()
        self._next = row
        self._checksum, self._bad, self._uncertainty, self._clipped = 0, [], [], []

    def write(self, made: Made) -> int:
        """Write one block; return the number of its rows. After an error no more are written."""
        work, taken = self._work, made.taken
        if taken.start != self._next:  # else a chunk with a hole would be recorded as done
            raise InterruptedError("the rows before these were not written")
        self._checksum = work.target.vectors.write(taken.start, made.vectors, self._checksum)
        self._bad += taken.bad
        if made.uncertainty is not None:
            self._uncertainty.append(made.uncertainty)
        if made.clipped is not None:
            self._clipped.append(made.clipped)
        if taken.stop - self._row >= work.chunk or taken.stop == len(work.source):
            self._record(taken)
        self._next = taken.stop
        return taken.stop - taken.start

    def _record(self, taken) -> None:
        work, start = self._work, self._row
        work.target.vectors.sync()
        if self._uncertainty:
            # Written, not mapped: where the disk is full, a mapped page ends the process.
            with contextlib.closing(npy_rows(work.workdir / "uncertainty.npy")) as rows:
                rows.write(start, np.concatenate(self._uncertainty)[:, None])
                rows.sync()
        now = time.monotonic()
        work.record(
            "chunk",
            start=start,
            stop=taken.stop,
            checksum=self._checksum,
            reading=taken.state,
            seconds=round(now - self._begun, 3),
            **({"bad": self._bad} if self._bad else {}),
            **counted(np.concatenate(self._clipped) if self._clipped else None),
        )
        self._row, self._begun = taken.stop, now
        self._checksum, self._bad, self._uncertainty, self._clipped = 0, [], [], []


class Following:
    """Context in which a target's files are made while later rows are still written.

    All files are there when it ends without an error. After a kill only the missing ones are made.
    """

    def __init__(self, target: Target, row: int):
        """Take an open target, and the number of rows that are written already."""
        self._target, self._rows, self._failed = target, row, False
        self._changed = threading.Condition()
        self._pool, self._publishing = ThreadPoolExecutor(1), None

    def __enter__(self) -> "Following":
        if self._target.follows:
            self._publishing = self._pool.submit(self._target.publish, None, self._wait)
        return self

    def __exit__(self, kind, error, trace) -> None:
        with self._changed:
            self._failed = kind is not None
            self._changed.notify_all()
        self._pool.shutdown()
        if kind is None and self._publishing is not None:
            self._publishing.result()

    def advance(self, rows: int) -> int:
        """Note that the next ``rows`` rows are written; return their number.

        Raises the error of a file that could not be made.
        """
        with self._changed:
            self._rows += rows
            self._changed.notify_all()
        if self._publishing is not None and self._publishing.done():
            self._publishing.result()
        return rows

    def _wait(self, row: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._failed or self._rows >= row)
            if self._failed:
                raise InterruptedError("not all rows were written")
