"""Conversion of a service's cut-off on old scores to scores of the new and translated vectors."""

import dataclasses

import numpy as np

from fct_jax.errors import UserError
from fct_jax.evaluate.distances import unit_rows
from fct_jax.upgrade.assessment.world import World
from fct_jax.upgrade.checks.thresholds import recalibrated_threshold
from fct_jax.upgrade.ways.scores import top

_QUERIES = 500
_NEAREST, _RANDOM = 20, 50  # items compared per query: nearest by each model, and random ones


def cutoffs(world: World, threshold: float, seed: int = 0) -> dict[str, dict]:
    """Convert a threshold in each direction: "old to new", "new to old", "old to translated".

    The cut-off is a cosine of old vectors. The pairs are each query with its nearest items by
    either model and with random items; a query's pairs are held out together. "new to old"
    starts from the new model's cut-off and shows whether the conversion can be reversed.

    Raises UserError for spaces that are not compared by cosine, or a threshold outside −1 to 1.
    """
    if not -1 <= threshold <= 1:
        raise UserError(f"threshold must be a cosine between -1 and 1, not {threshold}")
    metrics = {world.calibration.old.metric, world.calibration.new.metric}
    if metrics != {"cosine"}:
        raise UserError("threshold needs vectors compared by cosine; these are compared by l2")
    rng = np.random.default_rng(seed)
    total = len(world.queries["new"])
    chosen = np.sort(rng.permutation(total)[:_QUERIES])
    asked = {kind: _rows(world.queries[kind][chosen]) for kind in ("old", "new")}
    near = min(_NEAREST, world.count)
    rows = [
        top(asked[kind], _some(world, kind), np.arange(world.count), near)[1]
        for kind in ("old", "new")
    ]
    rows.append(rng.integers(0, world.count, (len(chosen), _RANDOM)))
    rows = np.hstack(rows)
    if world.own is not None:
        own = world.own[chosen][:, None]
        rows = np.where(rows == own, (own + 1) % world.count, rows)
    scores = {
        of: np.einsum("qd,qkd->qk", asked[by], _some(world, of)(rows)).ravel()
        for of, by in (("old", "old"), ("new", "new"), ("translated", "new"))
    }
    queries = np.repeat(np.arange(len(chosen)), rows.shape[1])

    def moved(one: str, other: str, at: float):
        return recalibrated_threshold(scores[one], scores[other], at, groups=queries, seed=seed)

    forward = moved("old", "new", threshold)
    found = {
        "old to new": forward,
        "new to old": moved("new", "old", forward.threshold),
        "old to translated": moved("old", "translated", threshold),
    }
    return {name: dataclasses.asdict(of) for name, of in found.items()}


def _some(world: World, kind: str):
    """Return the function that reads unit vectors (…, D) of rows (…)."""

    def read(rows: np.ndarray) -> np.ndarray:
        found = _rows(world.items[kind][rows.ravel()])
        return found.reshape(*rows.shape, found.shape[-1])

    return read


def _rows(vectors) -> np.ndarray:
    return np.ascontiguousarray(unit_rows(vectors), np.float32)
