"""Traffic of each item of a gallery: weights for the order of re-embedding."""

from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.runtime.progress import console
from fct_jax.storage import spilled
from fct_jax.storage.ids import find_rows, first_ten
from fct_jax.upgrade.galleries.base import Gallery
from fct_jax.upgrade.ways import traffic
from fct_jax.upgrade.ways.judgements import rows_of_ids

_TOGETHER = 1 << 23  # ids of the file that are looked for together


def load_traffic(path) -> tuple[np.ndarray, np.ndarray]:
    """Read ids (n,), which may be repeated, and their weights (n,) float64.

    Args:
      path: a file of any form of ``ways.traffic.read_traffic``; each entry of a log counts once.
        The ids of a ``.npy`` file stay on disk.

    Raises:
      UserError: the file cannot be read, or holds something else.
    """
    if Path(path).suffix == ".npy":
        found = _mapped(path)
        if found is not None:
            return found
    ids, weights = traffic.read_traffic(path)
    return ids, np.ones(len(ids)) if weights is None else weights


def _mapped(path) -> tuple[np.ndarray, np.ndarray] | None:
    """Return ids and weights of an array with the fields "id" and "weight"; None for other files.

    Whatever is wrong with other files is said by ``ways.traffic.read_traffic``.
    """
    try:
        found = np.load(Path(path).expanduser(), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if set(getattr(getattr(found, "dtype", None), "names", None) or ()) != {"id", "weight"}:
        return None
    given = spilled.empty(len(found), np.float64)
    for part in spilled.blocks(len(found)):
        given[part] = found["weight"][part]
    parts = [given[part] for part in spilled.blocks(len(given))]
    sound = all((np.isfinite(part) & (part >= 0)).all() for part in parts)
    return (found["id"], given) if sound and any(part.any() for part in parts) else None


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
    # Ids of one kind are compared where they are; others are converted, which needs memory.
    same = (ids.dtype.kind == "U") == (gallery.ids.dtype.kind == "U") and ids.dtype.kind in "Uiu"
    look = find_rows if same else rows_of_ids
    absent, some = 0, []
    for part in spilled.blocks(len(ids), _TOGETHER):
        rows = look(gallery.ids, ids[part])
        np.add.at(weights, rows[rows >= 0], given[part][rows >= 0])
        absent += int((rows < 0).sum())
        some += ids[part][rows < 0][: 10 - len(some)].tolist()
    if absent == len(ids):
        raise UserError(
            f"traffic={path}: none of its ids is in {gallery.name}: it has ids such as {ids[0]}, "
            f"the gallery has ids such as {gallery.ids[0]}"
        )
    if absent:
        left_out = first_ten(some, count=absent)
        console.print(f"traffic: {left_out} not in the gallery, left out", markup=False)
    return weights
