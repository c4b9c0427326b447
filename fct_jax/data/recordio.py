"""MXNet's RecordIO pair ``train.rec`` and ``train.idx``, read without MXNet.

InsightFace releases its training sets (MS1M, Glint360k, …) in this form. A record is the magic
number, a word with a continuation flag (3 bits) and a length (29 bits), and the content, padded to
4 bytes. Content that itself contains the magic number at a multiple of 4 bytes is split there into
several parts. The content of an image record is a header (flag, label, id, id2), ``flag`` further
labels if that is not 0, and the encoded image.
"""

import math
import struct
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fct_jax.data.decoding import UnreadableImage, decode
from fct_jax.errors import UserError

MAGIC = 0xCED7230A
_MAGIC_BYTES = struct.pack("<I", MAGIC)
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)  # continuation flags
_HEADER = struct.Struct("<IfQQ")
_LABEL_END = 8 + _HEADER.size + 4  # bytes from a record's start to the end of its first label
_BLOCK = 1 << 16


class Record(NamedTuple):
    """An image record: its ``labels`` (one or ``flag`` of them), ``id`` and encoded ``image``."""

    labels: tuple[float, ...]
    id: int
    image: bytes


def unpack(content: bytes, name: str = "record") -> Record:
    """Return header and image of a record's content. Raises UserError if it is too short."""
    if len(content) < _HEADER.size:
        raise UserError(f"{name} is damaged: {len(content)} bytes hold no header")
    flag, label, number, _ = _HEADER.unpack_from(content)
    if flag == 0:
        return Record((label,), number, content[_HEADER.size :])
    end = _HEADER.size + 4 * flag
    if len(content) < end:
        raise UserError(f"{name} is damaged: {len(content)} bytes cannot hold {flag} labels")
    return Record(struct.unpack_from(f"<{flag}f", content, _HEADER.size), number, content[end:])


class RecordFile:
    """Random access to the records of a pair of files, for any number of threads and processes.

    Attributes:
      keys: (R,) int64, the keys of the index, ascending.
    """

    def __init__(self, rec: str | Path, idx: str | Path):
        """Open both files. Raises UserError if one is missing, damaged or cut off."""
        self._path = Path(rec)
        for path in (rec, idx):
            if not Path(path).is_file():
                raise UserError(f"no file {path}; a RecordIO set is a pair of .rec and .idx files")
            if Path(path).stat().st_size == 0:
                raise UserError(f"{path} is empty")
        self.keys, self._offsets = _read_index(Path(idx))
        self._open()
        self.content(int(self.keys[np.argmax(self._offsets)]))  # fails if the file is truncated

    def _open(self) -> None:
        self._bytes = np.memmap(self._path, np.uint8, "r")

    def __getstate__(self) -> dict:
        """Leave out the memory map: worker processes map the file themselves."""
        return {name: value for name, value in self.__dict__.items() if name != "_bytes"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: int) -> bool:
        row = np.searchsorted(self.keys, key)
        return row < len(self.keys) and self.keys[row] == key

    def content(self, key: int) -> bytes:
        """Return a record's bytes. Raises UserError if the key is unknown or the record damaged."""
        if key not in self:
            raise UserError(f"{self._path} has no record {key}")
        start = int(self._offsets[np.searchsorted(self.keys, key)])
        name = f"record {key} of {self._path} (byte {start})"
        parts = []
        while True:
            magic, word = struct.unpack("<II", self._slice(start, 8, name))
            if magic != MAGIC:
                raise UserError(f"{name} is damaged, or the index is of another file")
            kind, length = word >> 29, word & ((1 << 29) - 1)
            if kind not in ((_MIDDLE, _LAST) if parts else (_WHOLE, _FIRST)):
                raise UserError(f"{name} is damaged: its parts do not follow each other")
            parts.append(self._slice(start + 8, length, name))
            if kind in (_WHOLE, _LAST):
                return _MAGIC_BYTES.join(parts)
            start += 8 + (length + 3) // 4 * 4

    def record(self, key: int) -> Record:
        """Return one record, unpacked; raises the errors of `content` and `unpack`."""
        return unpack(self.content(key), f"record {key} of {self._path}")

    def first_labels(self, keys: np.ndarray) -> np.ndarray:
        """Return each record's first label (K,) float32, without reading images.

        Raises:
          UserError: a key is unknown, or a record is damaged.
        """
        keys = np.asarray(keys, np.int64)
        rows = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        if (self.keys[rows] != keys).any():
            raise UserError(f"{self._path} has no record {keys[self.keys[rows] != keys][0]}")
        labels = np.empty(len(keys), np.float32)
        for block in range(0, len(keys), _BLOCK):
            offsets = self._offsets[rows[block : block + _BLOCK]]
            where = offsets[:, None] + np.arange(_LABEL_END)
            words = self._bytes[np.minimum(where, len(self._bytes) - 1)].view("<u4")
            many = words[:, 2] > 0
            here = np.where(many, words[:, 8], words[:, 3]).view(np.float32)
            # Records that are damaged, in several parts or reach past the file's end: one by one.
            odd = (words[:, 0] != MAGIC) | (words[:, 1] >> 29 != _WHOLE)
            odd |= where[:, -1] >= len(self._bytes)
            odd |= words[:, 1] < np.where(many, _HEADER.size + 4, _HEADER.size)
            for row in np.flatnonzero(odd):
                here[row] = self.record(int(keys[block + row])).labels[0]
            labels[block : block + _BLOCK] = here
        return labels

    def _slice(self, start: int, length: int, name: str) -> bytes:
        if start + length > len(self._bytes):
            raise UserError(
                f"{self._path} is cut off: {name} ends behind the file's {len(self._bytes)} bytes"
            )
        return self._bytes[start : start + length].tobytes()


class RecordIOReader:
    """The training images of ``root/train.rec``; ids are the keys of the records.

    If record 0 of the pair is InsightFace's header, which gives the range [a, b) of the records
    that describe identities, the images are records 1..a-1; otherwise every record is an image.
    """

    def __init__(self, root: str | Path):
        """Open the pair and read the labels.

        Raises:
          UserError: as in `RecordFile`; records are missing; or labels are not class numbers.
        """
        self.name = str(Path(root) / "train.rec")
        self._file = RecordFile(self.name, Path(root) / "train.idx")
        first = self._file.record(0) if 0 in self._file else Record((), 0, b"")
        covered = _range(first) if not first.image else None
        if covered is not None:
            start, stop = covered
            self._keys = np.arange(1, start)
            absent = np.setdiff1d(self._keys, self._file.keys, assume_unique=True)
            if absent.size or start < 2:
                raise UserError(
                    f"{self.name}: record 0 speaks of {start - 1} images, of which "
                    f"{absent.size} are not in the index"
                )
            labels = self._labels_by_identity(np.arange(start, stop))
        else:
            self._keys = self._file.keys
            labels = None
        if labels is None:
            labels = self._file.first_labels(self._keys)
        self._labels = _class_numbers(labels, self._keys, self.name)
        self.class_names = tuple(str(label) for label in range(self._labels.max() + 1))

    def __len__(self) -> int:
        return len(self._keys)

    def read(self, position: int) -> tuple[np.ndarray, int]:
        """Return uint8 (H, W, 3) and label. Raises UnreadableImage, naming the record."""
        key = int(self._keys[position])
        try:
            record = self._file.record(key)
        except UserError as error:
            raise UnreadableImage(f"cannot read image: {error}") from error
        return decode(record.image, f"{key} of {self.name}"), int(self._labels[position])

    def labels(self) -> np.ndarray:
        """Return the labels (N,) int32."""
        return self._labels

    def ids(self) -> np.ndarray:
        """Return the ids (N,) int64, which are the records' keys."""
        return self._keys

    def image_size(self, positions: np.ndarray) -> None:
        """Return None, because the records do not give the size."""
        return None

    def _labels_by_identity(self, identities: np.ndarray) -> np.ndarray | None:
        """Return labels (N,) from the ranges in the identity records, or None without such records.

        Only two images of each identity are read instead of all, which saves reading the whole
        file of millions of images.
        """
        if not len(identities) or not np.isin(identities, self._file.keys).all():
            return None
        ranges = [_range(self._file.record(int(key))) for key in identities]
        if None in ranges:
            return None
        ranges = np.array(ranges, np.int64)
        ranges = ranges[ranges[:, 0] < ranges[:, 1]]
        ranges = ranges[np.argsort(ranges[:, 0])]
        edges = np.append(ranges[:, 0], len(self._keys) + 1)
        # Identities without images have empty ranges, which were dropped above.
        if edges[0] != 1 or (edges[1:] != ranges[:, 1]).any():
            return None  # the ranges have gaps or overlap
        labels = self._file.first_labels(ranges[:, 0])
        if (labels != self._file.first_labels(ranges[:, 1] - 1)).any():
            return None
        return np.repeat(labels, ranges[:, 1] - ranges[:, 0])


def _range(record: Record) -> tuple[int, int] | None:
    """Return the range of keys given by the two labels of a record without image."""
    if len(record.labels) < 2 or not all(map(math.isfinite, record.labels[:2])):
        return None
    return int(record.labels[0]), int(record.labels[1])


def _read_index(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return keys (ascending) and offsets, both (R,) int64, of ``key offset`` lines."""
    try:
        with warnings.catch_warnings(action="error"):  # for numbers that are not integers
            table = np.loadtxt(path, np.int64, comments=None, ndmin=2)
    except (ValueError, Warning) as error:
        reason = str(error).split(";")[0]
        raise UserError(f"{path} is not an index of 'key offset' lines: {reason}") from None
    if table.shape[1] != 2 or (table < 0).any():
        raise UserError(f"{path} is not an index: lines must hold 'key offset', both 0 or more")
    table = table[np.argsort(table[:, 0], kind="stable")]
    twice = np.flatnonzero(np.diff(table[:, 0]) == 0)
    if twice.size:
        raise UserError(f"{path}: the key {table[twice[0], 0]} comes twice")
    return table[:, 0].copy(), table[:, 1].copy()


def _class_numbers(labels: np.ndarray, keys: np.ndarray, name: str) -> np.ndarray:
    # 2**31 - 128 is the largest float32 below 2**31; NaN fails the comparison too.
    right = (labels >= 0) & (labels <= 2**31 - 128) & (labels == np.floor(labels))
    if not right.all():
        row = int(np.argmin(right))
        raise UserError(
            f"{name}: the label {labels[row]:g} of record {keys[row]} is not a class number"
        )
    return labels.astype(np.int32)
