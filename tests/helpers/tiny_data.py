"""Small data sets in their real formats, for the tests of fct_jax.data."""

import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from fct_jax.data.prepare.builders import Cifar100
from fct_jax.data.prepare.cifar import Archive, Split


def python2_pickle(value) -> bytes:
    """Return what Python 2's cPickle writes (protocol 2): bytes as ``str``, numpy.core arrays."""
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value) -> bytes:
    if isinstance(value, dict):
        return b"}(" + b"".join(_python2(x) for pair in value.items() for x in pair) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2, value)) + b"e"
    if isinstance(value, str):
        return b"U" + bytes([len(value)]) + value.encode()
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    code = value.dtype.str.lstrip("|<>").encode()
    shape = b"(" + b"".join(_python2(length) for length in value.shape) + b"t"
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        + b"(K\x01"
        + shape
        + b"cnumpy\ndtype\n(U\x02"
        + code
        + b"K\x00K\x01tR(K\x03U\x01"
        + value.dtype.str[:1].encode()
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<I", value.nbytes)
        + value.tobytes()
        + b"tb"
    )


def cifar_content(count: int, seed: int) -> dict:
    """Return the dict of one split, which has every class if ``count`` is 100 or more."""
    data = np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)
    return {
        "filenames": [f"image_{i}.png" for i in range(count)],
        "batch_label": "training batch 1 of 1",
        "fine_labels": [i * 7 % 100 for i in range(count)],
        "coarse_labels": [i % 20 for i in range(count)],
        "data": data,
    }


def write_cifar_archive(path: Path, counts=(200, 100), **replaced: bytes | None) -> Path:
    """Write a ``cifar-100-python.tar.gz``; ``replaced`` sets a member's bytes, None drops it."""
    members = {
        "meta": python2_pickle(
            {
                "fine_label_names": [f"class{i}" for i in range(100)],
                "coarse_label_names": [f"group{i}" for i in range(20)],
            }
        ),
        "train": python2_pickle(cifar_content(counts[0], 0)),
        "test": python2_pickle(cifar_content(counts[1], 1)),
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, content in (members | replaced).items():
            if content is not None:
                add(archive, f"cifar-100-python/{name}", content)
    return path


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Put a file into a tar archive."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def cifar_split(count: int, seed: int) -> Split:
    """Return the split that `cifar_content` describes, read plainly."""
    content = cifar_content(count, seed)
    planes = [[row[1024 * c :][:1024].reshape(32, 32) for c in range(3)] for row in content["data"]]
    images = np.stack([np.stack(colours, axis=-1) for colours in planes])
    return Split(images, np.array(content["fine_labels"]), np.array(content["coarse_labels"]))


def write_cifar_tfds(directory: Path, train: int = 200, test: int = 100) -> Path:
    """Write a tiny CIFAR-100 as TFDS files."""
    tfds.disable_progress_bar()
    builder = Cifar100(data_dir=directory, file_format="array_record")
    builder.archive = Archive(
        {"train": cifar_split(train, 0), "test": cifar_split(test, 1)},
        tuple(f"class{i}" for i in range(100)),
        tuple(f"group{i}" for i in range(20)),
    )
    builder.download_and_prepare(
        file_format="array_record",
        download_dir=directory / "downloads",
        download_config=tfds.download.DownloadConfig(try_download_gcs=False),
    )
    return directory


def write_folder(
    root: Path, classes=("0", "1", "10", "2"), train: int = 5, validation: int = 3, size=(20, 24)
) -> Path:
    """Write an image folder of PNG files; ``size``: (height, width), or None for varying sizes."""
    rng = np.random.default_rng(0)
    for folder, count in (("training", train), ("validation", validation)):
        for name in classes:
            (root / folder / name).mkdir(parents=True)
            for i in range(count):
                height, width = size or (16 + i, 30 - i)
                image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
                Image.fromarray(image).save(root / folder / name / f"{i}.png")
    return root
