"""Rows of a gallery through the map, as they are stored; equal for every division of the work."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from fct_jax.errors import UserError
from fct_jax.evaluate.distances import unit_rows
from fct_jax.upgrade.checks import guards
from fct_jax.upgrade.galleries.base import Gallery
from fct_jax.upgrade.galleries.stored import SAMPLE, Coding
from fct_jax.upgrade.maps import lengths
from fct_jax.upgrade.migration.reading import Taken

_FEW = 8  # if at most every eighth row is needed, they are read one by one


class Made(NamedTuple):
    """One translated block.

    Attributes:
      taken: the rows.
      vectors: (n, ·) h(old) as they are stored, those of zeros in place of unusable ones.
      uncertainty: (n,) float32 log-variances, or None.
      clipped: (n,) number of values that the stored type clips, or None if it never does.
    """

    taken: Taken
    vectors: np.ndarray
    uncertainty: np.ndarray | None
    clipped: np.ndarray | None


def counted(clipped: np.ndarray | None) -> dict[str, int]:
    """Return the entry of a record for clipped values (n,), if there are any."""
    total = 0 if clipped is None else int(clipped.sum())
    return {"clipped": total} if total else {}


class Translator:
    """Computes h(old) of ranges of rows; equal rows in equal blocks give equal bytes.

    Attributes:
      source, map: the gallery that is read, and the map.
      batch_size: number of rows in a block; ranges begin at a multiple of it.
      unit: whether the vectors are stored with length 1.
      coding: how the vectors are stored.
      width: number of stored numbers of a vector.
    """

    def __init__(self, source: Gallery, mapping, batch_size: int, unit: bool, coding: Coding):
        """Take the source, the map, and the settings.

        Raises UserError if the stored type cannot hold vectors of the map's dimension.
        """
        self.source, self.map, self.unit = source, mapping, unit
        self.batch_size, self.coding = batch_size, coding
        self.width = coding.type.values(mapping.dim_out)

    def learn(self) -> None:
        """Learn what the stored type needs, from the map's known pairs and from the gallery.

        A sample of the gallery is translated. Translations vary less than the vectors that
        replace them, so known ones of these count, too.
        """
        if self.coding.known:
            return
        vectors = self.source.rows(self.source.spread_rows(SAMPLE))
        made, _ = self.map.transform(vectors[guards.sound(vectors)], self.batch_size)
        known = self.map.known
        new = (made, None if known is None else known.new)
        self.coding.learn(*(self.scaled(part) for part in new if part is not None))

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return stored h(old) of a range of rows, zero for unusable ones."""
        vectors = self.source.read(start, stop)
        good = guards.sound(vectors)
        wrong = [[start + int(row), ""] for row in np.flatnonzero(~good)]
        return self.mapped(start, guards.without(vectors, good), wrong)[0]

    def some(self, rows: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Return stored h(old) of ascending rows of a range, as `rows` gives them.

        If they are few, only they are read, where the gallery allows it, and one of them stands
        for each of the others: a row's bytes depend on its place, not on the rows beside it.
        """
        places = rows - start
        if not self.source.scattered or len(rows) * _FEW > stop - start:
            return self.rows(start, stop)[places]
        old = self.source.rows(rows)
        good = guards.sound(old)
        vectors = np.zeros((stop - start, self.source.dim), np.float32)
        vectors[:] = old[np.argmax(good)] if good.any() else 0
        vectors[places] = guards.without(old, good)
        wrong = [[int(row), ""] for row in rows[~good]]
        return self.mapped(start, vectors, wrong)[0][places]

    def mapped(
        self, start: int, vectors: np.ndarray, bad: list
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return stored h(old) (n, D) and log-variances (n,) or None of the rows from ``start``.

        Args:
          start: the first row, a multiple of the batch size.
          vectors: (n, d) old vectors, zeros in place of unusable ones.
          bad: [row, reason] of the unusable ones; they get zero vectors until they are re-embedded.

        Raises:
          UserError: the map gives NaN or infinity.
        """
        made = list(self.stream(self._cut(start, vectors, bad)))
        found = np.concatenate([block.vectors for block in made])
        if not self.map.has_uncertainty:
            return found, None
        return found, np.concatenate([block.uncertainty for block in made])

    def _cut(self, start: int, vectors: np.ndarray, bad: list):
        for first in range(start, start + len(vectors), self.batch_size):
            part = vectors[first - start : first - start + self.batch_size]
            last = first + len(part)
            yield Taken(first, last, [b for b in bad if first <= b[0] < last]), part

    def stream(self, blocks: Iterable[tuple[Taken, np.ndarray]]) -> Iterator[Made]:
        """Yield the translation of each block of old vectors, in order; some are held at a time.

        Args:
          blocks: as from `Reading.blocks`; each begins at a multiple of the batch size.

        Raises:
          UserError: the map gives NaN or infinity, or values too large for the stored type.
        """
        # A network pads a block to one size, which must not depend on the division of the work.
        size = min(self.batch_size, len(self.source))
        return self.map.stream(blocks, size, self._made)

    def _made(self, taken: Taken, vectors: np.ndarray, uncertainty: np.ndarray | None) -> Made:
        # One number shows in a fast pass whether any value is not finite.
        if not np.isfinite(np.vdot(vectors, vectors)) and not np.isfinite(vectors).all():
            raise self._unusable("NaN or infinity", taken, np.isfinite(vectors))
        made = lengths.unit(vectors) if self.unit else vectors
        if taken.bad:
            made = np.array(made)
            made[[row - taken.start for row, _ in taken.bad]] = 0
        if uncertainty is not None:
            guards.check_uncertainty(self.source, uncertainty, taken.start)
        clipped = self.coding.clipped(made)
        return Made(taken, self._encoded(taken, made), uncertainty, clipped)

    def _encoded(self, taken: Taken, made: np.ndarray) -> np.ndarray:
        kind = self.coding.type
        try:
            return self.coding.encode(made)
        except FloatingPointError:
            fits = np.abs(made) <= np.finfo(kind.dtype).max
            raise self._unusable(f"values too large for {kind.name}", taken, fits) from None

    def _unusable(self, what: str, taken: Taken, good: np.ndarray) -> UserError:
        row = taken.start + int(np.argmin(good.all(axis=1)))
        return UserError(f"the map gives {what} for id {self.source.ids[row]}")

    def scaled(self, vectors: np.ndarray) -> np.ndarray:
        """Return vectors in their stored form: with length 1 if the target's form needs it."""
        return unit_rows(vectors) if self.unit else vectors
