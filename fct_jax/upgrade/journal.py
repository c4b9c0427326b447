"""An append-only journal: what is recorded stays recorded, and what is torn is noticed."""

import json
import os
import zlib
from pathlib import Path

from fct_jax.errors import UserError


class Journal:
    """Records, one a line: JSON, a tab, and a checksum of it and of all lines before.

    A record counts once ``append`` has returned: it is on the disk by then. The last line of a
    file whose writer was killed may be torn; it is dropped. Damage anywhere else is an error.

    Attributes:
      records: all records in order, each a dict with ``kind``.
    """

    def __init__(self, path):
        self.path, self.records, self._chain = Path(path), [], 0
        whole = self._read() if self.path.is_file() else 0
        self._whole = whole

    def _read(self) -> int:
        """Fills ``records``; returns the length of the sound part in bytes."""
        data = self.path.read_bytes()
        at = 0
        while at < len(data):
            end = data.find(b"\n", at)
            record = None if end < 0 else self._parse(data[at:end])
            if record is None:
                if b"\n" in data[at : len(data) - 1]:
                    raise UserError(
                        f"{self.path} is damaged in line {len(self.records) + 1}; "
                        "restore it from a backup, or start again in an empty directory"
                    )
                break
            self.records.append(record)
            at = end + 1
        return at

    def _parse(self, line: bytes) -> dict | None:
        text, tab, checksum = line.rpartition(b"\t")
        chain = zlib.crc32(text, self._chain)
        if not tab or checksum != b"%08x" % chain:
            return None
        self._chain = chain
        return json.loads(text)

    def append(self, kind: str, **values) -> dict:
        """Adds a record; when it returns, the record survives a crash."""
        record = {"kind": kind, **values}
        text = json.dumps(record).encode()
        self._chain = zlib.crc32(text, self._chain)
        is_new = not self.path.exists()
        with self.path.open("r+b" if not is_new else "wb") as file:
            file.truncate(self._whole)  # a torn line of a killed writer
            file.seek(self._whole)
            file.write(text + b"\t%08x\n" % self._chain)
            file.flush()
            os.fsync(file.fileno())
            self._whole = file.tell()
        if is_new:
            sync_directory(self.path.parent)
        self.records.append(record)
        return record

    def last(self, kind: str) -> dict | None:
        """The latest record of a kind, or None."""
        return next((r for r in reversed(self.records) if r["kind"] == kind), None)


def sync_directory(path: Path) -> None:
    """Makes the names in a directory (new files, renames) survive a crash."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_synced(path: Path, data: bytes) -> None:
    """Replaces a small file, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    sync_directory(path.parent)
