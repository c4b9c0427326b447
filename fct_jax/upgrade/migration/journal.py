"""An append-only journal: records survive crashes, and damage is noticed."""

import json
import os
import zlib
from pathlib import Path

from fct_jax.errors import UserError
from fct_jax.storage.files import sync_directory


class Journal:
    """Records, one per line: JSON, a tab, and a checksum of it and of all lines before.

    A record counts once ``append`` has returned; it is then on disk. If the writer was killed, the
    last line may be incomplete; it is dropped. Damage anywhere else is an error.

    Attributes:
      records: all records in order, each a dict with ``kind``.
    """

    def __init__(self, path):
        self.path, self.records, self._chain = Path(path), [], 0
        whole = self._read() if self.path.is_file() else 0
        self._whole = whole

    def _read(self) -> int:
        """Fill ``records``; return the length of the sound part in bytes."""
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
        """Add a record; when it returns, the record survives a crash."""
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


class Progress:
    """The progress that a journal records.

    Attributes:
      begin: the record that names source and map, or None.
      layout: the record of the files that were laid out, or None.
      rows: number of translated rows.
      reading: state from which the pass over the source resumes, as in `Reading`.
      bad: [row, reason] of each unusable vector of the rows.
      clipped: number of values outside the scales of the stored type.
      translated: the record that all rows are translated and the gallery has its name, or None.
      stops: for every finished batch, the number of the plan's items that are done at its end.
      failed: places in the plan of items that could not be embedded so far; they stay translated.
      spent: (items, tokens) spent on new vectors.
      pending: the record of a batch whose vectors are stored but not all in the gallery, or None.
      rolling_back: the record of an unfinished rollback, or None.
      plan: the record of the plan that is followed, or None.
      published: number of the plan's items that the Parquet files hold.
    """

    def __init__(self, records: list[dict]):
        self.begin = self.pending = self.rolling_back = self.plan = None
        self.layout = self.translated = self.reading = None
        self.rows, self.bad, self._clipped = 0, [], 0
        self.published = 0
        self.stops: list[int] = []
        self.spent = (0, 0)
        self._batches: list[dict] = []
        self.retried: list[int] = []  # places that readers of the gallery do not see yet
        for record in records:
            self.add(record)

    def add(self, record: dict) -> None:
        """Add one more step."""
        getattr(self, f"_{record['kind']}")(record)

    @property
    def ready(self) -> bool:
        """Return whether the gallery is translated."""
        return self.translated is not None

    @property
    def items(self) -> int:
        """Return the number of the plan's items, from the first on, that are processed."""
        return self.stops[-1] if self.stops else 0

    @property
    def failed(self) -> set[int]:
        return self._failed_at(len(self._batches))

    def _failed_at(self, batch: int) -> set[int]:
        found: set[int] = set()
        for record in self._batches[:batch]:
            found.update(record.get("failed", ()))
            found.difference_update(record.get("retried", ()))
        return found

    def reembedded_at(self, batch: int) -> int:
        """Return the number of re-embedded items at the end of a batch."""
        return (self.stops[batch - 1] if batch else 0) - len(self._failed_at(batch))

    @property
    def reembedded(self) -> int:
        """Return the number of re-embedded items."""
        return self.reembedded_at(len(self.stops))

    @property
    def clipped(self) -> int:
        return self._clipped + sum(record.get("clipped", 0) for record in self._batches)

    def since(self, batch: int) -> list[int]:
        """Return the places of items retried after ``batch``, including the pending batch."""
        later = [*self._batches[batch:], *([self.pending] if self.pending else [])]
        return [place for record in later for place in record.get("retried", ())]

    def _begin(self, record):
        self.begin = record

    def _layout(self, record):
        self.layout = record
        self.rows, self.reading, self.bad, self._clipped = 0, None, [], 0

    def _chunk(self, record):
        self.rows, self.reading = record["stop"], record["reading"]
        self.bad += record.get("bad", [])
        self._clipped += record.get("clipped", 0)

    def _translated(self, record):
        self.translated = record

    def _plan(self, record):
        self.plan = record

    def _pending(self, record):
        self.pending = record

    def _batch(self, record):
        self.stops.append(record["stop"])
        self._batches.append(record)
        self.retried += record.get("retried", [])
        self.pending = None

    def _spent(self, record):
        self.spent = (self.spent[0] + record["items"], self.spent[1] + record["tokens"])

    def _published(self, record):
        self.published, self.retried = record["items"], []

    def _rollback(self, record):
        self.rolling_back = record

    def _rolled_back(self, record):
        del self.stops[record["to"] :], self._batches[record["to"] :]
        self.pending = self.rolling_back = None
        self.published = min(self.published, self.items)
