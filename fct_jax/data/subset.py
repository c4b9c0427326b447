"""The old or the new model's share of a training set, drawn as `fct_jax.data.splits` draws it.

``"old classes 0.3"`` keeps a seeded 30 % of the classes, ``"new classes 0.3"`` keeps everything;
both renumber the classes so that the old ones come first. ``"old images 0.3"`` keeps 30 % of each
class's images, ``"new images 0.3"`` keeps all; both keep the class numbers. ``"… seed 7"`` draws
another share; the published splits use seed 666.
"""

import re
from typing import NamedTuple

import numpy as np

from fct_jax.data.splits import old_classes, split_by_data
from fct_jax.errors import UserError

_FORM = re.compile(r"(old|new) (classes|images) (0?\.\d+)(?: seed (\d+))?")


class Subset(NamedTuple):
    """A parsed subset: ``part`` is "old" or "new", ``by`` is "classes" or "images"."""

    part: str
    by: str
    ratio: float
    seed: int

    def __str__(self) -> str:
        return f"{self.part} {self.by} {self.ratio:g} seed {self.seed}"


def parse_subset(text: str) -> Subset | None:
    """Return the meaning of ``data.subset``, None for "". Raises UserError for another form."""
    text = " ".join(str(text).split())
    if not text:
        return None
    found = _FORM.fullmatch(text)
    if not found or float(found[3]) <= 0:
        raise UserError(
            f"data.subset={text!r}: write '' (all), 'old classes 0.3', 'new classes 0.3', "
            "'old images 0.3' or 'new images 0.3', each with 'seed 666' after it if you like"
        )
    return Subset(found[1], found[2], float(found[3]), int(found[4] or 666))


def for_validation(text: str) -> str:
    """Return the subset of the validation split: all images, numbered as in training."""
    subset = parse_subset(text)
    if subset is None or subset.by == "images":
        return ""
    return str(subset._replace(part="new"))


def class_order(subset: Subset, num_classes: int) -> tuple[np.ndarray, int]:
    """Return the original class of each new number (C,), and the number of old classes.

    The old classes come first; both groups are ascending.
    """
    if subset.by == "images":
        return np.arange(num_classes), num_classes
    old = np.sort(old_classes(num_classes, subset.ratio, subset.seed))
    if not len(old):
        raise UserError(f"data.subset={str(subset)!r} of {num_classes} classes leaves no old class")
    return np.concatenate([old, np.setdiff1d(np.arange(num_classes), old)]), len(old)


def positions(subset: Subset, labels: np.ndarray, num_classes: int) -> np.ndarray | None:
    """Return the positions of the kept images, ascending, or None for all.

    ``labels`` (N,) are the original class numbers of all images.
    """
    if subset.part == "new":
        return None
    if subset.by == "images":
        return np.sort(split_by_data(labels, subset.ratio, subset.seed).old)
    order, num_old = class_order(subset, num_classes)
    return np.flatnonzero(np.isin(labels, order[:num_old]))
