"""Computing the pieces of one gallery, and publishing each with a record of what it consists of.

    layout.json        identity of gallery and map, borders of the pieces
    piece-00003.json   record of a piece that is done: rows, unusable ones, checksums of its files
    piece-00003.npy    its vectors, for a form whose vectors are rows of one file
    piece-00003.variance.npy   their log-variances, if the map gives them
    gallery/…          its files, for a form of many files; in a bucket they have their final place

A piece is done if its record is there and the files agree with it. Whoever makes a piece twice
makes equal files, so it does not matter which of them stay.
"""

import contextlib
import json
import socket
import time
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.runtime.progress import console
from fct_jax.storage.files import disk_errors
from fct_jax.upgrade.galleries.target import Target
from fct_jax.upgrade.migration.reading import BLOCKS, stamps_of
from fct_jax.upgrade.migration.translating import Translator
from fct_jax.upgrade.parts.pieces import (
    Piece,
    PieceRows,
    Versions,
    pieces_of,
    write_rows,
)
from fct_jax.upgrade.parts.places import Place
from fct_jax.upgrade.parts.progress import LAYOUT


class Elsewhere(UserError):
    """The gallery was finished from another directory, which continues with it."""


class Removed(UserError):
    """The layout has gone, as at the end of a translation."""


class Publishing:
    """The pieces of a gallery at a place, and the work on them.

    Attributes:
      place: where they are published.
      pieces: all of them.
      translator: computes their vectors.
    """

    def __init__(self, place: Place, target: Target, translator: Translator):
        self.place, self.target, self.translator = place, target, translator
        self.pieces = pieces_of(target, translator.batch_size)
        self._stamps = stamps_of(translator.source)
        self._layout_name = f"{place.records}{LAYOUT}"

    def lay_out(self, identity: dict, content: str | None) -> None:
        """Publish the layout, unless there is one.

        Args:
          identity: facts of gallery and map that must not change.
          content: checksum that the gallery must have, if it is known.
        """
        self.place.make()
        if self.place.read(self._layout_name) is None:
            self.translator.learn()
            coding = self.translator.coding
            data = {**self._facts(identity), "content": content, **coding.to_meta()}
            self.place.publish_bytes(self._layout_name, json.dumps(data, indent=2).encode())

    def join(self, identity: dict) -> str | None:
        """Check that the published layout is that of this gallery and map.

        Returns:
          The checksum that the layout asks for, or None.

        Raises:
          Removed: there is no layout.
          UserError: the pieces there are of another gallery or map, or files have changed since.
        """
        place, ours = self.place, self._facts(identity)
        theirs = self._layout()
        place.make()  # a host's own folder of unfinished files, beside a bucket
        changed = _changed(theirs.get("stamps", {}), self._stamps)
        if changed:
            raise UserError(
                f"{changed} of {self.translator.source.name} has changed since the first part "
                f"began; restore it, or remove {place.name} to begin again"
            )
        differ = [key for key in ours if theirs.get(key) != ours[key]]
        if differ:
            named = [key for key in differ if key != "borders"]  # which follow from the others
            shown = "; ".join(f"{k}: {theirs.get(k)!r} there, {ours[k]!r} now" for k in named)
            raise UserError(
                f"{place.name} holds parts of another gallery, map, batch size or type ({shown}); "
                "give the same ones, or choose another directory"
            )
        self.translator.coding.take(theirs, place.name)  # of whoever was first
        return theirs["content"]

    def _facts(self, identity: dict) -> dict:
        borders = [piece.start for piece in self.pieces]
        count = len(self.translator.source)
        return {**identity, "count": count, "borders": borders, "stamps": self._stamps}

    def _layout(self) -> dict:
        name, data = self._layout_name, self.place.read(self._layout_name)
        if data is None:
            raise Removed(f"{self.place.name}/{name} was removed meanwhile; repeat the command")
        try:
            return json.loads(data)
        except ValueError as error:
            raise UserError(
                f"{self.place.name}/{name} cannot be read: {error}; remove it"
            ) from None

    def record(self, piece: Piece, but: str | None = None) -> dict | None:
        """Return a piece's record if it is done: its files are there and agree with it.

        but: name of a file that the caller compares with the record.
        """
        try:
            found = json.loads(self.place.read(self._record_name(piece)) or b"null")
            rows = found and (found["start"], found["stop"])
            if rows != (piece.start, piece.stop):
                return None
            files = found["files"].items()
            agree = all(name == but or self.place.seal(name) == seal for name, seal in files)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        return found if agree else None

    def published(self) -> set[int]:
        """Return the numbers of the pieces that have a record; their files are not read."""
        names = self.place.names()
        return {piece.number for piece in self.pieces if self._record_name(piece) in names}

    def make(self, piece: Piece) -> dict:
        """Translate and publish a piece; return its record.

        Raises UserError if the gallery has changed, a vector is unusable, or the disk is full.
        """
        place, begun = self.place, time.monotonic()
        if not self.translator.coding.known:  # a worker, which was not there when it began
            self.translator.coding.take(self._layout(), place.name)
        rows = PieceRows(self.translator, piece)
        with contextlib.ExitStack() as stack:
            stack.callback(rows.close)
            made = self._written(piece, rows, stack)
            rows.shards.finish(self.translator.batch_size)
            if stamps_of(self.translator.source) != self._stamps:
                name = self.translator.source.name
                raise UserError(f"{name} was changed while it was read; repeat the command")
            files = {name: self._publish(piece, name, *file) for name, file in made.items()}
            found = {
                "start": piece.start,
                "stop": piece.stop,
                "content": rows.content,
                "bad": rows.bad,
                "clipped": rows.clipped,
                "files": files,
                "seconds": round(time.monotonic() - begun, 3),
                "host": socket.gethostname(),
            }
        data = json.dumps(found).encode()
        if not place.publish_bytes(self._record_name(piece), data):
            kept = self.record(piece)
            if kept is not None:
                return kept  # another process was first
            # The record that is there is of other files, which were damaged or have gone.
            place.publish_bytes(self._record_name(piece), data, again=True)
        return found

    def _written(self, piece: Piece, rows: PieceRows, stack) -> dict[str, tuple]:
        """Write a piece's files to local ones; return {published name: (path, checksum or None)}.

        A checksum is known where the vectors went to the file as they were computed.
        """
        place, target, made = self.place, self.target, {}

        def partial(name: str) -> Path:
            path = place.partial(piece.name)
            stack.callback(path.unlink, missing_ok=True)
            made[name] = path, None
            return path

        with disk_errors(place.scratch):
            for number in piece.files:
                path = partial(f"{place.files}{target.file_name(number)}")
                target.write_file(number, path, rows, Versions())
            if not piece.files:
                chunk = self.translator.batch_size * BLOCKS
                name = self.vectors_name(piece)
                path = partial(name)
                made[name] = path, write_rows(path, rows, piece, chunk)
            if rows.uncertainty:
                path = partial(f"{place.records}{piece.name}.variance.npy")
                with path.open("wb") as file:
                    np.save(file, np.concatenate(rows.uncertainty))
        return made

    def vectors_name(self, piece: Piece) -> str:
        """Return the name of a piece's vectors, for a form whose vectors are rows of one file."""
        return f"{self.place.records}{piece.name}.npy"

    def remove_vectors(self, piece: Piece) -> None:
        """Remove the file of a piece's vectors, if it has one; they are in the gallery now."""
        if not piece.files:
            (self.place.path / self.vectors_name(piece)).unlink(missing_ok=True)

    def bytes_but_largest(self) -> int:
        """Return the bytes of the published files of vectors without the largest one."""
        names = {self.vectors_name(piece) for piece in self.pieces}
        sizes = [size for name, (size, _) in self.place.names().items() if name in names]
        return sum(sizes) - max(sizes, default=0)

    def _publish(self, piece: Piece, name: str, path: Path, checksum: str | None) -> dict:
        """Publish one file, unless its like is there; return its seal."""
        place, ours = self.place, True
        if place.seal(name) is not None and not place.same(name, path):
            by = place.finished_by()
            if by is not None:  # by now the file may hold re-embedded vectors
                raise Elsewhere(f"{place.name} was finished by {by} meanwhile")
            # Left by a killed process of another version, or damaged.
            console.print(f"{place.name}/{name} does not belong to {piece.name}; it is replaced")
            place.publish(name, path, again=True)
        else:
            ours = place.publish(name, path)
        return place.seal(name, checksum if ours else None)

    def _record_name(self, piece: Piece) -> str:
        return f"{self.place.records}{piece.name}.json"


def _changed(theirs: dict, ours: dict) -> str | None:
    """Return the name of the first file whose size or time differs, or None."""
    names = sorted({*theirs, *ours})
    return next((name for name in names if theirs.get(name) != ours.get(name)), None)
