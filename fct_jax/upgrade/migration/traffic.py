"""Traffic of each item of a gallery: weights for the order of re-embedding."""

import numpy as np

from fct_jax.errors import UserError
from fct_jax.runtime.progress import console
from fct_jax.storage.ids import find_rows, first_ten
from fct_jax.upgrade.galleries.base import Gallery
from fct_jax.upgrade.migration.settings import expanded


def load_traffic(path) -> tuple[np.ndarray, np.ndarray]:
    """Read ids (n,), which may be repeated, and their weights (n,) float64.

    Args:
      path: a structured .npy array with the fields "id" and "weight", the item's traffic.

    Raises:
      UserError: the file cannot be read, or holds something else.
    """
    try:
        found = np.load(expanded(path), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"traffic={path} cannot be read: {error}") from None
    if found.dtype.names is None or set(found.dtype.names) != {"id", "weight"}:
        raise UserError(
            f"traffic={path} must be a structured .npy array with the fields "
            f"'id' and 'weight', not {found.dtype}"
        )
    given = found["weight"].astype(np.float64)
    if not (np.isfinite(given) & (given >= 0)).all() or not given.any():
        raise UserError(f"traffic={path}: weights must be finite, ≥ 0 and not all 0")
    return found["id"], given


def read_traffic(path, gallery: Gallery) -> np.ndarray:
    """Read the weight of each row, (N,) float64; ids that the file does not name get 0.

    Args:
      path: as for `load_traffic`.
      gallery: gallery whose rows are weighted.

    Raises:
      UserError: the file cannot be read, or none of its ids is in the gallery.
    """
    ids, given = load_traffic(path)
    rows = find_rows(gallery.ids, ids)
    if (rows < 0).all():
        raise UserError(f"traffic={path}: none of its ids is in {gallery.name}")
    if (rows < 0).any():
        console.print(f"traffic: {first_ten(ids[rows < 0])} not in the gallery, left out")
    weights = np.zeros(len(gallery))
    np.add.at(weights, rows[rows >= 0], given[rows >= 0])
    return weights
