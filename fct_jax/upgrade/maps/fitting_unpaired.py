"""Learning a map without pairs: two samples of the same kind of content, one by each model."""

import numpy as np

from fct_jax.errors import UserError, unknown
from fct_jax.evaluate.distances import METRICS
from fct_jax.runtime.progress import console
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.storage.ids import find_rows
from fct_jax.storage.named import vectors_of
from fct_jax.upgrade.checks.degenerate import check_alive
from fct_jax.upgrade.checks.guards import SPACE
from fct_jax.upgrade.checks.known_answers import MOST, UNKNOWN, ask, check_known_answers
from fct_jax.upgrade.inputs import FEWEST, are_unit, nonzero_rows, row_hashes, take
from fct_jax.upgrade.maps.choosing import held_out_quality, means_of
from fct_jax.upgrade.maps.map import KnownPairs, Map
from fct_jax.upgrade.stores import Store, is_store
from fct_jax.upgrade.stores.samples import sample_of

CHECKED_BY = 100  # shared ids that are kept to check the map, if there are more to fit on
_KNOWN = 256  # known answers kept with the map


def fit_without_pairs(
    name: str,
    method,
    old,
    new,
    *,
    direction: str,
    held_out: float,
    metric: str,
    seed: int,
    sample: int,
) -> Map:
    """Fit a method that has ``fit_unpaired``; the arguments are those of ``fit``.

    Ids that both sets have are pairs. The method learns nothing from pairs; 100 of them, or
    ``held_out`` of them if these are more, are kept to check the map, and it is fitted on the other
    vectors. Rows of sets without ids are no pairs.

    Raises UserError for too few vectors, vectors that are not finite or degenerate, seeds that do
    not agree, or pairs that the map fails on.
    """
    old, new = _opened(old, "old", sample, seed), _opened(new, "new", sample, seed)
    for found in (old, new):
        found.check_finite()
    old, zeros_old = _without_zeros(old)
    new, zeros_new = _without_zeros(new)
    check_alive(old, new)
    if direction == "backward":
        old, new = new, old
    metric = metric or new.meta.get("metric", "l2")
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    rows_old, rows_new = _shared(old, new, held_out, seed)
    kept_old, kept_new = (
        np.setdiff1d(np.arange(len(s)), rows)
        for s, rows in ((old, rows_old), (new, rows_new))
    )  # fmt: skip
    inside_old, inside_new = take(old, kept_old), take(new, kept_new)
    console.print(
        f"fitting {name} on {len(inside_old):,} old and {len(inside_new):,} new vectors "
        "without pairs"
    )
    function, said = method.fit_unpaired(inside_old.vectors, inside_new.vectors, seed)
    described = {
        "method": name,
        "direction": direction,
        "dim_in": old.dim,
        "dim_out": new.dim,
        "unit_output": are_unit(new.vectors),
        "old_fingerprint": old.fingerprint,
        "new_fingerprint": new.fingerprint,
        "old_meta": {key: old.meta[key] for key in SPACE if key in old.meta},
        "new_meta": {key: new.meta[key] for key in SPACE if key in new.meta},
        "metric": metric,
        "pairs": 0,
        "pairs_held_out": len(rows_old),
        "vectors": [len(inside_old), len(inside_new)],
        "zero_pairs_left_out": 0,
        "zero_vectors_left_out": zeros_old + zeros_new,
        "judged_by": "",
        "quality": {},
        "left_out": {},
        "without_pairs": said,
    }
    known, fitted = None, np.sort(row_hashes(inside_old.vectors))
    if len(rows_old):
        outside_old, outside_new = take(old, rows_old), take(new, rows_new)
        found = Map(described, function)
        some = slice(0, MOST)
        mapped, _ = found.transform(outside_old.vectors[some])
        pairs = outside_old.vectors[some], mapped, outside_new.vectors[some]
        check_known_answers(ask(*pairs, metric, UNKNOWN), f"the {name} map")
        quality = held_out_quality(found, outside_old, outside_new, None, metric)
        described["quality"] = {name: means_of(quality)}
        part = slice(0, _KNOWN)
        known = KnownPairs(
            outside_new.ids[part],
            np.asarray(outside_old.vectors[part], np.float32),
            np.asarray(outside_new.vectors[part], np.float32),
        )
    return Map(described, function, {}, known, fitted)


def _opened(where, role: str, sample: int, seed: int) -> EmbeddingSet:
    """Open one side; a store gives a sample of its own, because no ids need to be shared."""
    if is_store(where) or isinstance(where, Store):
        return sample_of(where, sample, seed)
    return vectors_of(where, role)


def _without_zeros(found: EmbeddingSet) -> tuple[EmbeddingSet, int]:
    usable = np.flatnonzero(nonzero_rows(found.vectors))
    zeros = len(found) - len(usable)
    return (take(found, usable) if zeros else found), zeros


def _shared(old: EmbeddingSet, new: EmbeddingSet, held_out: float, seed: int):
    """Return rows of old and of new, the same items, that check the map; none below `FEWEST`."""
    none = np.empty(0, np.int64)
    if not 0 < held_out < 1:
        raise UserError(f"held_out must be a share between 0 and 1, not {held_out}")
    if old.numbered or new.numbered or old.ids.dtype.kind != new.ids.dtype.kind:
        return none, none
    rows = find_rows(old.ids, new.ids)
    both = np.flatnonzero(rows >= 0)
    if len(both) < FEWEST:
        return none, none
    count = min(len(both), max(CHECKED_BY, int(held_out * len(both))))
    chosen = np.sort(np.random.default_rng(seed).permutation(both)[:count])
    return rows[chosen], chosen
