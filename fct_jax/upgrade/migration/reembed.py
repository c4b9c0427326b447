"""Where re-embedded vectors come from: an EmbeddingSet, or a function of ids."""

import numpy as np

from fct_jax.errors import UserError
from fct_jax.runtime.plugins import imported, is_import_name
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.storage.ids import Finder, first_ten
from fct_jax.upgrade.migration.settings import expanded


class NewVectors:
    """The new model's vectors by id.

    Attributes:
      name: for messages.
      meta: what is known about them, as in ``meta.json``; {} for a function.
    """

    def __init__(self, name: str, function, meta: dict, find: Finder | None = None):
        """``find``: which ids there are vectors for; None: any."""
        self.name, self.meta, self._function, self._find = name, meta, function, find

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Vectors (n, D) of the ids. Raises UserError where the function fails."""
        try:
            return self._function(ids)
        except UserError:
            raise
        except Exception as error:  # whatever a user's function raises
            raise UserError(
                f"{self.name} failed on {first_ten(ids)}: {type(error).__name__}: "
                f"{' '.join(str(error).split())}"
            ) from error

    def has(self, ids: np.ndarray) -> np.ndarray:
        """For which ids there can be a vector, (n,) bool."""
        return np.ones(len(ids), bool) if self._find is None else self._find(ids) >= 0

    def check_covers(self, ids: np.ndarray) -> None:
        """There are vectors for all ids. Raises UserError with the first that have none."""
        missing = ids[~self.has(ids)]
        if len(missing):
            raise UserError(f"{self.name} has no vectors for {first_ten(missing)} of the plan")


def open_reembed(where) -> NewVectors:
    """An EmbeddingSet's directory, ``module:function``, or the function itself.

    The function takes ids (n,) and returns their vectors (n, D). A module is looked for in the
    current directory, too.
    """
    if callable(where):
        return NewVectors(getattr(where, "__name__", "the function"), where, {})
    if (expanded(where) / "vectors.npy").is_file():
        return _of_set(EmbeddingSet.read(expanded(where)))
    if not is_import_name(where):
        raise UserError(
            f"reembed={where} is no EmbeddingSet (vectors.npy is missing) and no module:function"
        )
    function = imported(str(where), "function")
    if not callable(function):
        raise UserError(f"reembed={where} is not a function")
    return NewVectors(str(where), function, {})


def _of_set(found: EmbeddingSet) -> NewVectors:
    find = Finder(found.ids)

    def vectors(ids: np.ndarray) -> np.ndarray:
        rows = find(ids)
        if (rows < 0).any():
            raise UserError(f"{found.name} has no {first_ten(ids[rows < 0])}")
        return np.asarray(found.vectors[rows], np.float32)

    return NewVectors(found.name, vectors, found.meta, find)
