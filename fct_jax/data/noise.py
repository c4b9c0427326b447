"""Noise images in any number, for timing or compiling a training without a data set.

``data.name=noise:50000x100`` stands for 50,000 training images of 100 classes.
"""

import re

import numpy as np

from fct_jax.errors import UserError

SIZE = 256  # height and width in pixels
_FORM = re.compile(r"(\d+)x(\d+)")


class NoiseReader:
    """``count`` images of C = ``classes`` classes; image i depends on i alone, in class i mod C.

    Args:
      form: ``IMAGESxCLASSES``.

    Raises:
      UserError: ``form`` has another form, or fewer images than classes.
    """

    def __init__(self, form: str):
        found = _FORM.fullmatch(form)
        self._count, self._classes = (int(part) for part in found.groups()) if found else (0, 0)
        if not 0 < self._classes <= self._count:
            raise UserError(
                f"data.name=noise:{form} must be noise:IMAGESxCLASSES, such as noise:50000x100, "
                "with at least one image of each class"
            )
        self.name = f"noise {form}"
        self.class_names = tuple(map(str, range(self._classes)))

    def __len__(self) -> int:
        return self._count

    def read(self, position: int) -> tuple[np.ndarray, int]:
        rng = np.random.default_rng(position)
        image = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        return image, position % self._classes

    def labels(self) -> np.ndarray:
        return np.arange(self._count, dtype=np.int32) % self._classes

    def ids(self) -> np.ndarray:
        return np.arange(self._count)

    def image_size(self, positions: np.ndarray) -> tuple[int, int]:
        return SIZE, SIZE
