"""Statistics of the old model's classes: centres and radii, computed once from its embeddings."""

import dataclasses
import functools
import io
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fct_jax.errors import UserError, unknown
from fct_jax.storage.files import write_synced

KINDS = ("euclidean", "angle")

_VERSION = 1
_FIELDS = {"center", "radius", "num_kept", "smallest_radius"}
_ENTRIES = {"version", "kind", "fingerprint", "num_classes"} | _FIELDS
_SMALLEST_NORM = 1e-12


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["center", "radius", "num_kept", "smallest_radius"],
    meta_fields=["kind"],
)
@dataclasses.dataclass(frozen=True)
class ClassStatistics:
    """A pytree over the old model's C classes.

    center (C, D): mean of the class's normalised embeddings, *not* normalised again.
    radius (C,): largest kept distance to the centre, or angle in radians for kind "angle".
    num_kept (C,): distances kept after the outliers were removed; 0: class unseen.
    smallest_radius (C,): smallest kept distance or angle.
    kind: "euclidean" or "angle"; None when built by hand: losses then trust the caller.

    >>> made = ClassStatistics(np.eye(2), np.array([0.1, 0.2]), np.array([5, 7]), kind="euclidean")
    >>> made.center.shape
    (2, 2)
    """

    center: Any
    radius: Any
    num_kept: Any
    smallest_radius: Any = None
    kind: str | None = None

    def replace(self, **changes) -> "ClassStatistics":
        """Return a copy with other values of some fields."""
        return dataclasses.replace(self, **changes)


def class_statistics(
    embeddings: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    kind: str = "euclidean",
    *,
    block_rows: int = 16384,
) -> ClassStatistics:
    """Return centre, radius and number of kept distances of each of ``num_classes`` classes.

    embeddings (N, D), raw; labels (N,) integers. Each embedding is normalised; the centre is
    their mean; the distances to it (kind "euclidean": to the centre itself; "angle": the angle
    with it, in radians) are sorted. A class of m ≥ 4 drops those beyond 1.5 interquartile ranges
    from the quartiles, which are the entries m//4 and 3m//4. Samples with a label of
    ``num_classes`` or more belong to classes that the old model does not know and are left out.

    Works through memory-mapped embeddings in blocks of ``block_rows``, 32 MB of float64 at 256
    dimensions; there is no loop over classes or samples.

    Raises UserError for shapes that do not match, labels that are negative or not integers,
    NaN, infinite or zero embeddings, or an unknown kind.

    Source: AdvBCT, CVPR 2023 (boundary of a class), and LCE, ICCV 2021 (angles).

    >>> stats = class_statistics([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]], [0, 1, 0], 2)
    >>> stats.center.tolist(), stats.num_kept.tolist()
    ([[1.0, 0.0], [0.0, 1.0]], [2, 1])
    """
    embeddings, labels = _checked(embeddings, labels, num_classes, kind)
    rows = np.flatnonzero(labels < num_classes)
    rows = rows[np.argsort(labels[rows], kind="stable")]
    members = labels[rows]
    counts = np.bincount(members, minlength=num_classes)

    center = np.zeros((num_classes, embeddings.shape[1]))
    for block in _blocks(len(rows), block_rows):
        classes, first = np.unique(members[block], return_index=True)
        center[classes] += np.add.reduceat(_units(embeddings, rows[block]), first)
    center /= np.maximum(counts, 1)[:, None]

    spread = np.empty(len(rows))
    for block in _blocks(len(rows), block_rows):
        units = _units(embeddings, rows[block])
        spread[block] = _spread(units, center[members[block]], kind)
    radius, smallest, kept = _largest_kept(spread, members, counts)
    return ClassStatistics(
        center=center.astype(np.float32),
        radius=radius.astype(np.float32),
        num_kept=kept.astype(np.int32),
        smallest_radius=smallest.astype(np.float32),
        kind=kind,
    )


def save_statistics(path: str | Path, stats: ClassStatistics, *, fingerprint: str) -> None:
    """Write statistics to a ``.npz`` file, with the fingerprint of their model."""
    if stats.kind not in KINDS or stats.smallest_radius is None:
        raise UserError(f"{path}: only statistics made by class_statistics can be saved")
    path = Path(path)
    content = io.BytesIO()
    np.savez(
        content,
        version=_VERSION,
        kind=stats.kind,
        fingerprint=fingerprint,
        num_classes=stats.center.shape[0],
        center=stats.center,
        radius=stats.radius,
        num_kept=stats.num_kept,
        smallest_radius=stats.smallest_radius,
    )
    write_synced(path, content.getbuffer())


def load_statistics(
    path: str | Path,
    *,
    fingerprint: str | None = None,
    num_classes: int | None = None,
    kind: str | None = None,
) -> ClassStatistics:
    """Read a file of :func:`save_statistics`, and check that it is the expected one.

    Raises UserError if the file is missing, damaged or of another version, or if it is of
    another model (``fingerprint``), of another number of classes, or of another kind.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            content = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UserError(f"{path}: no class statistics found") from None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not readable as class statistics ({error})") from None
    _check_content(path, content)
    for name, expected in (
        ("fingerprint", fingerprint),
        ("num_classes", num_classes),
        ("kind", kind),
    ):
        found = content[name].item()
        if expected is not None and found != expected:
            raise UserError(f"{path}: class statistics of {name} {found!r}, expected {expected!r}")
    return ClassStatistics(
        center=content["center"],
        radius=content["radius"],
        num_kept=content["num_kept"],
        smallest_radius=content["smallest_radius"],
        kind=content["kind"].item(),
    )


def _checked(embeddings, labels, num_classes, kind):
    if kind not in KINDS:
        raise unknown("kind of class statistics", kind, KINDS)
    # asanyarray keeps a memory map.
    embeddings, labels = np.asanyarray(embeddings), np.asarray(labels)
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise UserError(
            f"class_statistics: embeddings {embeddings.shape} and labels {labels.shape} must be "
            "(samples, dimension) and (samples,)"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"class_statistics: labels must be integers, not {labels.dtype}")
    if num_classes < 1:
        raise UserError(f"class_statistics: num_classes must be at least 1, not {num_classes}")
    if labels.size and labels.min() < 0:
        raise UserError(
            f"class_statistics: label {labels.min()} of sample {labels.argmin()} is negative; "
            f"labels are 0 to {num_classes - 1}"
        )
    return embeddings, labels


def _blocks(n, size):
    return [slice(start, start + size) for start in range(0, n, size)]


def _units(embeddings, rows):
    """Return the given rows, normalised in float64."""
    block = np.asarray(embeddings[rows], np.float64)
    norm = np.linalg.norm(block, axis=1)
    bad = ~np.isfinite(norm) | (norm < _SMALLEST_NORM)
    if bad.any():
        row = np.flatnonzero(bad)[0]
        what = "zero" if norm[row] < _SMALLEST_NORM else "NaN or infinite"
        raise UserError(f"class_statistics: embedding {rows[row]} is {what}")
    return block / norm[:, None]


def _spread(units, center, kind):
    """Return the distance or angle between each row and its class's centre."""
    if kind == "euclidean":
        return np.linalg.norm(units - center, axis=1)
    norm = np.maximum(np.linalg.norm(center, axis=1), _SMALLEST_NORM)
    return np.arccos(np.clip(np.einsum("nd,nd->n", units, center) / norm, -1.0, 1.0))


def _largest_kept(spread, members, counts):
    """Return the largest, smallest and number of entries of each class without its outliers."""
    num_classes = len(counts)
    radius, smallest = np.zeros(num_classes), np.zeros(num_classes)
    kept = np.zeros(num_classes, np.int64)
    seen = np.flatnonzero(counts)
    if not seen.size:
        return radius, smallest, kept
    spread = spread[np.lexsort((spread, members))]
    size = counts[seen]
    start = np.cumsum(size) - size
    lower, upper = spread[start + size // 4], spread[start + 3 * size // 4]
    reach = np.where(size >= 4, 1.5 * (upper - lower), np.inf)
    inside = (spread >= np.repeat(lower - reach, size)) & (spread <= np.repeat(upper + reach, size))
    radius[seen] = np.maximum.reduceat(np.where(inside, spread, -np.inf), start)
    smallest[seen] = np.minimum.reduceat(np.where(inside, spread, np.inf), start)
    kept[seen] = np.add.reduceat(inside.astype(np.int64), start)
    return radius, smallest, kept


def _check_content(path, content):
    missing = sorted(_ENTRIES - content.keys())
    if missing:
        raise UserError(f"{path}: not class statistics, {', '.join(missing)} missing")
    if content["version"].item() != _VERSION:
        raise UserError(
            f"{path}: class statistics of version {content['version'].item()}, "
            f"this program reads version {_VERSION}"
        )
    if content["kind"].item() not in KINDS:
        raise unknown(f"kind of class statistics in {path}:", content["kind"].item(), KINDS)
    classes = (content["num_classes"].item(),)
    vectors = [content[name] for name in ("radius", "num_kept", "smallest_radius")]
    if content["center"].ndim != 2 or any(
        array.shape != classes for array in [content["center"][:, 0], *vectors]
    ):
        raise UserError(f"{path}: the arrays do not have {classes[0]} classes each")
    if not all(np.isfinite(content[name]).all() for name in ("center", "radius")):
        raise UserError(f"{path}: NaN or infinite centres or radii")
