"""Read ``cifar-100-python.tar.gz``, the archive that CIFAR-100's authors publish."""

import dataclasses
import tarfile
from pathlib import Path

import numpy as np

from fct_jax.data import safe_pickle
from fct_jax.errors import UserError

_SIDE = 32
_FOLDER = "cifar-100-python"
CLASSES, SUPERCLASSES = 100, 20


@dataclasses.dataclass(frozen=True)
class Split:
    """Images uint8 (N, 32, 32, 3); labels (N,) 0..99; superclasses (N,) 0..19."""

    images: np.ndarray
    labels: np.ndarray
    coarse_labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Archive:
    """Both splits ("train", "test") and the names of classes and superclasses."""

    splits: dict[str, Split]
    class_names: tuple[str, ...]
    superclass_names: tuple[str, ...]


def read_archive(path: str | Path) -> Archive:
    """Read the archive in memory; nothing is unpacked to disk and no code in it is run.

    Raises:
      UserError: the file is missing, truncated or not a tar archive, the pickle reader rejects it,
        or it does not have CIFAR-100's layout.
    """
    if not Path(path).is_file():
        raise UserError(f"no file {path}")
    try:
        with tarfile.open(path, "r:*") as archive:
            meta, train, test = (_pickle(archive, path, name) for name in ("meta", "train", "test"))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{path} is not a {_FOLDER}.tar.gz, or damaged: {error}") from error
    return Archive(
        splits={"train": _split(train, path, "train"), "test": _split(test, path, "test")},
        class_names=_names(meta, path, b"fine_label_names", CLASSES),
        superclass_names=_names(meta, path, b"coarse_label_names", SUPERCLASSES),
    )


def _pickle(archive: tarfile.TarFile, path: str | Path, name: str) -> dict:
    try:
        file = archive.extractfile(f"{_FOLDER}/{name}")
    except KeyError:
        file = None
    if file is None:
        raise UserError(f"{path} has no {_FOLDER}/{name}; is it the Python version of CIFAR-100?")
    with file:
        content = safe_pickle.load(file)
    if not isinstance(content, dict):
        raise UserError(f"{path}: {name} holds a {type(content).__name__}, not a dict")
    # Keys are bytes if Python 2 wrote the file, as with the authors' archive.
    return {key.encode() if isinstance(key, str) else key: value for key, value in content.items()}


def _split(content: dict, path: str | Path, name: str) -> Split:
    data = content.get(b"data")
    width = 3 * _SIDE * _SIDE
    if not (
        isinstance(data, np.ndarray)
        and data.dtype == np.uint8
        and data.ndim == 2
        and data.shape[1] == width
    ):
        raise UserError(f"{path}: {name} has no 'data' of N x {width} bytes")
    planes = data.reshape(-1, 3, _SIDE, _SIDE)  # red, green, blue
    return Split(
        images=np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),
        labels=_labels(content, path, name, b"fine_labels", len(data), CLASSES),
        coarse_labels=_labels(content, path, name, b"coarse_labels", len(data), SUPERCLASSES),
    )


def _labels(content: dict, path, name: str, key: bytes, count: int, classes: int) -> np.ndarray:
    values = content.get(key)
    if (
        not isinstance(values, list)
        or len(values) != count
        or not all(isinstance(value, int) and 0 <= value < classes for value in values)
    ):
        raise UserError(
            f"{path}: {name} has no {key.decode()!r} with {count} numbers below {classes}"
        )
    return np.array(values, np.int64)


def _names(meta: dict, path: str | Path, key: bytes, count: int) -> tuple[str, ...]:
    values = meta.get(key)
    if not isinstance(values, list) or len(values) != count:
        raise UserError(f"{path}: meta has no {key.decode()!r} with {count} names")
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in values)
