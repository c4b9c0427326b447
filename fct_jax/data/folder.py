"""Image folders: ``training/<class>/…`` and ``validation/<class>/…``, or only class folders."""

import os
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from fct_jax.data.decoding import decode
from fct_jax.errors import UserError
from fct_jax.storage.ids import listed

_FOLDERS = {"train": "training", "validation": "validation"}


class ClassFolders:
    """Images below class folders, in any format that Pillow reads and nested to any depth.

    The classes are the folders, sorted as text ("0", "1", "10", "11", … "2"). Within a class, the
    files are sorted by path. Other files and hidden ones are ignored. The ids are paths relative to
    the folder of the classes, with "/".
    """

    def __init__(self, folder: Path):
        """List the files; raises UserError for anything missing or empty."""
        self._folder = folder
        self.name = str(folder)
        self.class_names = _class_names(folder)
        paths, labels = [], []
        for label, name in enumerate(self.class_names):
            found = _image_paths(folder / name)
            if not found:
                raise UserError(f"no images in {folder / name}")
            paths += [f"{name}/{path}" for path in found]
            labels += [label] * len(found)
        self._paths = np.array(paths)
        self._labels = np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, position: int) -> tuple[np.ndarray, int]:
        path = self._folder / str(self._paths[position])
        return decode(path, str(path)), int(self._labels[position])

    def labels(self) -> np.ndarray:
        return self._labels

    def ids(self) -> np.ndarray:
        return self._paths

    def image_size(self, positions: np.ndarray) -> tuple[int, int] | None:
        """Return the size (H, W) that all images share, or None; unreadable files are ignored.

        Headers are read until two sizes differ.
        """
        common = None
        for path in self._paths[positions]:
            try:
                with Image.open(self._folder / str(path)) as image:
                    size = (image.height, image.width)
            except Exception:  # reported when the image itself is read
                continue
            if common is not None and size != common:
                return None
            common = size
        return common


class FolderReader(ClassFolders):
    """A split of an image folder; both splits must have the same classes."""

    def __init__(self, root: str, split: str):
        """List the files of ``split``; raises UserError for anything missing or empty."""
        if not root:
            raise UserError("data.dir is empty: it must name the image folder's root")
        if not Path(root).is_dir():
            raise UserError(f"no folder {root} (data.dir)")
        classes = {}
        for folder in _FOLDERS.values():
            if not (Path(root) / folder).is_dir():
                raise UserError(
                    f"no folder {Path(root) / folder}; "
                    "an image folder has training/<class>/… and validation/<class>/…"
                )
            classes[folder] = _class_names(Path(root) / folder)
        _check_same(root, classes)
        super().__init__(Path(root) / _FOLDERS[split])


class FacesReader(ClassFolders):
    """Aligned faces: one folder per person, without folders for splits."""

    def __init__(self, root: str):
        """List the files below ``root``; raises UserError for anything missing or empty."""
        if not Path(root).is_dir():
            raise UserError(f"no folder {root} (data.dir)")
        super().__init__(Path(root))

    def image_size(self, positions: np.ndarray) -> None:
        """Return None, without reading the headers of millions of files."""
        return None


def _class_names(folder: Path) -> tuple[str, ...]:
    names = sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."
    )
    if not names:
        raise UserError(f"no class folders in {folder}; images belong in {folder}/<class>/")
    return tuple(names)


def _check_same(root: str, classes: dict[str, tuple[str, ...]]) -> None:
    training, validation = (set(names) for names in classes.values())
    differences = [
        f"{len(extra)} only in {where} ({listed(sorted(extra))})"
        for where, extra in (
            ("training", training - validation),
            ("validation", validation - training),
        )
        if extra
    ]
    if differences:
        raise UserError(
            f"{root}: training and validation have different classes: {'; '.join(differences)}"
        )


@cache
def _extensions() -> frozenset[str]:
    return frozenset(
        extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN
    )


def _image_paths(folder: Path) -> list[str]:
    """Return the paths below ``folder``, relative to it, with "/", sorted.

    Links are followed, but no folder is visited twice, because a link may point to one of its own
    parents.
    """
    found, visited = [], set()
    for where, subfolders, files in os.walk(folder, followlinks=True):
        status = Path(where).stat()
        if (status.st_dev, status.st_ino) in visited:
            subfolders[:] = []
            continue
        visited.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if name[0] != ".")
        found += [
            Path(where, name).relative_to(folder).as_posix()
            for name in files
            if name[0] != "." and Path(name).suffix.lower() in _extensions()
        ]
    return sorted(found)
