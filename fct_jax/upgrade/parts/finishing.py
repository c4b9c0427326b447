"""Making the published pieces the gallery, with the journal of one process."""

import contextlib
import io

import numpy as np

from fct_jax.errors import UserError
from fct_jax.runtime.progress import Bar
from fct_jax.storage import checksums
from fct_jax.upgrade.galleries.rows import Rows, npy_rows
from fct_jax.upgrade.migration.reading import Certificate, stamps_of
from fct_jax.upgrade.migration.steps import Migration
from fct_jax.upgrade.parts.pieces import Piece
from fct_jax.upgrade.parts.publishing import Elsewhere, Publishing


class Finishing:
    """The last step of a translation in pieces, which one process at a time does.

    Every piece is checked once. Where the vectors are rows of one file they are copied into it,
    and the piece's own file is removed; files that readers open are moved. A killed run is resumed
    after its last piece.
    """

    def __init__(self, work: Migration, publishing: Publishing, new_meta: dict):
        self._work, self._publishing, self._new_meta = work, publishing, new_meta

    def finish(self, content: str | None) -> list[Piece]:
        """Make the gallery; return the pieces that are missing or damaged, [] if it is made.

        content: checksum of the source that the pieces must have, if it is known.

        Raises UserError if the gallery is another one than was planned for, or too many vectors
        are unusable.
        """
        work, publishing = self._work, self._publishing
        done, source, target = work.progress, work.source, work.target
        adopts = target.file_starts() is not None
        if done.begin is None:
            work.coding.scales = publishing.translator.coding.scales
            work.begin(self._new_meta)
        stamps = stamps_of(source)
        if done.layout is None or done.layout["stamps"] != stamps:
            # Each piece is removed once it is copied.
            freed = 0 if adopts else publishing.bytes_but_largest()
            work.lay_out(stamps, files=not adopts, freed=freed)
        if not adopts:
            target.open(work.map.dim_out)
        total = (done.reading or [0])[0]
        with Bar("checking pieces", len(source), "vectors", done.rows) as bar:
            for piece in publishing.pieces:
                if piece.stop <= done.rows:
                    continue
                name = None if adopts else publishing.vectors_name(piece)
                record = publishing.record(piece, but=name)
                if record is None or not (adopts or self._copied(piece, record["files"].get(name))):
                    return self._missing(piece)
                size = (piece.stop - piece.start) * source.dim * 4
                total = checksums.combined(total, record["content"], size)
                self._keep(piece, record, total)
                if not adopts:
                    publishing.remove_vectors(piece)
                bar.advance(piece.stop - piece.start)
        for row, reason in done.bad:
            stored = source.stored(row)
            source.bad.add(stored, source.ids[row], reason, source.place(stored))
        source.bad.check(len(source), source.name)
        found = Certificate(checksums.text(total), stamps, len(done.bad))
        if content not in (None, found.content):
            raise UserError(
                f"{source.name} has changed since the plan was made: its vectors have checksum "
                f"{found.content}, not {content}; move {work.workdir}/plan and "
                f"{publishing.place.name} away, and begin again"
            )
        elsewhere = publishing.place.claim(work.workdir)
        if elsewhere is not None:
            raise Elsewhere(
                f"{publishing.place.name} was finished by {elsewhere}; continue in that directory"
            )
        if adopts:
            publishing.place.hand_over(target)
        work.conclude(found)
        publishing.place.remove()
        return []

    def _copied(self, piece: Piece, seal: dict | None) -> bool:
        """Copy a piece's vectors; return whether they are those that were published.

        Their file is read once. Rows of a damaged one are replaced when the piece is made again.
        """
        work, into, count = self._work, self._work.target.vectors, piece.stop - piece.start
        path = self._publishing.place.path / self._publishing.vectors_name(piece)
        if seal is None or not path.is_file() or path.stat().st_size != seal["bytes"]:
            return False
        offset = seal["bytes"] - count * into.dim * into.dtype.itemsize
        checksum = int(checksums.of_part(path, 0, offset), 16)
        with contextlib.closing(Rows(path, offset, into.dim, into.dtype)) as made:
            for start in range(0, count, work.chunk):
                vectors = made.read(start, min(start + work.chunk, count))
                checksum = into.write(piece.start + start, vectors, checksum)
        into.sync()
        return checksums.text(checksum) == seal["checksum"]

    def _keep(self, piece: Piece, record: dict, total: int) -> None:
        """Record a piece that is in the gallery."""
        work, place = self._work, self._publishing.place
        if work.map.has_uncertainty and piece.stop > piece.start:
            data = place.read(f"{place.records}{piece.name}.variance.npy")
            with contextlib.closing(npy_rows(work.workdir / "uncertainty.npy")) as rows:
                rows.write(piece.start, np.load(io.BytesIO(data), allow_pickle=False)[:, None])
                rows.sync()
        some = {key: record[key] for key in ("bad", "clipped") if record.get(key)}
        work.record(
            "chunk",
            start=piece.start,
            stop=piece.stop,
            checksum=record["content"],
            reading=[total, 0],
            seconds=record["seconds"],
            **some,
        )

    def _missing(self, first: Piece) -> list[Piece]:
        there = self._publishing.record
        return [p for p in self._publishing.pieces[first.number :] if there(p) is None]
