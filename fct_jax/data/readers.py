"""The data sets by name, with their splits and the function that opens each.

Each kind is a *reader* in its own file; add a new one as a row of the table at the end, or name
your own as ``module:name`` (docs/plugins.md).
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from fct_jax.data.digits import DigitsReader
from fct_jax.data.folder import FacesReader, FolderReader
from fct_jax.data.ijb import ijb_reader
from fct_jax.data.landmarks import (
    LandmarkTruth,
    RevisitedTruth,
    gldv2_readers,
    read_gldv2,
    read_ground_truth,
    revisited_readers,
)
from fct_jax.data.lists import LabelledFiles, list_reader, read_list
from fct_jax.data.market1501 import Market1501Reader
from fct_jax.data.noise import NoiseReader
from fct_jax.data.recordio import RecordIOReader
from fct_jax.data.tfds import TfdsReader
from fct_jax.errors import UserError, unknown
from fct_jax.runtime import plugins

_OFFERED = ("name", "class_names", "__len__", "read", "labels", "ids", "image_size")  # by readers
SPLITS = ("train", "validation", "query", "gallery")


class Reader(Protocol):
    """The interface of a kind of data set; ``position`` counts all images of the split."""

    name: str
    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def read(self, position: int) -> tuple[np.ndarray, int]:
        """Return image, uint8 (H, W, 3), and label. Raises UnreadableImage, naming the image."""

    def labels(self) -> np.ndarray:
        """Return labels int32 (N,), without decoding images."""

    def ids(self) -> np.ndarray:
        """Return ids (N,), int64 or str, which identify an image permanently."""

    def image_size(self, positions: np.ndarray) -> tuple[int, int] | None:
        """Return (H, W) if all images at ``positions`` share it."""


class Where(NamedTuple):
    """The part of the ``data`` section for readers: paths ("" if not given) and options."""

    name: str
    dir: str
    list: str
    validation_list: str
    query_crop: bool

    @property
    def root(self) -> str:
        """Return ``dir``, for the data sets that need one."""
        if not self.dir:
            raise UserError(f"data.dir is empty: it must name the folder of {self.name}")
        if not Path(self.dir).is_dir():
            raise UserError(f"no folder {self.dir} (data.dir)")
        return self.dir


class Kind(NamedTuple):
    """A row of the table: a data set's splits and ``open(where, split)``."""

    splits: tuple[str, ...]
    open: Callable[[Where, str], Reader]


def splits_of(name: str) -> tuple[str, ...]:
    """Return the splits of a data set: some of "train", "validation", "query" and "gallery".

    Raises:
      UserError: there is no data set of that name.
    """
    return _kind(name).splits


def open_reader(data, split: str) -> Reader:
    """Open a split of the data set that a config's ``data`` section describes.

    Args:
      data: as in `fct_jax.data.sources.open_source`.
      split: one of `SPLITS`.

    Raises:
      UserError: the name is unknown, the data set has no such split, or files are missing or
        damaged.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    kind = _kind(data.name)
    if split not in kind.splits:
        raise UserError(f"{data.name} has no split {split!r}; it has {', '.join(kind.splits)}")
    paths = [
        os.path.expanduser(getattr(data, key, "") or "")  # noqa: PTH111 - keeps ""
        for key in ("dir", "list", "validation_list")
    ]
    where = Where(data.name, *paths, bool(getattr(data, "query_crop", False)))
    reader = kind.open(where, split)
    missing = [name for name in _OFFERED if not hasattr(reader, name)]
    if missing:
        raise UserError(
            f"the reader of data.name={data.name} lacks {', '.join(missing)}; docs/plugins.md says "
            "what a reader offers"
        )
    return reader


def revisited_truth(root: str | Path, name: str) -> RevisitedTruth:
    """Read the ground truth of "roxford5k" or "rparis6k": ``root/NAME/gnd_NAME.pkl``.

    The file may also be in ``root`` itself.

    Raises:
      UserError: as in `fct_jax.data.landmarks.read_ground_truth`.
    """
    root = Path(root).expanduser()
    path = root / name / f"gnd_{name}.pkl"
    return read_ground_truth(path if path.is_file() else root / path.name)


def gldv2_truth(root: str | Path, usage: str = "Private") -> LandmarkTruth:
    """Read the ground truth of Google Landmarks v2 below ``root``.

    The queries are in ``retrieval_solution_v2.1.csv``; the index is in ``index.csv``, or else
    consists of the images below ``index``.

    Raises:
      UserError: as in `fct_jax.data.landmarks.read_gldv2`.
    """
    root = Path(root).expanduser()
    index = root / "index.csv"
    solution = root / "retrieval_solution_v2.1.csv"
    return read_gldv2(solution, index if index.is_file() else root / "index", usage)


def _kind(name: str) -> Kind:
    prefix, mark, rest = name.partition(":")
    if mark and rest and prefix in _PREFIXES:
        return _PREFIXES[prefix][1]
    shown = {f"{prefix}:{form}": kind for prefix, (form, kind) in _PREFIXES.items()}
    found = plugins.find({**_KINDS, **shown}, name, "data set", "datasets")
    if isinstance(found, Kind):
        return found
    if not callable(found):
        raise UserError(
            f"data.name={name} must be a reader (where, split) -> Reader, or a "
            f"fct_jax.data.readers.Kind, not {type(found).__name__}"
        )
    return Kind(tuple(getattr(found, "splits", ("train", "validation"))), found)


def _tfds(where: Where, split: str) -> TfdsReader:
    return TfdsReader(where.name.removeprefix("tfds:"), where.dir, split)


def _noise(where: Where, split: str) -> NoiseReader:
    return NoiseReader(where.name.removeprefix("noise:"))


def _list(where: Where, split: str) -> LabelledFiles:
    key = "list" if split == "train" else "validation_list"
    file = getattr(where, key)
    if not file:
        raise UserError(f"data.{key} is empty: it must name the file of {split} images and labels")
    root = where.root
    if split == "train" or not where.list:
        return LabelledFiles(list_reader(file, root))
    # Both splits have the same classes, although one may lack images of the largest numbers.
    lists = [read_list(where.list), read_list(file)]
    classes = max(line.label for lines in lists for line in lines) + 1
    return LabelledFiles(list_reader(file, root, classes))


def _market1501(where: Where, split: str) -> Market1501Reader:
    return Market1501Reader(where.root, split, where.list if split == "train" else "")


def _revisited(where: Where, split: str) -> LabelledFiles:
    truth = revisited_truth(where.root, where.name)
    inner = Path(where.root) / where.name
    root = inner if (inner / "jpg").is_dir() else where.root
    queries, gallery = revisited_readers(root, truth, query_crop=where.query_crop)
    return LabelledFiles(queries if split == "query" else gallery)


def _gldv2(where: Where, split: str) -> LabelledFiles:
    if split in ("train", "validation"):
        return _list(where, split)
    queries, gallery = gldv2_readers(where.root, gldv2_truth(where.root))
    return LabelledFiles(queries if split == "query" else gallery)


def _ijb(where: Where, split: str) -> LabelledFiles:
    if not where.list:
        raise UserError("data.list is empty: it must name the file of images, templates and media")
    return ijb_reader(where.root, where.list)


_TFDS = Kind(("train", "validation"), _tfds)
# prefix before a colon -> (form of the part after it, kind)
_PREFIXES = {"tfds": ("NAME", _TFDS), "noise": ("IMAGESxCLASSES", Kind(("train",), _noise))}
_KINDS = {
    "digits": Kind(("train", "validation"), lambda where, split: DigitsReader(split)),
    "folder": Kind(("train", "validation"), lambda where, split: FolderReader(where.dir, split)),
    "cifar100": _TFDS,
    "imagenet2012": _TFDS,
    "list": Kind(("train", "validation"), _list),
    "faces": Kind(("train",), lambda where, split: FacesReader(where.root)),
    "ms1m": Kind(("train",), lambda where, split: RecordIOReader(where.root)),
    "market1501": Kind(("train", "query", "gallery"), _market1501),
    "roxford5k": Kind(("query", "gallery"), _revisited),
    "rparis6k": Kind(("query", "gallery"), _revisited),
    "gldv2": Kind(("train", "validation", "query", "gallery"), _gldv2),
    "ijb": Kind(("gallery",), _ijb),
}
