"""The migration of a gallery to the new space: the recorded steps, and the next one.

    WORKDIR/upgrade.json   map, gallery and settings
    WORKDIR/plan/          what to re-embed, in order
    WORKDIR/gallery/       the new-space gallery (``gallery.partial`` until it is translated)
    WORKDIR/uncertainty.npy  log-variance of every translated vector, if there is one
    WORKDIR/quarantine.jsonl  unusable source vectors, if any
    WORKDIR/journal.jsonl  every finished step
    WORKDIR/followed.npy   rows of the plan that batches were taken from
    WORKDIR/pending.npy    new vectors of the batch that is being written

Every step can be repeated: after a kill at any moment, the same command finds the last recorded
step and repeats the next one, from the same rows in the same blocks, so that the resulting gallery
is byte-identical. New vectors are written to ``pending.npy`` before they go to the
gallery, because they may have been paid for; translated ones are computed again from the source.
"""

import dataclasses
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.runtime import threads
from fct_jax.runtime.progress import Bar
from fct_jax.storage.checksums import digest_of
from fct_jax.storage.files import Lock
from fct_jax.upgrade.checks import guards
from fct_jax.upgrade.galleries.base import NEW, TRANSLATED, Gallery
from fct_jax.upgrade.galleries.rows import empty_npy
from fct_jax.upgrade.migration.batches import Batches, write_array
from fct_jax.upgrade.migration.planning import Plan
from fct_jax.upgrade.migration.reading import (
    BLOCKS,
    Certificate,
    Reading,
    fill_bad,
    stamps_of,
    write_quarantine,
)
from fct_jax.upgrade.migration.translating import Translator, counted
from fct_jax.upgrade.migration.writing import ChunkWriter, Following
from fct_jax.upgrade.parts.bucket import target_for

_WAITING = 1 << 26  # bytes of translated vectors that may wait for the disk


class Migration(Batches):
    """The steps from a source gallery to a new-space one, each recorded when it is done."""

    def __init__(self, workdir, source: Gallery, mapping, batch_size: int, output=None, dtype=None):
        """Open the journal.

        Args:
          workdir, source, mapping, batch_size: the upgrade's directory and settings.
          output: URI of the new gallery, or None for ``WORKDIR/gallery``.
          dtype: name of the type of its vectors in `TYPES`; None: that of the source.
        """
        super().__init__(workdir, mapping)
        self.source, self.batch_size, self.chunk = source, batch_size, BLOCKS * batch_size
        self.target = target_for(source, self.workdir, output, dtype)
        unit = self.target.unit(mapping.metric)
        self.coding = self.target.coding
        self.translator = Translator(source, mapping, batch_size, unit, self.coding)
        self.meta = {}
        begin = self.progress.begin
        if begin is not None:
            self._check_same(begin)
            self.meta = begin["meta"]
            self.coding.take(self.meta, str(self.workdir))

    def begin(self, new_meta: dict) -> None:
        """Record the source and the map; ``new_meta`` describes the re-embedded vectors."""
        described = {**self.map.description.get("new_meta", {}), **new_meta}
        self.translator.learn()
        unit = self.map.unit_output or self.translator.unit
        known = {k: described[k] for k in ("model", "prefix") if k in described}
        meta = {
            "fingerprint": self.map.new_fingerprint or new_meta.get("fingerprint"),
            **known,
            # Rounding changes the lengths a little.
            **({"normalized": unit} if self.coding.type.exact else {}),
            "metric": self.map.metric,
            "transformation": self.map.fingerprint,
            "old_fingerprint": self.map.old_fingerprint or self.source.fingerprint,
            "count": len(self.source),
            "dimension": self.map.dim_out,
            **self.coding.to_meta(),
        }
        self.record("begin", **self.identity(), meta=meta)
        self.meta = meta

    def translate(self, certificate: Certificate | None = None) -> None:
        """Stream every row through the map, and give the gallery its final name.

        The pass checks the rows, and compares its checksum with ``certificate`` if there is one. A
        gallery that proves faulty or changes during the pass is not published.

        Raises:
          UserError: too many vectors are unusable, or files are damaged or were changed.
        """
        done = self.progress
        if done.ready:
            return
        stamps = stamps_of(self.source)
        if done.layout is None or done.layout["stamps"] != stamps:
            self.lay_out(stamps)
        self.target.open(self.map.dim_out)
        reading = Reading(self.source, None, done.rows, done.reading, done.bad)
        self._write_all(reading)
        found = reading.finish()
        if certificate is not None and found.content != certificate.content:
            raise UserError(
                f"{self.source.name} has changed since the plan was made: its vectors have "
                f"checksum "
                f"{found.content}, not {certificate.content}; move {self.workdir}/plan away, "
                "and plan again"
            )
        if not self.target.follows:
            self.target.publish()
        self.conclude(found)

    def lay_out(self, stamps: dict, files: bool = True, freed: int = 0) -> None:
        """Make the files of the translation at their full size; earlier ones are discarded.

        files: whether the gallery's own are among them; otherwise they are adopted later.
        freed: bytes on disk that become free while they are filled.
        """
        if files:
            self.target.create(self.map.dim_out, self.map.metric, freed)
            self.describe("translating")
        else:
            self.target.discard()
        if self.map.has_uncertainty:  # for the order of a later plan
            empty_npy(self.workdir / "uncertainty.npy", (len(self.source),), np.float32)
        self.record("layout", stamps=stamps)

    def conclude(self, found: Certificate) -> None:
        """Give the translated gallery its final name, and record that it is complete."""
        write_quarantine(self.workdir, self.source)
        self.describe("translated")
        self.target.complete()
        self.record("translated", checked=dataclasses.asdict(found))
        self.target.close()

    def _write_all(self, reading: Reading) -> None:
        """Translate and write the rows that are left; reading, computing and writing overlap."""
        first, count = self.progress.rows, len(self.source)
        blocks = threads.ahead(reading.blocks(self.batch_size))
        writer = ChunkWriter(self, first)
        with (
            Bar("translating", count, "vectors", first) as bar,
            Following(self.target, first) as files,
            ThreadPoolExecutor(1) as disk,
        ):
            writing = deque()
            for made in self.translator.stream(blocks):
                # Memory is bounded by the blocks that wait for the disk.
                while writing and len(writing) * made.vectors.nbytes > _WAITING:
                    bar.advance(files.advance(writing.popleft().result()))
                writing.append(disk.submit(writer.write, made))
            for written in writing:
                bar.advance(files.advance(written.result()))

    @property
    def certificate(self) -> Certificate | None:
        """Return the certificate of the translating pass; None before its end."""
        return Certificate(**self.progress.translated["checked"]) if self.progress.ready else None

    def uncertainty(self) -> np.ndarray | None:
        """Return the log-variances (N,) of a translated gallery; None if they are unknown."""
        path = self.workdir / "uncertainty.npy"
        if not self.progress.ready:
            return None
        if not self.map.has_uncertainty:
            return np.zeros(len(self.source), np.float32)
        if not path.is_file():
            return None
        found = np.load(path, allow_pickle=False)
        fill_bad(found, self.progress.bad)
        return found

    def scaled(self, vectors: np.ndarray) -> np.ndarray:
        return self.translator.scaled(vectors)

    def reopen(self) -> None:
        self.target.open(self.map.dim_out)

    def put(self, plan: Plan, places: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        self.target.put(plan.rows[places], self.coding.encode(vectors), NEW)
        return np.ones(len(places), bool)

    def keep_pending(self, vectors, start, stop, **places):
        scaled = self.scaled(vectors)
        try:
            self.coding.encode(scaled)
        except FloatingPointError:
            raise UserError(
                f"new vectors hold values too large for {self.coding.type.name}"
            ) from None
        super().keep_pending(vectors, start, stop, **places, **counted(self.coding.clipped(scaled)))

    def pairs(self, plan: Plan, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Translated again, because rounded vectors would seem to be worse answers.
        old = self.source.rows(plan.rows[places])
        return old, self.map.transform(guards.without(old, guards.sound(old)))[0]

    def keep_plan(self, plan: Plan) -> None:
        write_array(self.workdir / "followed.npy", plan.rows)

    def followed(self) -> Plan:
        rows = np.load(self.workdir / "followed.npy", allow_pickle=False)
        return Plan(self.source.ids[rows], rows, {})

    def roll_back(self, plan: Plan, to: int) -> None:
        done = self.progress
        if done.rolling_back is None:
            self.record("rollback", to=to)
        self.describe("migrating", done.reembedded_at(to), len(plan))
        places = self.leaving(to)
        rows = np.sort(plan.rows[places])
        chunks = rows // self.chunk
        with Bar("rolling back", len(rows), "vectors") as bar:
            for number in np.unique(chunks):
                start = int(number) * self.chunk
                stop = min(start + self.chunk, len(self.source))
                here = rows[chunks == number]
                self.target.put(here, self.translator.some(here, start, stop), TRANSLATED)
                bar.advance(len(here))
        if len(places):
            self.publish(plan, places)
        (self.workdir / "pending.npy").unlink(missing_ok=True)
        if to == 0:
            self.describe("translated")
        self.record("rolled_back", to=to)

    def publish(self, plan: Plan, places: np.ndarray) -> None:
        self.target.publish(plan.rows[places])

    def describe(self, state: str, reembedded: int | None = None, planned: int = 0) -> None:
        """Write the gallery's ``meta.json``: its space and its progress."""
        counts = {} if reembedded is None else {"reembedded": reembedded, "planned": planned}
        self.target.describe({**self.meta, "state": state, **counts})

    def identity(self) -> dict:
        """Return the facts that must not change when work resumes."""
        values = np.ascontiguousarray(self.source.rows(self.source.spread_rows(64)))
        return {
            "gallery_ids": digest_of(self.source.ids),
            "gallery_sample": f"{zlib.crc32(values.tobytes()):08x}",
            "form": self.source.form,
            "map": self.map.fingerprint,
            "batch_size": self.batch_size,
            "dtype": self.coding.type.name,
        }

    def _check_same(self, begin: dict) -> None:
        ours = self.identity()
        differ = [
            f"{k}: {begin[k]!r} there, {v!r} now"
            for k, v in ours.items()
            if begin.get(k, v) != v  # earlier versions recorded no dtype
        ]
        if differ:
            raise UserError(
                f"{self.workdir} holds an upgrade of another gallery, map or batch size "
                f"({'; '.join(differ)}); give the unchanged gallery to resume, or choose another "
                "directory, where new files can be a gallery of their own"
            )


def lock_of(workdir) -> Lock:
    """Return the lock of an upgrade's directory, which one process at a time may change."""
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    return Lock(workdir / "upgrade", f"another process is working in {workdir}")
