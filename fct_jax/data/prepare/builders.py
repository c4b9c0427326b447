"""TFDS's builders of CIFAR-100 and ImageNet, which write the same files without TensorFlow.

TFDS's own builders read their input through TensorFlow, and these do not. Name, version, features
and files are the same, so TFDS reads the results as its own.
"""

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as imagenet
from tensorflow_datasets.image_classification import cifar

from fct_jax.data.prepare.cifar import CLASSES, SUPERCLASSES, Archive
from fct_jax.errors import UserError

# A function called for every example with the split's name and its number of images, if known.
Progress = Callable[[str, int | None], None]


def _no_progress(split: str, total: int | None) -> None:
    pass


class Cifar100(cifar.Cifar100, skip_registration=True):
    """CIFAR-100 from its authors' archive, which is given or downloaded by TFDS."""

    name = "cifar100"
    code_path = epath.Path(__file__)  # TFDS would need an optional package to find it
    url_infos = checksums.load_url_infos(tfds.core.tfds_path("url_checksums/cifar100.txt"))
    archive: Archive | None = None
    progress: Progress = staticmethod(_no_progress)

    def _split_generators(self, dl_manager):
        if self.archive is None:
            return super()._split_generators(dl_manager)
        self.info.features["label"].names = self.archive.class_names
        self.info.features["coarse_label"].names = self.archive.superclass_names
        return {
            name: self._examples(
                f"{name}_",
                zip(split.images, split.labels, split.coarse_labels, strict=True),
                len(split.labels),
            )
            for name, split in self.archive.splits.items()
        }

    def _generate_examples(self, split_prefix: str, filepaths) -> Iterator:
        """Read the downloaded binary form; a row is superclass, class and 3072 bytes of pixels."""
        rows = np.concatenate(
            [
                np.frombuffer(Path(path).read_bytes(), np.uint8).reshape(-1, 3074)
                for path in filepaths
            ]
        )
        images = rows[:, 2:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        yield from self._examples(
            split_prefix, zip(images, rows[:, 1], rows[:, 0], strict=True), len(rows)
        )

    def _examples(self, prefix: str, rows, total: int) -> Iterator:
        for index, (image, label, coarse_label) in enumerate(rows):
            if label >= CLASSES or coarse_label >= SUPERCLASSES:
                raise UserError(f"image {index} has class {label}, superclass {coarse_label}")
            self.progress(prefix.rstrip("_"), total)
            yield (
                index,
                {
                    "id": f"{prefix}{index:05d}",
                    "image": png(image),
                    "label": int(label),
                    "coarse_label": int(coarse_label),
                },
            )


class Imagenet2012(imagenet.Builder, skip_registration=True):
    """ImageNet-1k from ``ILSVRC2012_img_train.tar`` and ``ILSVRC2012_img_val.tar``."""

    name = "imagenet2012"
    code_path = epath.Path(__file__)
    pkg_dir_path = tfds.core.tfds_path("datasets/imagenet2012")
    progress: Progress = staticmethod(_no_progress)

    def _split_generators(self, dl_manager):
        folder = Path(dl_manager.manual_dir)
        train, validation = (folder / f"ILSVRC2012_img_{name}.tar" for name in ("train", "val"))
        for path in (train, validation):
            if not path.is_file():
                raise UserError(
                    f"no file {path}; get it from https://image-net.org/download-images"
                )
        return {"train": self._training(train), "validation": self._validation(validation)}

    def _training(self, path: Path) -> Iterator:
        """Read an archive that contains an archive per class, named by the class."""
        with tarfile.open(path) as classes:
            for member in classes:
                with tarfile.open(fileobj=classes.extractfile(member)) as images:
                    for image in images:
                        content = images.extractfile(image).read()
                        yield self._example(image.name, content, member.name[:-4], 1_281_167)

    def _validation(self, path: Path) -> Iterator:
        """Read validation images; TFDS provides the labels, in the order of the sorted names."""
        labels = (self.pkg_dir_path / "validation_labels.txt").read_text().split()
        with tarfile.open(path) as images:
            names = sorted(images.getnames())
            label_of = dict(zip(names, labels, strict=False))
            for image in images:
                content = images.extractfile(image).read()
                yield self._example(image.name, content, label_of[image.name], len(names))

    def _example(self, name: str, content: bytes, label: str, total: int) -> tuple[str, dict]:
        self.progress("train" if total == 1_281_167 else "validation", total)
        if name in imagenet.CMYK_IMAGES or name in imagenet.PNG_IMAGES:
            content = _rgb_jpeg(content)
        return name, {"file_name": name, "image": content, "label": label}


def png(image: np.ndarray) -> bytes:
    """Return uint8 (H, W, 3) as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def _rgb_jpeg(content: bytes) -> bytes:
    """Convert the few images that are not RGB JPEGs, as TFDS does since version 3."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        image.convert("RGB").save(file, "JPEG", quality=100)
    return file.getvalue()
