"""Fill a sibling from its source while the application writes to the source, then switch.

    source = open_store("qdrant://localhost:6333/items")
    target = source.sibling(768, {"fingerprint": new_model})
    migrate(source, target, lambda v: h.transform(v)[0], "work/journal.jsonl")

Memory holds one batch; the journal holds the last finished id.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.storage.files import Lock
from fct_jax.upgrade.migration.journal import Journal
from fct_jax.upgrade.stores.base import TRANSLATED, Batch, Store
from fct_jax.upgrade.stores.screen import Screen

MOST_PASSES = 20


@dataclasses.dataclass(frozen=True)
class Caught:
    """The rows that catching up transferred.

    Attributes:
      written: number of rows that were missing or had changed.
      deleted: number of rows whose source row is gone.
      passes: number of passes over the source.
      settled: whether the last pass found nothing.
    """

    written: int
    deleted: int
    passes: int
    settled: bool


def copied(source: Store, target: Store, transform, screen: Screen, done=None, *, limit=None):
    """Write the rows of the source that follow the last finished one, in bulk, batch by batch.

    Args:
      transform: maps the vectors of a batch, (n, D old) → (n, D new).
      done: the latest record of an earlier run, or None.
      limit: rows in a batch; None: a number that suits the dimension.

    Yields a record per batch, which must be stored before the next one is requested: the last id,
    the number of rows so far, and the rows set aside.
    """
    done = done or {"last": None, "rows": 0}
    after, rows = done["last"], done["rows"]
    limit = limit or min(source.batch_rows, target.batch_rows)
    while len(batch := source.read(after, limit)):
        sound, bad = screen.take(batch)
        if len(sound):
            _write(target, sound, transform)
        after, rows = batch.last, rows + len(batch)
        yield {"last": after, "rows": rows, **({"bad": bad} if bad else {})}


def copy(source: Store, target: Store, transform, journal: Journal, *, limit=None, screen=None):
    """Run `copied`, writing a record ``copied`` to the journal for each batch.

    Returns the number of rows that this and earlier calls have read.
    """
    screen, done = screen or Screen(source), _last(journal, "copied")
    for record in copied(source, target, transform, screen, done, limit=limit):
        done = journal.append("copied", **record)
    return 0 if done is None else done["rows"]


def catch_up(
    source: Store,
    target: Store,
    transform,
    *,
    passes: int = MOST_PASSES,
    limit=None,
    screen=None,
    before: Callable[[Batch], None] | None = None,
) -> Caught:
    """Transfer the application's inserts, changes and deletes until a pass finds none.

    Rows that the application itself wrote in the target are kept. Each pass checks every row of
    the source; only rows that differ are translated and written, after a call of ``before`` with
    them.
    """
    screen = screen or Screen(source)
    written = deleted = 0
    for number in range(1, passes + 1):
        found, after = 0, None
        while len(batch := source.read(after, limit, missing_in=target)):
            sound, bad = screen.take(batch)
            if len(sound):
                if before is not None:
                    before(sound)
                found += int(_write(target, sound, transform).sum())
            if bad:  # such a row may have had a usable vector before
                deleted += delete_ours(target, [one for one, _ in bad])
            after = batch.last
        gone, after = _delete_orphans(source, target, limit), None
        written, deleted = written + found, deleted + gone
        if not found and not gone:
            return Caught(written, deleted, number, True)
    return Caught(written, deleted, passes, False)


def migrate(
    source: Store,
    target: Store,
    transform,
    journal,
    *,
    check: Callable[[Store, Store], None] | None = None,
    calibration: str | None = None,
    switch: bool = True,
    limit: int | None = None,
) -> dict:
    """Copy, catch up, build the index, check, switch the pointer and catch up once more.

    The same call resumes where a killed one stopped. Until it returns, the application may continue
    to insert, change and delete rows in the source, and may write its own rows in the target.

    Args:
      journal: path of the journal; its folder must exist.
      check: raises UserError if the target must not be switched to.
      calibration: path of the calibration that half-migrated searches need, for the pointer.
      switch: whether to switch the pointer.

    Returns the pointer's value. Raises UserError if the journal belongs to another migration, if a
    server becomes unavailable, or if the application keeps writing to the source after the switch.
    """
    with Lock(Path(journal)), one_line(source):
        journal = Journal(journal)
        what = {"source": str(source.uri), "target": str(target.uri)}
        begun = _last(journal, "begin") or journal.append("begin", **what)
        if {name: begun[name] for name in what} != what:
            raise UserError(
                f"{journal.path} belongs to the migration of {begun['source']} to "
                f"{begun['target']}; give another journal"
            )
        pointer = source.pointer()
        if not _last(journal, "switched"):
            copy(source, target, transform, journal, limit=limit)
            journal.append("caught_up", **vars(catch_up(source, target, transform, limit=limit)))
            if not _last(journal, "indexed"):
                target.build_index()
                journal.append("indexed")
            # Building takes long for large stores; rows written meanwhile are transferred now.
            journal.append("caught_up", **vars(catch_up(source, target, transform, limit=limit)))
            if check:
                check(source, target)
            if not switch:
                return pointer.current()
            switch_to(pointer, target, calibration)
            journal.append("switched", generation=pointer.current()["generation"])
        last = catch_up(source, target, transform, limit=limit)
        journal.append("caught_up", **vars(last))
        if not last.settled:
            raise UserError(
                f"{source.uri} still changes after {last.passes} passes; let the application "
                "write to the new store, and repeat the command"
            )
        return pointer.current()


@contextlib.contextmanager
def one_line(store: Store):
    """Convert errors of a store's client, within a context, to a one-line UserError."""
    try:
        yield
    except store.errors as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{store.uri}: {reason}; fix this and repeat the command to resume"
        ) from error


def _last(journal: Journal, kind: str) -> dict | None:
    """Return the latest record of a kind."""
    return next((r for r in reversed(journal.records) if r["kind"] == kind), None)


def switch_to(pointer, target: Store, calibration) -> None:
    """Switch to the target, or add a calibration, unless a killed run has already done so."""
    now = pointer.current()
    there = now["store"] == str(target.uri)
    if not there or calibration not in (None, now["calibration"]):
        to = {"store": str(target.uri), "fingerprint": target.meta.get("fingerprint")}
        pointer.switch({**to, "calibration": calibration}, now["generation"])


def _write(target: Store, batch, transform) -> np.ndarray:
    vectors = np.asarray(transform(batch.vectors), np.float32)
    if vectors.shape != (len(batch), target.dim):
        raise UserError(
            f"the map gave {vectors.shape} for {len(batch)} vectors, but {target.uri} takes "
            f"{target.dim} dimensions"
        )
    return target.write(batch.ids, vectors, TRANSLATED, batch.tokens, batch.extra)


def delete_ours(target: Store, ids: list) -> int:
    """Delete the rows among ``ids`` that an upgrade has written; return their number."""
    ours = [one for one, (_, seen) in target.states(ids).items() if seen is not None]
    if ours:
        target.delete(ours)
    return len(ours)


def _delete_orphans(source: Store, target: Store, limit) -> int:
    gone, after = 0, None
    while True:
        ids, after = target.orphans(source, after, limit)
        if not len(ids):
            return gone
        target.delete(ids)
        gone += len(ids)
