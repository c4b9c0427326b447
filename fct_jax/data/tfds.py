"""Data sets that TFDS prepared as ArrayRecord files, read without TensorFlow."""

import os
from functools import cached_property
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core import constants, read_only_builder

from fct_jax.data.decoding import UnreadableImage, decode
from fct_jax.errors import UserError


class TfdsReader:
    """A split of a prepared TFDS data set with the features "image" and "label".

    "validation" is the split of that name, or "test" if there is none (CIFAR). Images are decoded
    by Pillow. The ids are positions in the split.
    """

    def __init__(self, name: str, directory: str, split: str):
        """Open the files; raises UserError unless they exist, are complete and in ArrayRecord."""
        builder = _builder(name, directory)
        splits = builder.info.splits
        self._split = "test" if split == "validation" and split not in splits else split
        self.name = f"{name} {self._split}"
        if self._split not in splits:
            raise UserError(f"{name} has no split for {split!r}; it has {', '.join(splits)}")
        missing = {"image", "label"} - set(builder.info.features or ())
        if missing or not hasattr(builder.info.features["label"], "names"):
            raise UserError(
                f"TFDS data set {name!r} is not an image classification set: it needs the features "
                "'image' and 'label' (one class)"
            )
        self._where = builder.data_path
        self._length = splits[self._split].num_examples
        self._shape = builder.info.features["image"].shape
        self.class_names = tuple(builder.info.features["label"].names)
        for path in splits[self._split].filepaths:
            if not Path(path).is_file():
                raise UserError(f"{path} is missing; prepare the data set {name} again")
        if self._length:
            self._record(0)  # report another format or damage now, not in the first epoch

    @cached_property
    def _records(self):
        builder = read_only_builder.builder_from_directory(self._where)
        try:
            return builder.as_data_source(
                self._split, decoders={"image": tfds.decode.SkipDecoding()}
            )
        except NotImplementedError:
            raise UserError(
                f"{self._where} is not in the ArrayRecord format, which random access needs; "
                "prepare it again with tools/prepare_dataset.py in another data directory"
            ) from None

    def __getstate__(self) -> dict:
        """Leave out open files: worker processes open them themselves."""
        return {key: value for key, value in self.__dict__.items() if key != "_records"}

    def __len__(self) -> int:
        return self._length

    def read(self, position: int) -> tuple[np.ndarray, int]:
        name = f"{position} of {self.name}"
        record = self._record(position)
        image = decode(record["image"], name)
        height, width = self._shape[:2]
        if (height or image.shape[0], width or image.shape[1]) != image.shape[:2]:
            raise UnreadableImage(
                f"image {name} has the size {image.shape[:2]}, not {(height, width)}"
            )
        return image, int(record["label"])

    def labels(self) -> np.ndarray:
        """Return the labels (N,) int32, read from the records without decoding images.

        They are cached beside the data, because reading them from ImageNet takes 140 GB of input.
        """
        cache = Path(self._where) / f"labels-{self._split}.npy"
        if cache.exists() and cache.stat().st_mtime >= _modified(self._where):
            labels = np.load(cache)
            if labels.shape == (len(self),) and labels.dtype == np.int32:
                return labels
        logging.info("reading the labels of %s, %d records", self.name, len(self))
        records = (self._record(position) for position in range(len(self)))
        labels = np.fromiter((record["label"] for record in records), np.int32, len(self))
        _save(cache, labels)
        return labels

    def _record(self, position: int) -> dict:
        try:
            return self._records[position]
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"record {position} of {self.name} in {self._where} cannot be read "
                f"({str(error).strip().splitlines()[0]}); prepare the data set again"
            ) from error

    def ids(self) -> np.ndarray:
        return np.arange(len(self), dtype=np.int64)

    def image_size(self, positions: np.ndarray) -> tuple[int, int] | None:
        height, width = self._shape[:2]
        return (height, width) if height and width else None


def _builder(name: str, directory: str):
    try:
        return read_only_builder.builder_from_files(name, data_dir=directory or None)
    except tfds.core.DatasetNotFoundError:
        pass
    where = directory or constants.DATA_DIR
    try:
        tfds.builder_cls(name)
    except (tfds.core.DatasetNotFoundError, ValueError):
        raise UserError(f"TFDS has no data set {name!r}, and {where} holds none") from None
    raise UserError(
        f"{name} is not prepared in {where}; run: "
        f"python tools/prepare_dataset.py {name} --data_dir {where}"
    )


def _modified(where: str | os.PathLike) -> float:
    return (Path(where) / "dataset_info.json").stat().st_mtime


def _save(path: Path, labels: np.ndarray) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.npy")
    try:
        np.save(partial, labels)
        partial.replace(path)  # atomic, because several processes may do this at once
    except OSError as error:
        logging.info("labels are not kept, %s cannot be written: %s", path, error)
