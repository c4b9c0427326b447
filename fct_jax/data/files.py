"""Image files with labels as one of the readers of `fct_jax.data.sources`."""

import numpy as np

from fct_jax.data.lists import FileReader


class LabelledFiles:
    """The images of a `FileReader`, each read together with its label.

    Attributes: ``name`` for messages and ``class_names``.
    """

    def __init__(self, files: FileReader):
        self._files = files
        self.name = files.name
        self.class_names = files.class_names

    def __len__(self) -> int:
        return len(self._files)

    def read(self, position: int) -> tuple[np.ndarray, int]:
        """uint8 (H, W, 3) and label; raises UnreadableImage, naming the image."""
        return self._files.read(position), int(self._files.labels()[position])

    def labels(self) -> np.ndarray:
        """(N,) int32; -1 where images have no class."""
        return self._files.labels()

    def ids(self) -> np.ndarray:
        """(N,) str: paths relative to the folder of the images."""
        return self._files.ids()

    def image_size(self, positions: np.ndarray) -> None:
        """None, without looking: every image is brought to size by the host."""
        return self._files.image_size(positions)
