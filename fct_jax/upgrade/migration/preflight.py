"""The checks before a gallery's first new vector is written."""

import numpy as np

from fct_jax.errors import UserError
from fct_jax.storage.ids import find_rows, first_ten
from fct_jax.upgrade.checks import guards
from fct_jax.upgrade.checks.known_answers import check_known_answers
from fct_jax.upgrade.galleries.base import Gallery
from fct_jax.upgrade.migration.probe import Probe
from fct_jax.upgrade.migration.reembed import NewVectors

_ENOUGH = 8  # known answers
_KNOWN = 64  # items of the map's sample that are asked for again
_BLOCK = 1 << 15
_MOST = 0.5  # a set with a larger share of the gallery has ordinary items, not only hard ones


def check_before(
    gallery: Gallery, mapping, new: NewVectors | None, probe: Probe | None, unchecked: bool = False
) -> guards.Lookup | None:
    """Check space, direction, and known answers from all available sources.

    Known answers are the map's own test pairs, the new vectors of a sample of ids, and the items
    of the probe. ``unchecked``: continue if there are none.

    Returns:
      The search of all rows that is still to be done, as from `guards.check_known_pairs`.

    Raises:
      UserError: something does not match.
    """
    guards.check_gallery_fits(gallery, mapping)
    answers, lookup = guards.check_known_pairs(gallery, mapping)
    if new is not None:
        answers += check_new_vectors(gallery, mapping, new)
    if probe is not None:
        rows = probe.rows(gallery)
        some = _some(np.arange(len(rows)))
        old = gallery.rows(rows[some])
        answers += _ask(old, probe.new[some], mapping, f"{probe.name}/new")
    if answers < _ENOUGH and not unchecked:
        if lookup is not None:  # there may be a better reason
            for _, vectors in gallery.blocks(_BLOCK):
                lookup.take(vectors)
            lookup.finish()
        raise UserError(
            f"nothing shows that {gallery.name} fits the map: give reembed or probe "
            "for known answers, or skip the check (unchecked=True, --unchecked)"
        )
    return lookup


def check_new_vectors(gallery: Gallery, mapping, new: NewVectors) -> int:
    """Check space and known answers of re-embedded vectors on a sample of ids.

    Returns the number of answers. Raises UserError if something does not match.
    """
    has = new.has(gallery.ids)
    if not has.any():
        raise UserError(f"{new.name} has no vector for any id of {gallery.name}")
    known = np.empty(0, np.int64)
    if mapping.known is not None:
        # The sample's own items can be compared exactly.
        known = find_rows(gallery.ids, np.asarray(mapping.known.ids))
        known = known[known >= 0]
        known = _some(known[has[known]], _KNOWN)
    rows = np.union1d(known, _some(np.flatnonzero(has), guards.SAMPLE - len(known)))
    ids = gallery.ids[rows]
    answer = new(ids)
    if answer.error is not None:
        raise answer.error
    if not len(answer.found):
        raise UserError(f"{new.name} could embed none of {first_ten(ids)}")
    rows, ids = rows[answer.found], ids[answer.found]
    vectors = guards.check_batch(ids, answer.vectors, mapping.dim_out, new.meta, new.name)
    guards.check_space(
        new.name, guards.as_found(new.meta, vectors), guards.new_space(mapping), "new"
    )
    guards.check_known_new(new.name, ids, vectors, mapping)
    # A set of only the planned items has those with the largest uncertainty.
    return _ask(gallery.rows(rows), vectors, mapping, new.name, hard=has.mean() <= _MOST)


def _ask(old, new, mapping, what: str, hard: bool = False) -> int:
    """Search h(old) of some items by their new vectors, whose answers are known."""
    good = guards.sound(old)
    old, new = old[good], new[good]
    if len(old) < _ENOUGH:
        return 0
    if old.shape == new.shape and np.allclose(old, new, rtol=1e-3, atol=1e-4):
        raise UserError(
            f"wrong direction: the gallery already holds the vectors of {what}, "
            "so it is in the new model's space"
        )
    translated, _ = mapping.transform(old)
    answer = guards.ask_map(mapping, old, translated, new, mapping.metric, hard)
    return check_known_answers(answer, what)


def _some(rows: np.ndarray, most: int = guards.SAMPLE) -> np.ndarray:
    """Return a sample of at most ``most`` of the rows, ascending."""
    if len(rows) <= most:
        return np.sort(rows)
    return np.sort(np.random.default_rng(0).choice(rows, most, replace=False))
