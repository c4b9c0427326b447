"""Vectors of handwritten digits by an old and a new model, bundled for ``fct-jax demo``.

``tools/make_demo.py`` makes them: the old model was trained on the digits 0 to 4, the new one on
all ten (configs digits_backbone_old and digits_backbone_new). The images are scikit-learn's, 8×8
pixels.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np


class Pairs(NamedTuple):
    """Items embedded by both models: old (N, 32) and new (N, 32) float32, labels (N,) int64."""

    old: np.ndarray
    new: np.ndarray
    labels: np.ndarray


def load(split: str) -> Pairs:
    """Return the 1,000 digits of "train" or the 797 of "validation".

    >>> load("validation").old.shape
    (797, 32)
    """
    with np.load(Path(__file__).with_name("digits.npz")) as file:
        old, new = (file[f"{split}_{model}"].astype(np.float32) for model in ("old", "new"))
        return Pairs(old, new, file[f"{split}_labels"].astype(np.int64))
