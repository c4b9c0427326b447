"""Batches of re-embedded items, each recorded when it is done, for files and for stores."""

import abc
import time
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.runtime.progress import console
from fct_jax.storage import checksums
from fct_jax.storage.files import replace_synced
from fct_jax.upgrade.migration.journal import Journal, Progress


class Batches(abc.ABC):
    """The side of an upgrade that `reembedding.Reembedding` fills, batch by batch.

    New vectors are written to ``pending.npy`` before they go to their place, because they may
    have been paid for. A plan has ``ids``, a ``digest`` and a length; an item is identified by its
    place in the plan.

    Attributes:
      workdir: the upgrade's directory.
      map: the map.
      journal, progress: the recorded steps, and the progress that they amount to.
    """

    def __init__(self, workdir, mapping, progress: type[Progress] = Progress):
        self.workdir, self.map = Path(workdir), mapping
        self.journal = Journal(self.workdir / "journal.jsonl")
        self.progress = progress(self.journal.records)

    @abc.abstractmethod
    def reopen(self) -> None:
        """Open the destination of the vectors."""

    @abc.abstractmethod
    def put(self, plan, places: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """Put the new vectors (n, D) of items; return (n,) bool, False to ask for one again."""

    @abc.abstractmethod
    def pairs(self, plan, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the old (n, do) and translated (n, D) vectors of items; zeros mean unknown."""

    @abc.abstractmethod
    def keep_plan(self, plan) -> None:
        """Keep the plan that is followed, independently of later plans."""

    @abc.abstractmethod
    def followed(self):
        """Return the plan whose batches were taken, independently of later plans."""

    @abc.abstractmethod
    def roll_back(self, plan, to: int) -> None:
        """Give the items of all batches after batch ``to`` their translated vectors back."""

    @abc.abstractmethod
    def scaled(self, vectors: np.ndarray) -> np.ndarray:
        """Return vectors in the form in which they are stored."""

    def publish(self, plan, places: np.ndarray) -> None:  # noqa: B027 (most readers see it all)
        """Make the vectors that were put for some items visible to readers."""

    def describe(self, state: str, reembedded: int | None = None, planned: int = 0) -> None:  # noqa: B027
        """Describe the upgrade's progress for readers."""

    def record(self, kind: str, **values) -> None:
        """Record a finished step; it is in the journal when this returns."""
        self.progress.add(self.journal.append(kind, **values))

    def follow(self, plan) -> None:
        """Record the plan that batches follow. Raises UserError if another one is followed."""
        done = self.progress
        if done.plan is not None and done.plan["digest"] == plan.digest:
            return
        if done.items or done.pending:
            raise UserError(
                f"{self.workdir} follows another plan, and {done.items} of its items are done; "
                "roll back to batch 0 first"
            )
        self.keep_plan(plan)
        self.record("plan", digest=plan.digest, items=len(plan))

    def keep_pending(self, vectors: np.ndarray, start: int, stop: int, **places) -> None:
        """Store the new vectors of a batch before any of them goes to its place.

        Args:
          vectors: (n, D) of the items from start to stop of the plan, without the failed ones,
            followed by those of the retried items.
          start, stop: the range of items in the plan.
          places: ``failed`` and ``retried``, places of items in the plan, if there are any.
        """
        path, number = self.workdir / "pending.npy", len(self.progress.stops) + 1
        write_array(path, self.scaled(vectors))
        checksum = _checksum(path)
        self.record("pending", batch=number, start=start, stop=stop, checksum=checksum, **places)

    def put_pending(self, plan, begun: float) -> int:
        """Put the pending vectors in their place; return the number of processed items.

        begun: start of the work on the batch, by ``time.monotonic``.
        """
        pending, path = self.progress.pending, self.workdir / "pending.npy"
        batch = {key: pending[key] for key in pending if key not in ("kind", "checksum")}
        items = np.arange(batch["start"], batch["stop"])
        items = items[~np.isin(items, batch.get("failed", []))]
        places = np.concatenate([items, batch.get("retried", [])]).astype(np.int64)
        if len(places):
            taken = self.put(plan, places, np.load(path, allow_pickle=False))
            again = set(places[~taken].tolist())
            if again:
                batch["failed"] = sorted({*batch.get("failed", []), *again & set(items.tolist())})
                batch["retried"] = [p for p in batch.get("retried", []) if p not in again]
        self.record("batch", **batch, seconds=round(time.monotonic() - begun, 3))
        path.unlink(missing_ok=True)
        self.describe("migrating", self.progress.reembedded, len(plan))
        return batch["stop"] - batch["start"]

    def has_pending(self) -> bool:
        """Return whether the vectors of the next batch are already stored."""
        pending, path = self.progress.pending, self.workdir / "pending.npy"
        return bool(pending and path.is_file() and _checksum(path) == pending["checksum"])

    def return_to(self, to: int) -> int:
        """Roll back to the end of a batch; return the number of items that stay re-embedded.

        Raises UserError if there is no such batch.
        """
        if self.progress.plan is None:
            raise UserError(f"nothing to roll back in {self.workdir}: no item is re-embedded")
        plan = self.followed()
        self.reopen()
        if self.progress.rolling_back is not None:
            self.roll_back(plan, self.progress.rolling_back["to"])
        if not 0 <= to <= len(self.progress.stops):
            raise UserError(
                f"the number of the batch to roll back to must be between 0 and "
                f"{len(self.progress.stops)}, not {to}"
            )
        self.roll_back(plan, to)
        left = self.progress.reembedded
        console.print(
            f"{self.workdir}: back at batch {to}; {left:,} of {len(plan):,} items are re-embedded",
            soft_wrap=True,
        )
        return left

    def leaving(self, to: int) -> np.ndarray:
        """Return the places of the items that a rollback to a batch takes back."""
        done = self.progress
        first = done.stops[to - 1] if to else 0
        last = max(done.items, done.published, done.pending["stop"] if done.pending else 0)
        return np.union1d(np.arange(first, last), done.since(to)).astype(np.int64)


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file, completely or not at all."""
    replace_synced(path, lambda file: np.save(file, array))


def _checksum(path: Path) -> int:
    return int(checksums.of_file(path), 16)
