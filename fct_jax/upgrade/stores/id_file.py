"""Ids on disk, so that a plan for 10⁸ items holds none of them in memory.

An integer takes 8 bytes, a UUID 16, and text its UTF-8 bytes plus 8.
"""

import uuid
from pathlib import Path

import numpy as np

from fct_jax.storage.files import sync_files

_BYTES = {"int": 8, "uuid": 16, "text": 1}


class IdFile:
    """N ids in a folder, which are read by their number, and to which others can be appended."""

    def __init__(self, folder, kind: str):
        """Open a folder of ids, or make it; ``kind`` is a `Store.id_kind`."""
        self._folder, self._kind = Path(folder), kind
        self._folder.mkdir(exist_ok=True)
        self._ids, self._ends = self._folder / "ids.bin", self._folder / "ends.bin"
        self._mapped = None
        self._size = self._ids.stat().st_size if self._ids.is_file() else 0

    def __len__(self) -> int:
        path = self._ends if self._kind == "text" else self._ids
        size = path.stat().st_size if path.is_file() else 0
        return size // (8 if self._kind == "text" else _BYTES[self._kind])

    def append(self, ids: np.ndarray) -> None:
        """Append ids (n,)."""
        self._mapped = None
        if self._kind == "int":
            parts = [np.asarray(ids, "<i8").tobytes()]
        elif self._kind == "uuid":
            parts = [uuid.UUID(one).bytes for one in ids.tolist()]
        else:
            parts = [str(one).encode() for one in ids.tolist()]
            ends = self._size + np.cumsum([len(part) for part in parts], dtype=np.int64)
            with self._ends.open("ab") as file:
                file.write(ends.astype("<i8").tobytes())
        data = b"".join(parts)
        with self._ids.open("ab") as file:
            file.write(data)
        self._size += len(data)

    def sync(self) -> None:
        """Flush appended ids to disk, so that they survive a crash."""
        sync_files(self._folder)

    def __getitem__(self, places):
        """Return the ids at some places: one for an integer, an array for a slice or an array."""
        if isinstance(places, slice):
            places = np.arange(*places.indices(len(self)))
        if not np.ndim(places):
            return self[np.array([places])][0]
        places = np.asarray(places, np.int64)
        if self._kind == "int":
            return np.asarray(self._map(self._ids, "<i8")[places], np.int64)
        if self._kind == "uuid":
            found = self._map(self._ids, "V16")[places]
            return np.array([str(uuid.UUID(bytes=one.tobytes())) for one in found], np.str_)
        ends, data = self._map(self._ends, "<i8"), self._map(self._ids, "u1")
        starts = np.where(places > 0, ends[np.maximum(places - 1, 0)], 0)
        pairs = zip(starts.tolist(), ends[places].tolist(), strict=True)
        return np.array([data[a:b].tobytes().decode() for a, b in pairs], np.str_)

    def _map(self, path: Path, dtype: str) -> np.ndarray:
        if self._mapped is None:
            self._mapped = {}
        if path not in self._mapped:
            empty = not path.is_file() or not path.stat().st_size
            self._mapped[path] = np.zeros(0, dtype) if empty else np.memmap(path, dtype, "r")
        return self._mapped[path]
