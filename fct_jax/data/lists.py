"""Image lists: text files of ``path label`` lines, like the training lists of GLDv2 and MS1M."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fct_jax.data.decoding import decode
from fct_jax.errors import UserError
from fct_jax.storage.ids import listed


class ListLine(NamedTuple):
    """One image of a list; ``rest`` holds the fields after the label, unchanged."""

    path: str
    label: int
    rest: tuple[str, ...] = ()

    def text(self, label: int | None = None) -> str:
        """Return the line again, with another label if one is given."""
        label = self.label if label is None else label
        return " ".join([self.path, str(label), *self.rest])


def parse_list(lines: Iterable[str], name: str = "list", trailing: int = 0) -> list[ListLine]:
    """Parse ``path label`` lines; the path may contain spaces, and empty lines are skipped.

    Args:
      lines: the text.
      name: the list's name in error messages (its file name).
      trailing: number of fields after the label (Market-1501 lists have 2: camera and view).

    Raises:
      UserError: a line has no path, or its label is not an integer of 0 or more.
    """
    parsed = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        fields = line.strip().rsplit(maxsplit=1 + trailing)
        form = " ".join(["path label", *["field"] * trailing])
        if len(fields) < 2 + trailing:
            raise UserError(f"{name}, line {number}: {line.strip()!r} is not '{form}'")
        path, label, *rest = fields
        if not (label.isascii() and label.isdecimal() and int(label) < 2**31):
            raise UserError(
                f"{name}, line {number}: label {label!r} is not a class number (0, 1, 2, …)"
            )
        parsed.append(ListLine(path, int(label), tuple(rest)))
    return parsed


def read_list(list_file: str | Path, trailing: int = 0) -> list[ListLine]:
    """Read a list file; arguments and errors are those of `parse_list`. Also raises UserError if
    the file does not exist, is not text or lists no image."""
    list_file = Path(list_file)
    try:
        text = list_file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"image list {list_file} is not UTF-8 text: {error.reason}") from error
    except OSError as error:
        raise UserError(f"cannot read image list {list_file}: {error.strerror}") from error
    # Not splitlines(), which also splits at characters that file names may contain.
    lines = parse_list(text.split("\n"), str(list_file), trailing)
    if not lines:
        raise UserError(f"image list {list_file} is empty")
    return lines


def require_images(root: str | Path, names: Sequence[str]) -> None:
    """Check that every image exists.

    Raises:
      UserError: images are missing; the message gives their number and the first ten.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"image folder {root} does not exist")
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(names)} images are missing under {root}: {listed(missing)}"
        )


class FileReader:
    """Reads image files below one folder.

    Attributes: ``name``, used in messages, and ``class_names``.
    """

    def __init__(
        self,
        name: str,
        root: str | Path,
        paths: Sequence[str],
        labels: Sequence[int],
        class_names: tuple[str, ...],
        boxes: Sequence[Sequence[float]] | None = None,
    ):
        """Prepare to read ``root/path`` for each of the paths, which must all exist.

        Each image is cropped to its (left, upper, right, lower) in ``boxes``, in pixels, if given.

        Raises:
          UserError: as in `require_images`.
        """
        require_images(root, paths)
        self.name = name
        self.class_names = class_names
        self._root = Path(root)
        self._paths = np.array(paths)
        self._labels = np.array(labels, np.int32)
        self._boxes = boxes

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, position: int) -> np.ndarray:
        """Return uint8 (H, W, 3). Raises UnreadableImage, naming the image."""
        path = self._root / str(self._paths[position])
        image = decode(path, str(path))
        return image if self._boxes is None else _crop(image, self._boxes[position], path)

    def labels(self) -> np.ndarray:
        """Return the labels (N,) int32."""
        return self._labels

    def ids(self) -> np.ndarray:
        """Return the paths (N,), relative to the folder."""
        return self._paths

    def image_size(self, positions: np.ndarray) -> None:
        """Return None, because images come in their own sizes."""
        return None


def list_reader(
    list_file: str | Path, root: str | Path, num_classes: int | None = None
) -> FileReader:
    """Return the reader of a list file's images.

    Args:
      list_file: file of ``path label`` lines.
      root: the folder that the paths are relative to.
      num_classes: number of classes; None: the largest label plus one.

    Raises:
      UserError: as in `read_list` and `require_images`, or a label does not fit ``num_classes``.
    """
    lines = read_list(list_file)
    labels = [line.label for line in lines]
    needed = max(labels) + 1
    if num_classes is not None and num_classes < needed:
        raise UserError(
            f"image list {list_file} has labels up to {needed - 1}: "
            f"num_classes must be at least {needed}, not {num_classes}"
        )
    # Class numbers without images are kept, so that labels stay those of the list.
    names = tuple(str(label) for label in range(num_classes or needed))
    return FileReader(str(list_file), root, [line.path for line in lines], labels, names)


class LabelledFiles:
    """The images of a `FileReader`, each read together with its label.

    Attributes: ``name``, used in messages, and ``class_names``.
    """

    def __init__(self, files: FileReader):
        self._files = files
        self.name = files.name
        self.class_names = files.class_names

    def __len__(self) -> int:
        return len(self._files)

    def read(self, position: int) -> tuple[np.ndarray, int]:
        """Return uint8 (H, W, 3) and label. Raises UnreadableImage, naming the image."""
        return self._files.read(position), int(self._files.labels()[position])

    def labels(self) -> np.ndarray:
        """Return the labels (N,) int32, -1 for images without class."""
        return self._files.labels()

    def ids(self) -> np.ndarray:
        """Return the paths (N,) str, relative to the folder of the images."""
        return self._files.ids()

    def image_size(self, positions: np.ndarray) -> None:
        """Return None without reading files: the host resizes every image."""
        return self._files.image_size(positions)


def _crop(image: np.ndarray, box: Sequence[float], path: Path) -> np.ndarray:
    height, width = image.shape[:2]
    left, upper, right, lower = (round(float(edge)) for edge in box)
    cropped = image[max(upper, 0) : min(lower, height), max(left, 0) : min(right, width)]
    if cropped.size == 0:
        raise UserError(f"the box {list(box)} leaves nothing of image {path}")
    return cropped
