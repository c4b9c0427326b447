"""Translated blocks go to disk, and are recorded chunk by chunk."""

import contextlib
import time

import numpy as np

from fct_jax.upgrade.galleries.rows import npy_rows
from fct_jax.upgrade.migration.translating import Made


class ChunkWriter:
    """Writes translated blocks in their order; a chunk of them is flushed and recorded together."""

    def __init__(self, work, row: int):
        """Take a `Migration`, whose target is open, and the first row to write."""
        self._work, self._row, self._begun = work, row, time.monotonic()
        self._checksum, self._bad, self._uncertainty = 0, [], []

    def write(self, made: Made) -> int:
        """Write one block; return the number of its rows."""
        work, taken = self._work, made.taken
        self._checksum = work.target.vectors.write(taken.start, made.vectors, self._checksum)
        self._bad += taken.bad
        if made.uncertainty is not None:
            self._uncertainty.append(made.uncertainty)
        if taken.stop - self._row >= work.chunk or taken.stop == len(work.source):
            self._record(taken)
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
        )
        self._row, self._begun = taken.stop, now
        self._checksum, self._bad, self._uncertainty = 0, [], []
