"""The pieces of a gallery, and the vectors of one, computed while they are written."""

import contextlib
import dataclasses
import itertools
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fct_jax.storage import checksums
from fct_jax.upgrade.checks import guards
from fct_jax.upgrade.galleries.base import TRANSLATED
from fct_jax.upgrade.galleries.rows import empty_npy, npy_rows
from fct_jax.upgrade.galleries.target import Target
from fct_jax.upgrade.migration.reading import BLOCKS, screened
from fct_jax.upgrade.migration.translating import Translator

_MOST = 16  # chunks of the translation in a piece: a lost piece costs about a minute
_PIECES = 64  # a small gallery is cut into about as many, so that 16 parts share it evenly


@dataclasses.dataclass(frozen=True)
class Piece:
    """Rows that are translated and published together.

    Attributes:
      number: its place among the pieces, from 0.
      start, stop: its rows.
      files: numbers of the gallery's files that it consists of; none if it is a range of rows.
    """

    number: int
    start: int
    stop: int
    files: range

    @property
    def name(self) -> str:
        return f"piece-{self.number:05d}"


def pieces_of(target: Target, batch_size: int) -> list[Piece]:
    """Cut a gallery into pieces, the same in every process.

    A piece is a run of files, or a range of whole blocks: 64 pieces of a small gallery, and pieces
    of 16 chunks (a million rows in blocks of 4,096) of a large one. Small files are taken
    together, because the blocks at their borders are computed twice.
    """
    count, starts = len(target.source), target.file_starts()
    if starts is None:
        blocks = min(_MOST * BLOCKS, max(1, -(-count // (_PIECES * batch_size))))
        first = [*range(0, count, blocks * batch_size), count]
        return [
            Piece(number, start, stop, range(0))
            for number, (start, stop) in enumerate(itertools.pairwise(first))
        ]
    least = min(BLOCKS * batch_size, -(-count // _PIECES))
    found, begun = [], 0
    for file in range(1, len(starts)):
        if starts[file] - starts[begun] >= least or file == len(starts) - 1:
            found.append(
                Piece(len(found), int(starts[begun]), int(starts[file]), range(begun, file))
            )
            begun = file
    return found


class PieceRows:
    """Stored h(old) of a piece's rows, computed when they are read, which is done in order.

    Blocks are those of one process: a piece that begins or ends inside a block computes the whole
    block, and the last block of the gallery is computed together with the one before it if one
    process does so.

    Attributes:
      dim, dtype: size and stored type of the vectors.
      content: CRC-32 of the source's rows so far, as float32.
      bad: [row, reason] of the unusable ones so far.
      uncertainty: log-variances so far, one array for each chunk; [] if the map gives none.
    """

    def __init__(self, translator: Translator, piece: Piece, dtype):
        self._translator, self._piece = translator, piece
        self.dim, self.dtype = translator.map.dim_out, np.dtype(dtype)
        self.content, self.bad, self.uncertainty = 0, [], []
        self._first = self._last = piece.start  # rows that are held
        self._held = np.empty((0, self.dim), self.dtype)
        # The next rows are read while these are computed.
        self._reader = ThreadPoolExecutor(1)
        self._coming = self._ahead(piece.start) if piece.stop > piece.start else None

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows that begin where the last ones ended, in the stored type."""
        found = []
        while True:
            found.append(self._held[start - self._first : stop - self._first])
            start += len(found[-1])
            if start == stop:
                break
            self._first, self._held = self._last, self._next()
            self._last += len(self._held)
        return found[0] if len(found) == 1 else np.concatenate(found)

    def close(self) -> None:
        """Stop reading ahead."""
        self._reader.shutdown(cancel_futures=True)

    def _ahead(self, row: int):
        """Begin to read the whole blocks from ``row`` on; return (first, last, their future)."""
        source, size = self._translator.source, self._translator.batch_size
        chunk, count = size * BLOCKS, len(source)
        first = row // size * size
        last = min(first + chunk, -(-self._piece.stop // size) * size, count)
        if last == count and last - first < size and first % chunk:
            first -= size  # a short block of its own could be computed otherwise
        return first, last, self._reader.submit(source.read, first, last)

    def _next(self) -> np.ndarray:
        source, piece = self._translator.source, self._piece
        first, last, reading = self._coming
        vectors, start, stop = reading.result(), self._last, min(last, piece.stop)
        before, own, after = np.split(vectors, [start - first, stop - first])
        self.content = zlib.crc32(np.ascontiguousarray(own), self.content)
        own, bad = screened(source, start, own)
        source.bad.check(len(source), source.name)
        self.bad += bad
        if stop < piece.stop:
            self._coming = self._ahead(stop)
        if len(before) or len(after):
            # What is unusable among its neighbours is reported by their own piece.
            own = np.concatenate([_zeroed(before), own, _zeroed(after)])
        made, uncertainty = self._translator.mapped(first, own, bad)
        if uncertainty is not None:
            self.uncertainty.append(uncertainty[start - first : stop - first])
        return made[start - first : stop - first].astype(self.dtype, copy=False)


def _zeroed(vectors: np.ndarray) -> np.ndarray:
    return guards.without(vectors, guards.sound(vectors))


class Versions:
    """Versions of a piece's rows, which are all translated."""

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.full((stop - start, 1), TRANSLATED, np.uint8)


def write_rows(path: Path, rows: PieceRows, piece: Piece, chunk: int) -> None:
    """Write a piece's vectors to a .npy file."""
    empty_npy(path, (piece.stop - piece.start, rows.dim), rows.dtype)
    with contextlib.closing(npy_rows(path)) as file:
        for start in range(piece.start, piece.stop, chunk):
            stop = min(start + chunk, piece.stop)
            file.write(start - piece.start, rows.read(start, stop))


def check_source(source, piece: Piece, last: bool) -> None:
    """Compare the checksums of the source's own shards that begin in a piece. Raises UserError."""
    if source.meta.get("shards"):
        start, stop = source.stored(piece.start) if piece.start else 0, None
        if not last:
            stop = source.stored(piece.stop)
        checksums.check_rows(source.path, source.meta, start, stop)
