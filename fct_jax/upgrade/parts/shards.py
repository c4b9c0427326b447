"""The checksums that a source has of its own shards, compared piece by piece."""

import numpy as np

from fct_jax.storage import checksums


class ShardsOfPiece:
    """Compares the shards that begin in a piece with rows that are read anyway.

    Only the rows of the last one that lie behind the piece are read for it alone. A source without
    checksums passes.

    Attributes:
      stored: whether `take` needs rows in the source's stored type.
    """

    def __init__(self, source, piece):
        shards = source.meta.get("shards") or []
        # Rows that are set aside are in the shards, but not among those that are read.
        whole = sum(shard["count"] for shard in shards) == len(source)
        # float32 holds these values exactly, so their bytes can be recovered.
        exact = source.dtype.kind == "f" and source.dtype.itemsize <= 4
        self._source, self._piece, self._running = source, piece, None
        self.stored = bool(shards) and whole and exact
        here = [s for s in shards if piece.start <= s["start"] < piece.stop]
        if self.stored and here:
            self._first = here[0]["start"]
            self._last = here[-1]["start"] + here[-1]["count"]
            path = source.path / "vectors.npy"
            self._running = checksums.RunningShards(path, here, self._first)

    def take(self, start: int, rows: np.ndarray) -> None:
        """Take the piece's next rows. Raises UserError if a shard is damaged."""
        if self._running is not None:
            self._running.take(rows[max(self._first - start, 0) :])

    def finish(self, size: int) -> None:
        """Compare what is left, ``size`` rows at a time. Raises UserError as `take` does."""
        source, piece = self._source, self._piece
        if self._running is not None:
            for start in range(piece.stop, self._last, size):
                stop = min(start + size, self._last)
                self._running.take(source.read_exactly(start, stop))
        elif source.meta.get("shards") and not self.stored:
            start = source.stored(piece.start) if piece.start else 0
            stop = source.stored(piece.stop) if piece.stop < len(source) else None
            checksums.check_rows(source.path, source.meta, start, stop)
