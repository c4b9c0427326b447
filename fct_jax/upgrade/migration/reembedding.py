"""Taking the new model's vectors for a plan's items, batch by batch, each checked first."""

import time

import numpy as np

from fct_jax.runtime.progress import Bar
from fct_jax.upgrade.checks.guards import ask_map, check_batch
from fct_jax.upgrade.checks.known_answers import check_known_answers
from fct_jax.upgrade.migration.planning import Plan
from fct_jax.upgrade.migration.reembed import NewVectors
from fct_jax.upgrade.migration.steps import Migration

_FEW = 16  # a smaller batch shows nothing by its known answers
_LOOKED_AT = 256  # items of a batch


def re_embed(
    work: Migration,
    plan: Plan,
    new: NewVectors,
    batch_items: int,
    max_batches: int | None,
    unchecked: bool,
) -> None:
    """Put the new vectors of a plan's items into a translated gallery, from where work stopped.

    Args:
      work: the migration.
      plan, new: what to re-embed, and where its new vectors come from.
      batch_items: items that are asked for, checked and recorded together.
      max_batches: stop after so many; None: go to the end of the plan.
      unchecked: take batches also where known answers do not show that they belong to their ids.

    Raises:
      UserError: a batch is unsound; nothing of it is written.
    """
    work.target.open(work.map.dim_out)
    if work.progress.rolling_back is not None:
        # Killed on the way back, which is gone to its end first.
        work.roll_back(work.followed(), work.progress.rolling_back["to"])
    work.follow(plan)
    last = len(work.progress.stops) + (np.inf if max_batches is None else max_batches)
    if work.progress.items < len(plan):
        work.describe("migrating", work.progress.items, len(plan))  # before the first new vector
    with Bar("re-embedding", len(plan), "items", work.progress.items) as bar:
        while work.progress.items < len(plan) and len(work.progress.stops) < last:
            begun, start = time.monotonic(), work.progress.items
            if work.has_pending():
                stop, vectors = work.progress.pending["stop"], None
            else:
                stop = min(start + batch_items, len(plan))
                vectors = _new_vectors(work, plan, new, start, stop, unchecked)
            work.put_batch(plan, vectors, start, stop, begun)
            bar.advance(stop - start)
    done = work.progress.items
    if done > work.progress.published:
        work.publish(plan.rows[work.progress.published : done])
        work.record("published", items=done)
    work.describe("finished" if done == len(plan) else "migrating", done, len(plan))


def _new_vectors(
    work: Migration, plan: Plan, new: NewVectors, start: int, stop: int, unchecked: bool
) -> np.ndarray:
    """Return the new model's vectors of a batch, which are sound and those of these ids."""
    ids, rows = plan.ids[start:stop], plan.rows[start:stop]
    vectors = check_batch(ids, new(ids), work.map.dim_out, new.meta, new.name)
    if len(ids) >= _FEW and not unchecked:
        some = np.unique(np.linspace(0, len(ids) - 1, min(len(ids), _LOOKED_AT)).astype(np.int64))
        translated = work.target.vectors.get(rows[some])
        what = f"batch {len(work.progress.stops) + 1} of {new.name}"
        old = work.source.rows(rows[some])
        # The first of a plan are those that the map is least sure of.
        answer = ask_map(work.map, old, translated, vectors[some], work.map.metric, hard=True)
        check_known_answers(answer, what)
    return vectors
