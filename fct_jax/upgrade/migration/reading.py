"""The single pass over a gallery: checksums, unusable vectors, lengths.

The first command makes the pass: `plan` computes uncertainties in it and certifies its results;
`apply` translates in it.
"""

import dataclasses
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fct_jax.errors import UserError
from fct_jax.runtime import threads
from fct_jax.runtime.progress import Bar
from fct_jax.storage import checksums
from fct_jax.upgrade.checks import guards
from fct_jax.upgrade.galleries.base import Gallery
from fct_jax.upgrade.maps import lengths

BLOCKS = 16  # blocks of the map that are flushed to disk and recorded together


@dataclasses.dataclass(frozen=True)
class Certificate:
    """Results of a full pass, which make another pass unnecessary while files are unchanged.

    Attributes:
      content: CRC-32 of all vectors as float32.
      stamps: file -> [bytes, time of the last change in ns]; {} without files.
      bad: number of vectors that were set aside.
    """

    content: str
    stamps: dict[str, list[int]]
    bad: int = 0

    def holds(self, gallery: Gallery) -> bool:
        """Return whether the gallery's files are those that were read."""
        return bool(self.stamps) and self.stamps == stamps_of(gallery)


class Taken(NamedTuple):
    """Rows that were read and checked together.

    Attributes:
      start, stop: the rows.
      bad: [row, reason] of the unusable ones.
      state: `Reading.state` after them; None if nobody resumes here.
    """

    start: int
    stop: int
    bad: list
    state: list[int] | None = None


class Reading:
    """Takes a gallery's rows in their order and checks them.

    Attributes:
      bad: [row, reason] of each unusable vector so far.
    """

    def __init__(self, gallery: Gallery, lookup=None, row: int = 0, state=None, bad=()):
        """Start at ``row``, with the ``state`` and ``bad`` of a pass that stopped there.

        lookup: a `guards.Lookup` that searches the rows for some vectors, or None.
        """
        self._gallery, self._lookup, self.bad = gallery, lookup, [*bad]
        for bad_row, reason in bad:
            stored = gallery.stored(bad_row)
            gallery.bad.add(stored, gallery.ids[bad_row], reason, gallery.place(stored))
        self._row, self._stamps = row, stamps_of(gallery)
        self._content, shard = state or (0, 0)
        shards, self._shards = gallery.meta.get("shards"), None
        whole = shards and sum(shard["count"] for shard in shards) == len(gallery)
        if whole and gallery.dtype.kind == "f" and gallery.dtype.itemsize <= 4:
            # float32 holds these values exactly, so their bytes can be recovered.
            checksums.check_files(gallery.path, gallery.meta)
            path = gallery.path / "vectors.npy"
            self._shards = checksums.RunningShards(path, shards, row, shard)
        else:
            gallery.verify()

    @property
    def state(self) -> list[int]:
        """Return the state from which a later pass can resume."""
        return [self._content, 0 if self._shards is None else self._shards.state]

    def blocks(self, size: int) -> Iterator[tuple[Taken, np.ndarray]]:
        """Yield (Taken, sound vectors (n, D)) of ``size`` rows at a time, from the next one on.

        Raises UserError as `take` and `check_bad` do.
        """
        gallery = self._gallery
        count = len(gallery)
        read = gallery.read if self._shards is None else gallery.read_exactly
        for start in range(self._row, count, size):
            known, stop = len(self.bad), min(start + size, count)
            stored = read(start, stop)
            vectors = self.take(stored)
            if len(self.bad) > known:
                self.check_bad()
            yield Taken(start, stop, self.bad[known:], self.state), vectors

    def take(self, vectors: np.ndarray) -> np.ndarray:
        """Take the next rows (n, D), as they are stored if shards have checksums, else float32.

        Returns them as float32 with zeros in place of unusable ones.

        Raises UserError for damaged files, for lengths that contradict ``meta.json``, and for
        unusable vectors if the gallery was opened with "raise".
        """
        gallery = self._gallery
        found = None if self._shards is None else self._shards.take(vectors)
        if found is None or vectors.dtype != np.float32:
            vectors = np.ascontiguousarray(vectors, np.float32)
            found = zlib.crc32(vectors)
        self._content = checksums.combined(self._content, found, vectors.nbytes)
        vectors, bad = screened(gallery, self._row, vectors)
        self.bad += bad
        self._row += len(vectors)
        if self._lookup is not None:
            self._lookup.take(vectors)
        return vectors

    def check_bad(self) -> None:
        """Raise UserError if more vectors are unusable than may be set aside."""
        self._gallery.bad.check(len(self._gallery), self._gallery.name)

    def finish(self) -> Certificate:
        """Return the certificate of the whole gallery. Raises UserError for faults."""
        self.check_bad()
        if self._lookup is not None:
            self._lookup.finish()
        if self._stamps != stamps_of(self._gallery):
            raise UserError(f"{self._gallery.name} was changed while it was read; start again")
        return Certificate(checksums.text(self._content), self._stamps, len(self.bad))


def screened(gallery: Gallery, start: int, vectors: np.ndarray) -> tuple[np.ndarray, list]:
    """Return the rows from ``start`` on with zeros for unusable ones, and [row, reason] of these.

    Raises UserError for lengths that contradict ``meta.json``, and for unusable vectors if the
    gallery was opened with "raise".
    """
    good = gallery.screen(start, vectors)
    rows = start + np.flatnonzero(~good)
    bad = [[int(row), gallery.bad.entries[gallery.stored(row)][1]] for row in rows]
    if gallery.meta.get("normalized") and good.any():
        found = np.sqrt(lengths.squares(vectors)[good])
        guards.check_lengths(gallery.name, gallery.meta, found)
    return guards.without(vectors, good), bad


def read_through(gallery: Gallery, mapping, batch_size: int, lookup=None):
    """Read a whole gallery once.

    mapping: the map that gives log-variances; None: they are not wanted.

    Returns:
      (Certificate, log-variance of every row (N,) float32, `Reading.bad`); log-variances are 0
      if the map gives none, and the largest of all for unusable vectors.

    Raises:
      UserError: too many vectors are unusable, or files are damaged.
    """
    reading = Reading(gallery, lookup)
    uncertainty, size = np.zeros(len(gallery), np.float32), min(batch_size, len(gallery))
    blocks = threads.ahead(reading.blocks(batch_size))
    if mapping is not None and mapping.has_uncertainty:
        done = mapping.stream(blocks, size, lambda taken, _, found: (taken, found))
    else:
        done = ((taken, 0) for taken, _ in blocks)
    with Bar("checking vectors", len(gallery), "vectors") as bar:
        for taken, found in done:
            uncertainty[taken.start : taken.stop] = found
            bar.advance(taken.stop - taken.start)
    certificate = reading.finish()
    fill_bad(uncertainty, reading.bad)
    guards.check_uncertainty(gallery, uncertainty)
    return certificate, uncertainty, reading.bad


def fill_bad(uncertainty: np.ndarray, bad: list) -> None:
    """Give unusable rows the largest uncertainty of the others, in place."""
    sound = np.ones(len(uncertainty), bool)
    sound[[row for row, _ in bad]] = False
    uncertainty[~sound] = uncertainty[sound].max(initial=-np.inf) if sound.any() else 0


def stamps_of(gallery: Gallery) -> dict[str, list[int]]:
    """Return size and modification time of a gallery's files, to detect changes."""
    path = Path(gallery.path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return {str(file.relative_to(path)): _stamp(file) for file in files}
    return {path.name: _stamp(path)} if path.is_file() else gallery.stamps()


def _stamp(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]


def write_quarantine(workdir: Path, gallery: Gallery) -> None:
    """Write ``quarantine.jsonl``: row, id, reason and place of every row that is set aside."""
    if len(gallery.bad):
        gallery.bad.write(workdir / "quarantine.jsonl")
