"""Market-1501 (Zheng et al., ICCV 2015) in its released folders.

The files in ``bounding_box_train``, ``query`` and ``bounding_box_test`` are named by identity,
camera, sequence, frame and box: ``0002_c1s1_000451_03.jpg``. DukeMTMC-reID's names parse as well.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fct_jax.data.lists import FileReader, LabelledFiles, read_list
from fct_jax.errors import UserError, unknown

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
JUNK = -1  # boxes that count neither as hit nor as miss; they are never read
DISTRACTOR = 0  # boxes that show no person; they are in the gallery and match no query
EXTENSIONS = (".jpg", ".jpeg", ".png")
_NAME = re.compile(r"(-1|\d{1,9})_c(\d{1,9})")


class Market1501Reader(LabelledFiles):
    """One split, in the order of the sorted file names; ids are the file names.

    Attributes:
      cameras: (N,) int32, as in the file names (from 1).
      identities: (N,) int32, as in the file names.
      class_names: the training identities ("0002", …) in sorted order, which gives the labels
        0..C-1. Labels of query and gallery are the identities themselves, 0 for distractors.
    """

    def __init__(self, root: str | Path, split: str, list_file: str | Path = ""):
        """List the files of ``split``: "train", "query" or "gallery".

        Args:
          root: the folder with the three folders.
          list_file: file of the training images to use instead of the whole folder, with lines
            ``path label camera view`` and paths relative to ``root``. Its labels, sorted, become
            0..C-1; the split lists that `tools/split_dataset.py` writes keep theirs.

        Raises:
          UserError: a folder or image is missing, a name does not parse, or no image shows a
            person.
        """
        if split not in FOLDERS:
            raise unknown("Market-1501 split", split, FOLDERS)
        if not list_file:
            name, folder = f"Market-1501 {split} of {root}", Path(root) / FOLDERS[split]
            names, identities, cameras = _found(folder, split)
        elif split == "train":
            name, folder = str(list_file), Path(root)
            names, identities, cameras = _listed(list_file)
        else:
            raise UserError(f"a Market-1501 list is of the training split, not of {split}")
        if split == "train":
            known, labels = np.unique(identities, return_inverse=True)
        else:
            known, labels = np.arange(identities.max() + 1), identities
        class_names = tuple(f"{identity:04d}" for identity in known)
        super().__init__(FileReader(name, folder, names, labels, class_names))
        self.identities, self.cameras = identities, cameras


def parse_names(names: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return identities and cameras, both (N,) int32, of file names or an EmbeddingSet's ids.

    Raises:
      UserError: a name does not begin like ``0002_c1``.
    """
    found = []
    for name in names:
        match = _NAME.match(str(name).rsplit("/", 1)[-1])
        if match is None:
            raise UserError(
                f"{name!r} is no Market-1501 name: it must begin with identity and camera, "
                "like 0002_c1s1_000451_03.jpg"
            )
        found.append((int(match[1]), int(match[2])))
    table = np.array(found, np.int32).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _found(folder: Path, split: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return names (sorted), identities and cameras of a folder's images that count."""
    if not folder.is_dir():
        raise UserError(
            f"no folder {folder}; Market-1501 has the folders {', '.join(FOLDERS.values())}"
        )
    # The folder contains other files too (Thumbs.db in the released archive).
    names = sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() in EXTENSIONS)
    identities, cameras = parse_names(names)
    nobody = (JUNK, DISTRACTOR) if split == "train" else (JUNK,)  # not persons to learn
    kept = np.flatnonzero(~np.isin(identities, nobody))
    if not kept.size:
        raise UserError(f"no image of a person in {folder}")
    return [names[row] for row in kept], identities[kept], cameras[kept]


def _listed(list_file: str | Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    lines = read_list(list_file, trailing=2)
    for line in lines:
        if not (line.rest[0].isascii() and line.rest[0].isdecimal()):
            raise UserError(f"{list_file}: camera {line.rest[0]!r} of {line.path} is not a number")
    table = np.array([(line.label, int(line.rest[0])) for line in lines], np.int32)
    return [line.path for line in lines], table[:, 0], table[:, 1]
