"""Status of a store's upgrade, from its journal, the stores' counts, the pointer and recalls."""

import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.storage.ids import first_ten
from fct_jax.upgrade.checks.guards import sound
from fct_jax.upgrade.migration.budget import Forecast
from fct_jax.upgrade.migration.journal import Journal
from fct_jax.upgrade.migration.probe import probe_of
from fct_jax.upgrade.migration.settings import Settings
from fct_jax.upgrade.migration.status import Status, rate_of, state_of
from fct_jax.upgrade.stores import Store, open_store
from fct_jax.upgrade.stores.affine import StoreCalibration
from fct_jax.upgrade.stores.base import NEW
from fct_jax.upgrade.stores.migrate import one_line
from fct_jax.upgrade.stores.recall import recall_of, share_found
from fct_jax.upgrade.stores.steps import StoreProgress
from fct_jax.upgrade.ways import find_way

_K = 10
_REFERENCE = 500  # items with which scores of both spaces are calibrated


def status_of_store(workdir: Path, settings: Settings, probe: str | None, queries: int) -> Status:
    """Return the status of a store's upgrade.

    Args:
      probe: folder of a probe set with which quality is measured, or None.
      queries: number of items to search for when measuring recall; 0: recall is not measured.
    """
    records = Journal(workdir / "journal.jsonl").records
    done = StoreProgress(records)
    path = workdir / "plan" / "plan.json"
    plan = json.loads(path.read_text()) if path.is_file() else {}
    planned = done.plan["items"] if done.plan else plan.get("items")
    kind = "batch" if done.ready else "copied"
    rate = rate_of([r for r in records if r["kind"] == kind])
    found = Status(
        workdir=str(workdir),
        state=state_of(done, planned),
        count=plan.get("count"),
        translated=done.rows,
        planned=planned,
        reembedded=done.reembedded,
        share=None,
        batches=len(done.stops),
        rate=rate,
        seconds_left=None,
        unembedded=len(done.failed),
        quarantined=len(done.bad) if done.begin else plan.get("checked", {}).get("bad"),
        way=plan.get("serve", "translated"),
        store=settings.gallery,
    )
    if plan and plan["forecast"]["quality"] is not None:
        forecast = Forecast(**plan["forecast"])
        found = dataclasses.replace(
            found, measure=forecast.measure, forecast=forecast.at(done.items)
        )
    if settings.gallery is None:
        return found
    try:
        with open_store(settings.gallery) as store, one_line(store):
            found = _asked(found, store, done, queries)
            if probe is not None and done.ready:
                found = _measured(found, store, done, probe, settings.map)
    except UserError as error:
        found = dataclasses.replace(found, store=f"cannot be asked now: {error}")
    total, at = (planned, done.items) if done.ready else (found.count, done.rows)
    left = None if rate is None or total is None else max(total - at, 0) / rate
    share = done.reembedded / found.count if found.count else None
    return dataclasses.replace(found, seconds_left=left, share=share)


def _asked(found: Status, store: Store, done: StoreProgress, queries: int) -> Status:
    """Return the status with counts, readers and recalls from the stores themselves."""
    now = store.pointer().current()
    readers = f"{now['store']} (generation {now['generation']})"
    found = dataclasses.replace(found, count=store.count(), readers=readers)
    if done.begin is None:
        return found
    target = store.beside(done.begin["target"])
    translated = target.count() if done.ready else done.rows
    found = dataclasses.replace(found, target=str(target.uri), translated=translated)
    if not (done.ready and queries):
        return found
    old, new = _pairs(store, target, queries, seed=2)
    if not len(old):
        return found
    measured = recall_of(target, new, _K)
    half = None
    if done.reembedded:
        half = _half(store, target, old, new, now["calibration"])
    return dataclasses.replace(found, recall=measured, recall_half=half)


def _measured(found: Status, store: Store, done: StoreProgress, probe: str, mapping) -> Status:
    """Return the status with the quality that the probe's items have as stored now."""
    target, served = store.beside(done.begin["target"]), find_way(found.way)
    metric = "l2" if target.metric == "l2" else "cosine"
    asked = probe_of(probe, metric, served, mapping)
    if found.measure not in (None, asked.measure):
        found = dataclasses.replace(found, forecast=None)  # made with another probe set
    parts = []
    for one in (store, target):
        there, vectors = one.get(asked.ids)
        if not there.all():
            raise UserError(f"{one.uri} lacks {first_ten(asked.ids[~there])} of the probe {probe}")
        parts.append(np.asarray(vectors, np.float32))
    old, vectors = parts
    if served.one_index:
        quality = asked.quality(vectors)
    else:
        states = target.states(asked.ids)
        migrated = np.array([states[one][0] == NEW for one in asked.ids.tolist()], bool)
        metric = "l2" if store.metric == "l2" else "cosine"
        quality = asked.served(served, old, vectors, migrated, metric, vectors)
    return dataclasses.replace(found, measure=asked.measure, measured=quality)


def _pairs(store: Store, target: Store, count: int, seed: int):
    """Return the usable vectors of the same items in both stores."""
    drawn = store.sample(count, seed)
    there, new = target.get(drawn.ids)
    old = np.asarray(drawn.vectors, np.float32)[there]
    good = sound(old) & sound(new)
    return old[good], new[good]


def _half(store: Store, target: Store, old, new, calibration) -> float | None:
    """Return the recall of the half-migrated search ("dual") against the same without indexes."""
    factors = _calibration(store, target, calibration)
    if factors is None:
        return None
    affine = factors.affine(old, new)
    answers = [
        store.search_half(target, old, new, _K, affine, exact=exact) for exact in (False, True)
    ]
    return share_found(answers[0][0], answers[1][0])


def _calibration(store: Store, target: Store, where):
    """Return the calibration that readers have, or one from a sample of both stores."""
    if where and Path(where).is_dir():
        return StoreCalibration(where)
    from fct_jax.upgrade.ways.calibration import calibrate

    old, new = _pairs(store, target, _REFERENCE, seed=3)
    if len(old) < _REFERENCE // 5:
        return None
    metrics = ["l2" if one.metric == "l2" else "cosine" for one in (target, store)]
    made = calibrate(old, new, metric=metrics[0], old_metric=metrics[1])
    with tempfile.TemporaryDirectory() as folder:
        return StoreCalibration(made.save(Path(folder) / "calibration"))
