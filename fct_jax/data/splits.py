"""Extended-class and extended-data splits of a training set (AdvBCT, CVPR 2023).

The old model is trained on a seeded share of the classes, or of every class's images, and the
new model on everything. The draws are those of the published splits, so that results are
comparable.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fct_jax.data.lists import ListLine
from fct_jax.errors import UserError


class ClassSplit(NamedTuple):
    """An extended-class split: ``labels`` (N,) int32 are the new class numbers, old classes first;
    ``old`` and ``new`` are rows of the input, ordered by original class, then by position; the
    first ``num_old`` classes are old."""

    labels: np.ndarray
    old: np.ndarray
    new: np.ndarray
    num_old: int


class DataSplit(NamedTuple):
    """Rows ``old`` and ``new`` of the input, class by class, in input order within each."""

    old: np.ndarray
    new: np.ndarray


def old_classes(num_classes: int, ratio: float = 0.3, seed: int = 666) -> np.ndarray:
    """Return the old model's ``int(num_classes * ratio)`` classes, in the order of their draw."""
    _check(ratio)
    return _shuffled(num_classes, seed)[: int(num_classes * ratio)]


def split_by_class(labels, ratio: float = 0.3, seed: int = 666) -> ClassSplit:
    """Make an extended-class split: the old model knows a share of the classes, renumbered from 0.

    Both groups keep the order of their original numbers. A class number without images is kept:
    it may be drawn, and gets a new number (a published variant counts distinct labels instead and
    silently loses the highest classes).

    Args:
      labels: (N,) class numbers.  ratio: share of the classes.  seed: seed of the draw.

    Raises:
      UserError: there are no labels, some are negative, the ratio is outside (0, 1), or no old
        image is left.
    """
    labels = _labels(labels)
    num_classes = int(labels.max()) + 1
    old = np.zeros(num_classes, bool)
    old[old_classes(num_classes, ratio, seed)] = True
    renumbered = np.empty(num_classes, np.int32)
    renumbered[np.flatnonzero(old)] = np.arange(old.sum())
    renumbered[np.flatnonzero(~old)] = np.arange(old.sum(), num_classes)
    rows = np.argsort(labels, kind="stable")
    old_rows = rows[old[labels[rows]]]
    if old_rows.size == 0:
        raise UserError(
            f"a share of {ratio:g} of {num_classes} classes leaves the old model no image; "
            "take a larger ratio"
        )
    return ClassSplit(renumbered[labels], old_rows, rows, int(old.sum()))


def split_by_data(
    labels, ratio: float = 0.3, seed: int = 666, *, by_appearance: bool = False
) -> DataSplit:
    """Make an extended-data split: a share of every class's images is old, the rest is in ``new``.

    A class of n ≥ 4 images gives ``int(n * ratio)`` of them, drawn with seed + class, to ``old``; a
    class of 2 or 3 gives its first; the image of a class of one is in both. The new model of the
    extended-data setting trains on all images, ``old`` and ``new`` together.

    Args:
      labels: (N,) class numbers.  ratio: share of each class's images.  seed: seed of the draws.
      by_appearance: order the classes by their first image instead of by number.

    Raises:
      UserError: there are no labels, some are negative, or the ratio is outside (0, 1).
    """
    labels = _labels(labels)
    _check(ratio)
    order = np.argsort(labels, kind="stable")
    classes, starts = np.unique(labels[order], return_index=True)
    groups = np.split(order, starts[1:])
    if by_appearance:
        first = np.argsort([rows[0] for rows in groups])
        classes, groups = classes[first], [groups[i] for i in first]
    old, new = [], []
    for number, rows in zip(classes.tolist(), groups, strict=True):
        drawn = np.zeros(len(rows), bool)
        if len(rows) < 4:
            drawn[0] = True
        else:
            drawn[_shuffled(len(rows), seed + number)[: int(len(rows) * ratio)]] = True
        old.append(rows[drawn])
        new.append(rows if len(rows) == 1 else rows[~drawn])
    return DataSplit(np.concatenate(old), np.concatenate(new))


def split_list(
    lines: Sequence[ListLine],
    by: str,
    ratio: float = 0.3,
    seed: int = 666,
    *,
    by_appearance: bool = False,
) -> dict[str, list[str]]:
    """Return the lines of both files of a split, keyed by the names of the files.

    ``by="class"`` gives ``new_100percent_class`` and ``old_30percent_class`` (renumbered labels),
    ``by="data"`` gives ``new_70percent_data`` and ``old_30percent_data``. Raises the errors of
    `split_by_class` and `split_by_data`.
    """
    labels = [line.label for line in lines]
    # Rounded, because truncation, as in the published names, would call 0.29 "28percent".
    percent = round(ratio * 100)
    if by == "class":
        split = split_by_class(labels, ratio, seed)
        return {
            "new_100percent_class": [lines[i].text(split.labels[i]) for i in split.new],
            f"old_{percent}percent_class": [lines[i].text(split.labels[i]) for i in split.old],
        }
    if by == "data":
        parts = split_by_data(labels, ratio, seed, by_appearance=by_appearance)
        return {
            f"new_{100 - percent}percent_data": [lines[i].text() for i in parts.new],
            f"old_{percent}percent_data": [lines[i].text() for i in parts.old],
        }
    raise UserError(f"a split is by 'class' or by 'data', not {by!r}")


def _shuffled(n: int, seed: int) -> np.ndarray:
    # NumPy's legacy generator, because the published splits were drawn with it.
    items = np.arange(n)
    np.random.RandomState(seed).shuffle(items)
    return items


def _check(ratio: float) -> None:
    if not 0 < ratio < 1:
        raise UserError(f"the ratio of a split lies between 0 and 1, not {ratio:g}")


def _labels(labels) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.size == 0:
        raise UserError(f"a split needs (N,) labels with N at least 1, not {labels.shape}")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise UserError("a split needs class numbers of 0 or more")
    return labels.astype(np.int64)
