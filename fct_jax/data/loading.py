"""The images of one batch: read, cropped and stacked, in the reading threads and workers."""

import numpy as np

from fct_jax.data.decoding import UnreadableImage
from fct_jax.data.sampling import RowsOfStep
from fct_jax.data.sources import Source
from fct_jax.errors import UserError
from fct_jax.models.preprocessing import Preprocessing

_GO_ON = "config.data.on_error=skip goes on without the images that cannot be read"


class ImageLoader:
    """Reads single images and makes them ready for a batch.

    Args:
      source, preprocessing, seed, crops, crop_area: as in ``pipeline.batches``.
      random: whether crop and flip are drawn at random.
    """

    def __init__(
        self, source: Source, preprocessing: Preprocessing, *, seed, crops, crop_area, random
    ):
        self.source, self.seed = source, seed
        self._preprocessing = preprocessing
        self._crops, self._crop_area = crops, crop_area
        self.random_crop = random and preprocessing.train_crop == "random_resized"
        # image_size may read the header of every file, so it is called only if it matters.
        free = self.random_crop or preprocessing.resize is not None
        size = None if free else source.image_size
        self._on_host = preprocessing.needs_host(size, random_crop=self.random_crop)

    def __call__(self, index: int, epoch: int | None, flip: bool | None = None) -> dict:
        """Return one example. Raises UnreadableImage.

        Args:
          index: position of the image in the source.
          epoch: seeds the draws of its crop and flip; None: neither is drawn.
          flip: whether to mirror the image; None: draw it.
        """
        example = self.source[index]
        rng, drawn = None, False
        if epoch is not None:
            rng = np.random.default_rng([self.seed, epoch, index])
            drawn = bool(rng.random() < 0.5)
        flip = (drawn if flip is None else flip) and self._preprocessing.flip
        image = self._cropped(example["image"], rng) if self._on_host else example["image"]
        return {"image": image, "label": example["label"], "index": index, "flip": flip}

    def _cropped(self, image: np.ndarray, rng) -> np.ndarray:
        if not self.random_crop:
            return self._preprocessing.on_host(image)
        crops = [
            self._preprocessing.on_host(image, rng, self._crop_area)
            for _ in range(self._crops or 1)
        ]
        return np.stack(crops) if self._crops else crops[0]


class TrainingBatch:
    """A function step -> batch for training.

    An unreadable image is replaced by another of its class, so that a step's batch is full and
    does not depend on anything read before.

    Args:
      read: reads one image.
      rows: gives the images of each step.
      steps_per_epoch: number of steps in an epoch of that order.
      skip: whether to replace unreadable images (else raise).
    """

    def __init__(self, read: ImageLoader, rows: RowsOfStep, steps_per_epoch: int, skip: bool):
        self._read, self._rows = read, rows
        self._steps_per_epoch, self._skip = steps_per_epoch, skip

    def __call__(self, step: int) -> dict:
        epoch, place = divmod(int(step), self._steps_per_epoch)
        examples, errors = [], []
        numbers = self._rows.numbers(int(step))
        for number, index in zip(numbers, self._rows(int(step)), strict=True):
            try:
                example = self._read(int(index), epoch)
            except UnreadableImage as error:
                if not self._skip:
                    raise UnreadableImage(f"{error}; {_GO_ON}") from None
                errors.append(str(error))
                example = self._instead_of(int(index), epoch, (place, int(number)), errors)
            examples.append(example)
        return {"batch": _stack(examples), "errors": errors}

    def _instead_of(self, index: int, epoch: int, place: tuple[int, int], errors: list) -> dict:
        """Draw a substitute for the place, not for the process, of the same class if possible."""
        rng = np.random.default_rng([self._read.seed, epoch, *place])
        source = self._read.source
        alike = np.flatnonzero(source.labels == source.labels[index])
        for candidates in (alike, np.arange(len(source))):
            for other in rng.permutation(candidates):
                if other != index:
                    try:
                        return self._read(int(other), epoch)
                    except UnreadableImage as error:
                        errors.append(str(error))
        raise UserError(f"{source.name}: not one image could be read")


class PassBatch:
    """A function step -> batch for a plain pass; unreadable images are left out or raise.

    Args:
      read: reads one image.
      indices: (N,) positions of this shard's images in the source.
      batch_size: images in a batch.
      view: number of the augmented view; None: no augmentation.
      skip: whether to leave out unreadable images (else raise).
    """

    def __init__(self, read: ImageLoader, indices: np.ndarray, batch_size: int, view, skip: bool):
        self._read, self._indices, self._batch_size = read, indices, batch_size
        self._view, self._skip = view, skip
        # Without random crops there are exactly two views: unflipped and flipped.
        self._flip = None if view is None or read.random_crop else view % 2 == 1

    def __call__(self, step: int) -> dict:
        begin = int(step) * self._batch_size
        examples, errors = [], []
        for index in self._indices[begin : begin + self._batch_size]:
            try:
                examples.append(self._read(int(index), self._view, self._flip))
            except UnreadableImage as error:
                if not self._skip:
                    raise UnreadableImage(f"{error}; {_GO_ON}") from None
                errors.append(str(error))
        return {"batch": _stack(examples), "errors": errors}


def _stack(examples: list[dict]) -> dict:
    columns = {"label": np.int32, "index": np.int64, "flip": bool}
    batch = {name: np.array([e[name] for e in examples], kind) for name, kind in columns.items()}
    if examples:
        batch["image"] = np.stack([example["image"] for example in examples])
    return batch
