"""A source: the images of one split of one data set, with random access.

Each kind of data set is a *reader* (`fct_jax.data.readers` names them all). A `Source` is a reader
and the positions of the images that are kept.
"""

from functools import cached_property

import numpy as np

from fct_jax.data import subset as subsets
from fct_jax.data.classes import parse_classes
from fct_jax.data.decoding import UnreadableImage
from fct_jax.data.readers import SPLITS, Reader, open_reader, splits_of
from fct_jax.errors import UserError, unknown

__all__ = [
    "SPLITS",
    "Reader",
    "Source",
    "UnreadableImage",
    "open_source",
    "parse_classes",
    "splits_of",
]

ON_ERROR = ("raise", "skip")


class Source:
    """Images and labels of one split: ``len(source)``, ``source[i]``.

    Attributes:
      name: data set and split, for messages.
      class_names: names of *all* classes of the data set, even if ``data.classes`` selects only
        some: only ``data.subset`` renumbers labels.
      num_classes: number of these classes.
      on_error: "raise" or "skip", the pipeline's treatment of unreadable images.
    """

    def __init__(
        self,
        reader: Reader,
        positions: np.ndarray | None = None,
        on_error: str = "raise",
        class_order: np.ndarray | None = None,
    ):
        """Keep the images at ``positions`` (ascending; None: all) of ``reader``.

        ``class_order`` renumbers the classes: class i is the reader's class ``class_order[i]``;
        classes that it omits must have no image at ``positions``.
        """
        self._reader = reader
        self._positions = positions
        self._renumbered = None
        self.name = reader.name
        self.class_names = reader.class_names
        if class_order is not None:
            self._renumbered = np.full(len(reader.class_names), -1, np.int32)
            self._renumbered[class_order] = np.arange(len(class_order))
            self.class_names = tuple(reader.class_names[i] for i in class_order)
        self.num_classes = len(self.class_names)
        self.on_error = on_error

    def __len__(self) -> int:
        return len(self._reader) if self._positions is None else len(self._positions)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | int]:
        """Return ``{"image": uint8 (H, W, 3), "label": int}``. Raises UnreadableImage."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} images; there is no index {index}")
        position = int(index if self._positions is None else self._positions[index])
        image, label = self._reader.read(position)
        if self._renumbered is not None:
            label = int(self._renumbered[label])
        return {"image": image, "label": label}

    @cached_property
    def labels(self) -> np.ndarray:
        """Return the labels int32 (N,)."""
        labels = self._kept(self._reader.labels())
        return labels if self._renumbered is None else self._renumbered[labels]

    @cached_property
    def ids(self) -> np.ndarray:
        """Return ids (N,): int64 position in the whole split, or relative path in an image folder.

        The ids do not depend on which classes are kept.
        """
        return self._kept(self._reader.ids())

    @cached_property
    def image_size(self) -> tuple[int, int] | None:
        """Return (H, W) if all images have the same size, else None."""
        positions = np.arange(len(self)) if self._positions is None else self._positions
        return self._reader.image_size(positions)

    def _kept(self, values: np.ndarray) -> np.ndarray:
        return values if self._positions is None else values[self._positions]

    def __repr__(self) -> str:
        return f"Source({self.name}: {len(self)} images, {self.num_classes} classes)"


def open_source(data, split: str) -> Source:
    """Open one split of the data set that a config's ``data`` section describes.

    Args:
      data: object with the attributes ``name`` (one listed in `fct_jax.config_sections.data`, or
        "tfds:NAME" for any TFDS data set with "image" and "label"), ``dir`` (the data set's folder;
        for TFDS, its data directory, "" for the default), ``list`` and ``validation_list`` (files
        of ``path label`` lines), ``query_crop`` (whether to crop landmark queries to their box),
        ``classes`` (see `parse_classes`), ``subset`` (see `fct_jax.data.subset`) and ``on_error``
        (whether to "raise" for or "skip" unreadable images). All but ``name`` may be missing.
      split: "train", "validation", "query" or "gallery"; see `splits_of` for those of a data set.

    Raises:
      UserError: the data set or split is unknown, a file or folder is missing or empty, the data
        set is not prepared or lacks some of the class ids, or the selected classes have no image.
    """
    on_error = getattr(data, "on_error", "raise") or "raise"
    if on_error not in ON_ERROR:
        raise unknown("data.on_error", on_error, ON_ERROR)
    reader = open_reader(data, split)
    text = getattr(data, "classes", "") or ""
    selected = parse_classes(text, len(reader.class_names))
    subset = subsets.parse_subset(getattr(data, "subset", "") or "")
    if subset is not None:
        if selected is not None:
            raise UserError("data.classes and data.subset exclude each other; set one to ''")
        order, num_old = subsets.class_order(subset, len(reader.class_names))
        positions = subsets.positions(subset, reader.labels(), len(reader.class_names))
        order = order[:num_old] if subset.part == "old" else order
        return Source(reader, positions, on_error, order)
    positions = None
    if selected is not None:
        positions = np.flatnonzero(np.isin(reader.labels(), selected))
        if not len(positions):
            raise UserError(f"data.classes={text!r}: {reader.name} has no image of these classes")
    return Source(reader, positions, on_error)
