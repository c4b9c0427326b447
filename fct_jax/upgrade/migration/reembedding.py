"""Taking the new model's vectors for a plan's items, in batches that are checked first."""

import json
import time

import numpy as np

from fct_jax.errors import UserError
from fct_jax.runtime.progress import Bar, console
from fct_jax.storage.files import write_synced
from fct_jax.storage.ids import first_ten
from fct_jax.upgrade.checks.guards import ask_map, check_batch, sound
from fct_jax.upgrade.checks.known_answers import check_known_answers
from fct_jax.upgrade.galleries.quarantine import MOST
from fct_jax.upgrade.migration.batches import Batches
from fct_jax.upgrade.migration.planning import Plan
from fct_jax.upgrade.migration.reembed import NewVectors

_FEW = 16  # known answers of a smaller batch are not evidence
_LOOKED_AT = 256  # items of a batch that are checked


class Reembedding:
    """One run's share of re-embedding the items of a plan.

    Items that cannot be embedded stay translated and are listed in ``unembedded.jsonl``; the next
    run asks for them again. They never end the plan.
    """

    def __init__(self, work: Batches, plan: Plan, new: NewVectors, unchecked: bool):
        """Take new vectors for translated items.

        unchecked: also take batches whose known answers do not confirm that they belong to their
          ids.
        """
        self._work, self._plan, self._new, self._unchecked = work, plan, new, unchecked
        self._error: UserError | None = None

    def run(self, batch_items: int, max_batches: int | None) -> None:
        """Resume where work stopped.

        Args:
          batch_items: number of items that are asked for, checked and recorded together.
          max_batches: stop after this number of batches; None: go to the end of the plan.

        Raises:
          UserError: a batch is faulty, and nothing of it is written; or no more vectors are
            available, and the earlier ones are written.
        """
        work, plan, progress = self._work, self._plan, self._work.progress
        work.reopen()
        if progress.rolling_back is not None:
            # A rollback was interrupted; it is finished first.
            work.roll_back(work.followed(), progress.rolling_back["to"])
        work.follow(plan)
        earlier, sample = progress.spent, (self._new.spending.items, self._new.spending.tokens)
        self._record_spent(*sample)  # the cost of known answers
        self._new.spending.add(*earlier)
        last = len(progress.stops) + (np.inf if max_batches is None else max_batches)
        if progress.items < len(plan):
            work.describe("migrating", progress.reembedded, len(plan))  # before the first new one
        again = self._failed_before()
        with Bar("re-embedding", len(plan), "items", progress.items) as bar:
            if work.has_pending() and len(progress.stops) < last:
                bar.advance(work.put_pending(plan, time.monotonic()))
                again = self._failed_before()
            while len(again) and len(progress.stops) < last and self._error is None:
                self._retry(again[:batch_items])
                again = again[batch_items:]
            while progress.items < len(plan) and len(progress.stops) < last and not self._error:
                start = progress.items
                bar.advance(self._next(start, min(start + batch_items, len(plan))))
        self._finish()
        if self._error is not None:
            raise self._error

    def _failed_before(self) -> np.ndarray:
        """Return the places of failed items for which there may now be vectors."""
        places = np.array(sorted(self._work.progress.failed), np.int64)
        return places[self._new.has(self._plan.ids[places])]

    def _retry(self, places: np.ndarray) -> None:
        """Ask again for items that failed in an earlier run."""
        begun, items = time.monotonic(), self._work.progress.items
        vectors, found, _ = self._asked(places)
        if len(found):
            self._work.keep_pending(vectors, items, items, retried=places[found].tolist())
            self._work.put_pending(self._plan, begun)

    def _next(self, start: int, stop: int) -> int:
        """Take the next batch of the plan; return the number of processed items."""
        begun, places = time.monotonic(), np.arange(start, stop)
        vectors, found, asked = self._asked(places)
        if not asked:
            return 0
        ids = self._plan.ids[places[:asked]]
        if not len(found) and asked >= _FEW and self._new.has(ids).any():
            # Such a batch is not an exception: the plan would end with nothing re-embedded.
            raise UserError(f"{self._new.name} could embed none of {first_ten(ids)}")
        failed = np.delete(places[:asked], found).tolist()
        some = {"failed": failed} if failed else {}
        self._work.keep_pending(vectors, start, start + asked, **some)
        return self._work.put_pending(self._plan, begun)

    def _asked(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Return (vectors, indices of their places, number of places that were answered).

        If an error leaves vectors to keep, it is raised at the end of the run.
        """
        new, ids = self._new, self._plan.ids[places]
        before = new.spending.items, new.spending.tokens
        try:
            answer = new(ids)
        finally:
            self._record_spent(new.spending.items - before[0], new.spending.tokens - before[1])
        self._error = answer.error
        vectors, found = self._usable(places, answer.vectors, answer.found)
        return vectors, found, answer.asked

    def _record_spent(self, items: int, tokens: int) -> None:
        if items or tokens:
            self._work.record("spent", items=items, tokens=tokens)

    def _usable(self, places, vectors, found) -> tuple[np.ndarray, np.ndarray]:
        """Return the usable vectors and the indices of their places; raises UserError."""
        work, new, ids = self._work, self._new, self._plan.ids[places]
        if not len(found):
            return np.empty((0, work.map.dim_out), np.float32), found
        if vectors.ndim == 2 and vectors.dtype.kind == "f":
            good = sound(vectors.astype(np.float32, copy=False))
            if np.sum(~good) <= MOST * len(ids):  # the model fails on a few; more are a fault
                vectors, found = vectors[good], found[good]
        vectors = check_batch(ids[found], vectors, work.map.dim_out, new.meta, new.name)
        if len(found) >= _FEW and not self._unchecked:
            self._check_answers(places[found], vectors)
        return vectors, found

    def _check_answers(self, places: np.ndarray, vectors: np.ndarray) -> None:
        """Raise UserError if the vectors are not those of the items in these places."""
        work, count = self._work, min(len(places), _LOOKED_AT)
        some = np.unique(np.linspace(0, len(places) - 1, count).astype(np.int64))
        what = f"batch {len(work.progress.stops) + 1} of {self._new.name}"
        old, translated = work.pairs(self._plan, places[some])
        good = sound(old)
        if good.sum() >= _FEW:
            new = vectors[some[good]]
            # The first items of a plan have the largest uncertainty.
            answer = ask_map(work.map, old[good], translated[good], new, work.map.metric, hard=True)
            check_known_answers(answer, what)

    def _finish(self) -> None:
        """Make the new vectors visible to readers, and list the items that failed."""
        work, plan, progress = self._work, self._plan, self._work.progress
        places = np.union1d(np.arange(progress.published, progress.items), progress.retried)
        if len(places):
            work.publish(plan, places.astype(np.int64))
            work.record("published", items=progress.items)
        state = "finished" if progress.items == len(plan) else "migrating"
        work.describe(state, progress.reembedded, len(plan))
        path, failed = work.workdir / "unembedded.jsonl", sorted(progress.failed)
        if failed:
            lines = [json.dumps({"id": plan.ids[place].item()}) + "\n" for place in failed]
            write_synced(path, "".join(lines).encode())
            console.print(
                f"{first_ten(plan.ids[failed])} could not be embedded and stay translated "
                f"(listed in {path}); the next run asks for them again",
                soft_wrap=True,
            )
        else:
            path.unlink(missing_ok=True)
