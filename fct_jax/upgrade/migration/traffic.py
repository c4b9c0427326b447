"""Traffic of each item of a gallery: weights for the order of re-embedding."""

import numpy as np

from fct_jax.errors import UserError
from fct_jax.runtime.progress import console
from fct_jax.storage import spilled
from fct_jax.storage.ids import find_rows, first_ten
from fct_jax.upgrade.galleries.base import Gallery
from fct_jax.upgrade.migration.settings import expanded

_TOGETHER = 1 << 22  # ids of the file that are looked for together


def load_traffic(path) -> tuple[np.ndarray, np.ndarray]:
    """Read ids (n,), which may be repeated, and their weights (n,) float64.

    Args:
      path: a structured .npy array with the fields "id" and "weight", the item's traffic.

    Raises:
      UserError: the file cannot be read, or holds something else.
    """
    try:
        found = np.load(expanded(path), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"traffic={path} cannot be read: {error}") from None
    kind = getattr(found, "dtype", "an .npz archive")
    if set(getattr(kind, "names", None) or ()) != {"id", "weight"}:
        raise UserError(
            f"traffic={path} must be a structured .npy array with the fields "
            f"'id' and 'weight', not {kind}"
        )
    given = spilled.empty(len(found), np.float64)
    for part in spilled.blocks(len(found)):
        given[part] = found["weight"][part]
    parts = [given[part] for part in spilled.blocks(len(given))]
    sound = all((np.isfinite(part) & (part >= 0)).all() for part in parts)
    if not sound or not any(part.any() for part in parts):
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
    weights = spilled.empty(len(gallery), np.float64)
    weights[:] = 0
    absent, some = 0, []
    for part in spilled.blocks(len(ids), _TOGETHER):
        rows = find_rows(gallery.ids, np.array(ids[part]))
        np.add.at(weights, rows[rows >= 0], given[part][rows >= 0])
        absent += int((rows < 0).sum())
        some += ids[part][rows < 0][: 10 - len(some)].tolist()
    if absent == len(ids):
        raise UserError(f"traffic={path}: none of its ids is in {gallery.name}")
    if absent:
        left_out = first_ten(some, count=absent)
        console.print(f"traffic: {left_out} not in the gallery, left out")
    return weights
