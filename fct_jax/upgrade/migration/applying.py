"""Carrying an upgrade out: ``upgrade apply``, ``upgrade status``, ``upgrade rollback``."""

import contextlib
import time
from pathlib import Path

import numpy as np

from fct_jax import config as configs
from fct_jax.errors import UserError
from fct_jax.runtime.progress import Bar
from fct_jax.upgrade.checks.guards import check_batch
from fct_jax.upgrade.checks.known_answers import check_known_answers
from fct_jax.upgrade.galleries.base import Gallery, open_gallery
from fct_jax.upgrade.migration.planning import (
    Plan,
    check_settings,
    configured,
    make_plan,
    open_probe,
    opened,
    read_plan,
)
from fct_jax.upgrade.migration.preflight import check_before, check_new_vectors
from fct_jax.upgrade.migration.reembed import NewVectors, open_reembed
from fct_jax.upgrade.migration.status import status, status_command
from fct_jax.upgrade.migration.steps import Migration, lock_of

__all__ = [
    "apply",
    "apply_command",
    "rollback",
    "rollback_command",
    "status",
    "status_command",
]

_FEW = 16  # a smaller batch shows nothing by its known answers
_LOOKED_AT = 256  # items of a batch


def apply_command(config, workdir) -> Gallery:
    """The command: `apply` with the values of ``fct_jax.config.upgrade``."""
    configs.check(config)
    made = _apply(config, Path(workdir), *opened(config), config.apply.reembed)
    print(f"{made.name}: {len(made):,} vectors, {made.meta['state']}")
    return made


def apply(map, gallery, workdir, *, reembed=None, **settings) -> Gallery:
    """Translates the gallery and re-embeds the plan's items, from where the last run stopped.

    Args:
      map: a Map or its directory.
      gallery: path of the old gallery, as of `open_gallery`; it is never changed.
      workdir: the upgrade's directory; a plan is made in it where there is none.
      reembed: an EmbeddingSet's directory, "module:function", or a function from ids (n,) to
        vectors (n, D); None: translate only.
      settings: probe, batch_size, batch_items, max_batches, unchecked, seed, id_column,
        vector_column, as in ``fct_jax.config.upgrade``.

    Returns:
      The new-space gallery, ``WORKDIR/gallery``.

    Raises:
      UserError: whatever does not fit, before anything is written; a batch that is not sound,
        before anything of it is written.
    """
    config = configured("apply", map, gallery, settings)
    return _apply(config, Path(workdir), *opened(config, map), reembed)


def _apply(config, workdir: Path, gallery: Gallery, map, reembed) -> Gallery:
    check_settings(config)
    if config.apply.batch_items < 1:
        raise UserError(
            f"config.apply.batch_items must be 1 or more, not {config.apply.batch_items}"
        )
    if config.apply.max_batches < 0:
        raise UserError(
            f"config.apply.max_batches must be 0 or more, not {config.apply.max_batches}"
        )
    if workdir.resolve().is_relative_to(gallery.path.resolve()):
        raise UserError(
            f"{workdir} is in the gallery, which is never changed; give another --workdir"
        )
    new = open_reembed(reembed) if reembed else None
    with lock_of(workdir):
        work = Migration(workdir, gallery, map, config.batch_size)
        if new is None and work.progress.stops:
            raise UserError(
                f"{workdir} has {work.progress.items} items re-embedded; "
                "say where new vectors come from (config.apply.reembed) to go on"
            )
        probe = open_probe(config, map)
        if work.progress.begin is None:
            check_before(gallery, map, new, probe, unchecked=config.apply.unchecked)
        elif new is not None and not work.progress.stops:
            check_new_vectors(gallery, map, new)  # until now it was only translated
        plan = None
        if new is not None:
            if not (workdir / "plan").is_dir():
                make_plan(config, workdir, gallery, map, probe)
            plan = read_plan(workdir, gallery, map)
            new.check_covers(plan.ids)
        if work.progress.begin is None:
            work.begin(new.meta if new else {})
        with contextlib.closing(work.target):
            work.translate()
            if plan is not None:
                _reembed(work, plan, new, config.apply)
    return open_gallery(
        workdir / "gallery",
        id_column=config.id_column,
        vector_column=config.vector_column,
        unfinished=True,
    )


def _reembed(work: Migration, plan: Plan, new: NewVectors, config) -> None:
    work.target.open(work.map.dim_out)
    if work.progress.rolling_back is not None:
        # Killed on the way back, which is gone to its end first.
        work.roll_back(work.followed(), work.progress.rolling_back["to"])
    work.follow(plan)
    last = len(work.progress.stops) + (config.max_batches or np.inf)
    if work.progress.items < len(plan):
        work.describe("migrating", work.progress.items, len(plan))  # before the first new vector
    with Bar("re-embedding", len(plan), "items", work.progress.items) as bar:
        while work.progress.items < len(plan) and len(work.progress.stops) < last:
            begun, start = time.monotonic(), work.progress.items
            if work.has_pending():
                stop, vectors = work.progress.pending["stop"], None
            else:
                stop = min(start + config.batch_items, len(plan))
                vectors = _new_vectors(work, plan, new, start, stop, config.unchecked)
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
    """The new model's vectors of a batch, which are sound and those of these ids."""
    ids, rows = plan.ids[start:stop], plan.rows[start:stop]
    vectors = check_batch(ids, new(ids), work.map.dim_out, new.meta, new.name)
    if len(ids) >= _FEW and not unchecked:
        some = np.unique(np.linspace(0, len(ids) - 1, min(len(ids), _LOOKED_AT)).astype(np.int64))
        translated = work.target.vectors.get(rows[some])
        what = f"batch {len(work.progress.stops) + 1} of {new.name}"
        check_known_answers(translated, vectors[some], work.map.metric, what)
    return vectors


def rollback_command(config, workdir) -> int:
    """The command: `rollback` with the values of ``fct_jax.config.upgrade``."""
    configs.check(config)
    return _rollback(config, Path(workdir), *opened(config), config.rollback_to)


def rollback(map, gallery, workdir, to: int, **settings) -> int:
    """Returns to the end of batch ``to``: the items of later ones are translated ones again.

    Translated vectors are computed again from the source, with the same map in the same blocks;
    new vectors are not kept: they are asked for again when `apply` goes on.

    Args:
      map, gallery, workdir, settings: as of `apply`.
      to: number of a batch; 0: none is re-embedded.

    Returns:
      The number of items that stay re-embedded. Raises UserError where there is no such batch.
    """
    config = configured("apply", map, gallery, settings)
    return _rollback(config, Path(workdir), *opened(config, map), to)


def _rollback(config, workdir: Path, gallery: Gallery, map, to: int) -> int:
    with lock_of(workdir):
        work = Migration(workdir, gallery, map, config.batch_size)
        if not work.progress.ready:
            raise UserError(f"nothing to roll back in {workdir}: the gallery is not translated yet")
        if work.progress.plan is None:
            raise UserError(f"nothing to roll back in {workdir}: no item is re-embedded")
        plan = work.followed()
        with contextlib.closing(work.target):
            work.target.open(map.dim_out)
            if work.progress.rolling_back is not None:
                work.roll_back(plan, work.progress.rolling_back["to"])
            if not 0 <= to <= len(work.progress.stops):
                raise UserError(
                    f"config.rollback_to must be the number of a batch, "
                    f"0 … {len(work.progress.stops)}, not {to}"
                )
            work.roll_back(plan, to)
        left = work.progress.items
    print(f"{workdir}: back at batch {to}; {left:,} of {len(plan):,} items are re-embedded")
    return left
