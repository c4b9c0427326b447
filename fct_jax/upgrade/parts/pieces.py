"""The pieces of a gallery, and the vectors of one, computed while they are written."""

import contextlib
import dataclasses
import itertools
import zlib
from pathlib import Path

import numpy as np

from fct_jax.runtime import threads
from fct_jax.storage import checksums
from fct_jax.upgrade.checks import guards
from fct_jax.upgrade.galleries.base import TRANSLATED
from fct_jax.upgrade.galleries.rows import empty_npy, npy_rows
from fct_jax.upgrade.galleries.target import Target
from fct_jax.upgrade.migration.reading import BLOCKS, Taken, screened
from fct_jax.upgrade.migration.translating import Translator
from fct_jax.upgrade.parts.shards import ShardsOfPiece

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

    Blocks are those of one process: of a block in which a piece begins or ends, all rows are
    computed, and those of the neighbours are left out.

    Attributes:
      dim, dtype: number and type of the stored numbers of a vector.
      content: CRC-32 of the source's rows so far, as float32.
      bad: [row, reason] of the unusable ones so far.
      uncertainty: log-variances so far, one array for each block; [] if the map gives none.
      shards: the checksums that the source has of its rows.
      clipped: number of values so far that the stored type clips.
    """

    def __init__(self, translator: Translator, piece: Piece):
        self._translator, self._piece = translator, piece
        self.dim, self.dtype = translator.width, translator.coding.type.dtype
        self.content, self.bad, self.uncertainty, self.clipped = 0, [], [], 0
        self._first = self._last = piece.start  # rows that are held
        self._held = np.empty((0, self.dim), self.dtype)
        self.shards = ShardsOfPiece(translator.source, piece)
        self._ahead = threads.ahead(self._sources())
        self._blocks = translator.stream(self._ahead)

    def close(self) -> None:
        """Stop reading; otherwise the thread that reads might be the one that collects it."""
        self._blocks.close()
        self._ahead.close()

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

    def _next(self) -> np.ndarray:
        made, piece = next(self._blocks), self._piece
        first = made.taken.start
        own = slice(max(piece.start - first, 0), piece.stop - first)
        if made.uncertainty is not None:
            self.uncertainty.append(made.uncertainty[own])
        if made.clipped is not None:
            self.clipped += int(made.clipped[own].sum())
        return made.vectors[own]

    def _sources(self):
        """Yield (Taken, vectors) of every block that the piece has rows of."""
        source, size, piece = self._translator.source, self._translator.batch_size, self._piece
        if piece.start == piece.stop:
            return
        for first in range(piece.start // size * size, piece.stop, size):
            last = min(first + size, len(source))
            start, stop = max(first, piece.start), min(last, piece.stop)
            values = (source.read_exactly if self.shards.stored else source.read)(first, last)
            self.shards.take(start, values[start - first : stop - first])
            values = values.astype(np.float32, copy=False)
            before, own, after = np.split(values, [start - first, stop - first])
            self.content = zlib.crc32(np.ascontiguousarray(own), self.content)
            own, bad = screened(source, start, own)
            if bad:
                source.bad.check(len(source), source.name)
            self.bad += bad
            if len(before) or len(after):
                # What is unusable among its neighbours is reported by their own piece.
                own = np.concatenate([_zeroed(before), own, _zeroed(after)])
            yield Taken(first, last, bad), own


def _zeroed(vectors: np.ndarray) -> np.ndarray:
    return guards.without(vectors, guards.sound(vectors))


class Versions:
    """Versions of a piece's rows, which are all translated."""

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.full((stop - start, 1), TRANSLATED, np.uint8)


def write_rows(path: Path, rows: PieceRows, piece: Piece, chunk: int) -> str:
    """Write a piece's vectors to a .npy file; return its checksum, for which it is not read."""
    empty_npy(path, (piece.stop - piece.start, rows.dim), rows.dtype)
    with contextlib.closing(npy_rows(path)) as file:
        checksum = int(checksums.of_part(path, 0, file.offset), 16)
        for start in range(piece.start, piece.stop, chunk):
            stop = min(start + chunk, piece.stop)
            checksum = file.write(start - piece.start, rows.read(start, stop), checksum)
    return checksums.text(checksum)
