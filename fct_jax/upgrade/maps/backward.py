"""The backward map of a common space: all that serving a gallery there needs, with NumPy alone."""

import dataclasses

import numpy as np

from fct_jax.errors import UserError

_ROTATES = 1e-3  # largest entry by which B Bᵀ may differ from 1, enough for float16


@dataclasses.dataclass(frozen=True)
class Backward:
    """The backward map by itself: what serving a gallery in the common space needs.

    A query B(n) searches untouched old vectors (see `asked`), translated ones and re-embedded ones,
    in any mixture.

    Attributes:
      weight: (dn, E); bias: (E,). E is dn, or do if the old vectors are larger.
    """

    weight: np.ndarray
    bias: np.ndarray

    def moved(self, new) -> np.ndarray:
        """Return B(new), (N, dn) → (N, E) float32: queries, and re-embedded or translated items.

        Raises UserError for vectors of another dimension.
        """
        if np.ndim(new) != 2 or np.shape(new)[1] != len(self.weight):
            raise UserError(
                f"the backward map takes new vectors (N, {len(self.weight)}), not {np.shape(new)}"
            )
        return np.asarray(np.asarray(new) @ self.weight + self.bias, np.float32)

    def asked(self, new, dim: int) -> np.ndarray:
        """Return B(new) as queries (N, dim) of untouched old vectors of that size.

        Numbers that old vectors lack are dropped, and those that B(new) lacks are 0, so that the
        old index itself is searched.
        """
        moved = self.moved(new)
        return np.pad(moved[:, :dim], ((0, 0), (0, max(0, dim - moved.shape[1]))))

    @property
    def rotates(self) -> bool:
        """Return whether it changes no cosine among new vectors."""
        gram = self.weight @ np.transpose(self.weight)
        return bool(np.abs(gram - np.eye(len(gram))).max() < _ROTATES and not np.any(self.bias))
