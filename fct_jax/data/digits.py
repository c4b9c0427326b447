"""The handwritten digits that scikit-learn bundles: 1797 images of 8×8 pixels, 10 classes."""

import numpy as np

SPLIT_SEED = 0
VALIDATION_SIZE = 797


class DigitsReader:
    """The digits as RGB: grey levels 0..16 become 0..255 in three equal channels.

    scikit-learn defines no split, so this one is our own: ``np.random.default_rng(SPLIT_SEED)``
    (seed 0) draws a share of each class for validation, which leaves 1000 training and 797
    validation images. The ids are positions in scikit-learn's order.
    """

    def __init__(self, split: str):
        """Load ``split``, "train" or "validation"."""
        from sklearn.datasets import load_digits  # slow to import and used only here

        digits = load_digits()
        validation = _validation(digits.target)
        self._ids = np.flatnonzero(validation if split == "validation" else ~validation)
        grey = np.rint(digits.images[self._ids] * (255 / 16)).astype(np.uint8)
        self._images = np.repeat(grey[..., None], 3, axis=-1)
        self._labels = digits.target[self._ids].astype(np.int32)
        self.name = f"digits {split}"
        self.class_names = tuple(str(name) for name in digits.target_names)

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, position: int) -> tuple[np.ndarray, int]:
        return self._images[position], int(self._labels[position])

    def labels(self) -> np.ndarray:
        return self._labels

    def ids(self) -> np.ndarray:
        return self._ids.astype(np.int64)

    def image_size(self, positions: np.ndarray) -> tuple[int, int]:
        return self._images.shape[1:3]


def _validation(labels: np.ndarray) -> np.ndarray:
    """Return bool (N,): each class gives validation its share of VALIDATION_SIZE."""
    classes, counts = np.unique(labels, return_counts=True)
    # Cumulative rounding makes the shares add up exactly.
    ends = np.rint(np.cumsum(counts) * (VALIDATION_SIZE / len(labels))).astype(int)
    shares = np.diff(ends, prepend=0)
    rng = np.random.default_rng(SPLIT_SEED)
    chosen = np.zeros(len(labels), bool)
    for label, share in zip(classes, shares, strict=True):
        chosen[rng.permutation(np.flatnonzero(labels == label))[:share]] = True
    return chosen
