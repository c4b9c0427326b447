"""Rows of a gallery through the map, as they are stored; equal for every division of the work."""

import numpy as np

from fct_jax.errors import UserError
from fct_jax.evaluate.distances import unit_rows
from fct_jax.upgrade.checks import guards
from fct_jax.upgrade.galleries.base import Gallery


class Translator:
    """Computes h(old) of ranges of rows; equal rows in equal blocks give equal bytes.

    Attributes:
      source, map: the gallery that is read, and the map.
      batch_size: number of rows in a block; ranges begin at a multiple of it.
      unit: whether the vectors are stored with length 1.
    """

    def __init__(self, source: Gallery, mapping, batch_size: int, unit: bool):
        self.source, self.map, self.batch_size, self.unit = source, mapping, batch_size, unit

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return stored h(old) of a range of rows, zero for unusable ones."""
        vectors = self.source.read(start, stop)
        good = guards.sound(vectors)
        wrong = [[start + int(row), ""] for row in np.flatnonzero(~good)]
        return self.mapped(start, guards.without(vectors, good), wrong)[0]

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
        parts = list(self.map.blocks(vectors, self.batch_size))
        made = np.concatenate([embedded for embedded, _ in parts])
        if not np.isfinite(made).all():
            row = start + int(np.argmin(np.isfinite(made).all(axis=1)))
            raise UserError(f"the map gives NaN or infinity for id {self.source.ids[row]}")
        made = self.scaled(made)
        if bad:
            made = np.array(made)
            made[[row - start for row, _ in bad]] = 0
        if not self.map.has_uncertainty:
            return made, None
        uncertainty = np.concatenate([part for _, part in parts])
        guards.check_uncertainty(self.source, uncertainty, start)
        return made, uncertainty

    def scaled(self, vectors: np.ndarray) -> np.ndarray:
        """Return vectors in their stored form: with length 1 if the target's form needs it."""
        return unit_rows(vectors) if self.unit else vectors
