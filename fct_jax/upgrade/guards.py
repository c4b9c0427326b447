"""What is looked at before anything is written: vectors, spaces, and known answers."""

import dataclasses

import numpy as np

from fct_jax.errors import UserError
from fct_jax.upgrade.galleries import Gallery, find_rows, first_ten

# What must agree between two sets of one space, as far as both say it.
SPACE = ("fingerprint", "model", "prefix", "normalized", "metric")
CHANCE_SIGMAS = 4.0  # this far above guessing, or it is guessing
EXPECTED_SHARE = 0.75  # of the score on the pairs that the map was tested on
UNCERTAIN_SHARE = 0.5  # where only the items that the map is least sure of can be asked for
_ALIKE = 0.2  # by how much the best possible score must be above chance
SAMPLE = 256  # items of a known-answer check
_BLOCK = 1 << 15
_AGREE = 0.9  # share of test pairs that a gallery must hold as they were
_LOOKED_UP = 64
_UNIT = 1e-2  # how far from 1 the length of a float16 unit vector may be
_SAME = 2e-2  # relative difference of a vector and its float16 copy at most


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What a whole gallery was found to hold: ids of unusable vectors and the lengths."""

    not_finite: np.ndarray
    zero: np.ndarray
    shortest: float
    longest: float


def inspect(gallery: Gallery, progress=None) -> Inspection:
    """Reads every vector once; memory does not grow with the gallery.

    ``progress`` is called with the number of rows done, block after block.
    """
    not_finite, zero, shortest, longest = [], [], np.inf, 0.0
    for ids, vectors in gallery.blocks(_BLOCK):
        # The square of a length is not finite exactly where a value is not, or far too large.
        length = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float32))
        bad, empty = ~np.isfinite(length), length == 0
        not_finite.append(ids[bad])
        zero.append(ids[empty])
        sound = length[~bad & ~empty]
        if len(sound):
            shortest = min(shortest, float(sound.min()))
            longest = max(longest, float(sound.max()))
        if progress is not None:
            progress(len(ids))
    return Inspection(np.concatenate(not_finite), np.concatenate(zero), shortest, longest)


def check_vectors(gallery: Gallery, progress=None) -> Inspection:
    """`inspect`, and a UserError with counts and the first ten ids for unusable vectors."""
    found = inspect(gallery, progress)
    wrong = []
    if len(found.not_finite):
        wrong.append(f"vectors with NaN or infinity: {first_ten(found.not_finite)}")
    if len(found.zero):
        wrong.append(f"zero vectors: {first_ten(found.zero)}")
    if wrong:
        raise UserError(f"{gallery.name} holds {'; '.join(wrong)}; repair or remove them first")
    _check_lengths(gallery.name, gallery.meta, found.shortest, found.longest)
    return found


def check_batch(ids: np.ndarray, vectors, dim: int, meta: dict, where: str) -> np.ndarray:
    """Re-embedded vectors of the ids as (n, D) float32. Raises UserError where unusable."""
    vectors = np.asarray(vectors)
    if vectors.shape != (len(ids), dim) or vectors.dtype.kind != "f":
        raise UserError(
            f"{where} gave {vectors.dtype} {vectors.shape} for {len(ids)} ids; "
            f"floats ({len(ids)}, {dim}) are needed"
        )
    vectors = vectors.astype(np.float32, copy=False)
    length = np.linalg.norm(vectors, axis=1)
    if not np.isfinite(length).all():
        raise UserError(f"{where} gave NaN or infinity for {first_ten(ids[~np.isfinite(length)])}")
    if (length == 0).any():
        raise UserError(f"{where} gave zero vectors for {first_ten(ids[length == 0])}")
    _check_lengths(where, meta, float(length.min()), float(length.max()))
    return vectors


def _check_lengths(name: str, meta: dict, shortest: float, longest: float) -> None:
    if meta.get("normalized") and max(abs(shortest - 1), abs(longest - 1)) > _UNIT:
        raise UserError(
            f"{name} is said to be normalized, but lengths go from {shortest:.4g} to {longest:.4g}"
        )


def check_space(name: str, found: dict, expected: dict, role: str) -> None:
    """Two sets are of one space, as far as both say. Raises UserError with what differs."""
    for key in SPACE:
        ours, theirs = found.get(key), expected.get(key)
        if ours is not None and theirs is not None and ours != theirs:
            raise UserError(
                f"{name} has {key} {ours!r}, but the {role} space of the map has {theirs!r}"
            )


def check_gallery_fits(gallery: Gallery, map) -> None:
    """Direction, dimension and model of the gallery are those that the map takes."""
    if gallery.fingerprint and gallery.fingerprint == map.new_fingerprint != map.old_fingerprint:
        raise UserError(
            f"wrong direction: {gallery.name} is in the new model's space already "
            f"({gallery.fingerprint}); the map goes from the old to the new one"
        )
    if gallery.dim != map.dim_in:
        swapped = " (it is that of the new model: wrong direction?)"
        raise UserError(
            f"{gallery.name} has dimension {gallery.dim}, but the map takes {map.dim_in}"
            + swapped * (gallery.dim == map.dim_out)
        )
    some = gallery.rows(np.unique(np.linspace(0, len(gallery) - 1, 32).astype(np.int64)))
    check_space(gallery.name, as_found(gallery.meta, some), old_space(map), "old")


def old_space(map) -> dict:
    """What the map knows about the old model's vectors, by the keys of ``meta.json``."""
    known = getattr(map, "known", None)
    meta = {**(getattr(map, "description", {}).get("old_meta") or {})}
    meta["fingerprint"] = map.old_fingerprint
    return as_found(meta, None if known is None else known.old)


def new_space(map) -> dict:
    """What the map knows about the new model's vectors, by the keys of ``meta.json``."""
    known = getattr(map, "known", None)
    meta = {**(getattr(map, "description", {}).get("new_meta") or {})}
    meta |= {"fingerprint": map.new_fingerprint, "metric": map.metric}
    return as_found(meta, None if known is None else known.new)


def as_found(meta: dict, vectors) -> dict:
    """``meta`` with what the vectors show themselves, where there are some (None: unknown).

    That they are not normalized is what ``meta.json`` says by default, so it is measured; and
    by which metric unit vectors are compared makes no difference.
    """
    if vectors is None or not len(vectors):
        return {k: v for k, v in meta.items() if k != "normalized" or v}
    lengths = np.linalg.norm(np.asarray(vectors, np.float32), axis=1)
    unit = bool(np.abs(lengths - 1).max() <= _UNIT)
    if meta.get("normalized") and not unit:
        return dict(meta)  # a contradiction in itself, which is reported with its lengths
    kept = {k: v for k, v in meta.items() if not (unit and k == "metric")}
    return {**kept, "normalized": unit}


def known_answer_score(translated, new, metric: str = "l2") -> float:
    """How well items find themselves: 1 always first, 0 by chance (mean place in the middle).

    translated (m, D): h(old) of m items; new (m, D): the new model's vectors of the same items,
    which are the queries.
    """
    translated = np.asarray(translated, np.float64)
    new = np.asarray(new, np.float64)
    if metric == "cosine":
        translated = translated / np.linalg.norm(translated, axis=1, keepdims=True)
    # A query's own length does not change the order of its neighbours.
    near = 2 * new @ translated.T
    if metric != "cosine":
        near -= (translated**2).sum(axis=1)
    own = np.diagonal(near)[:, None]
    # Of equally near items half are taken to come first: equal vectors are no answer.
    place = (near > own).sum(axis=1) + ((near == own).sum(axis=1) - 1) / 2
    return 1 - 2 * float(place.mean()) / max(len(new) - 1, 1)


def check_known_answers(translated, new, at_least: float, metric: str, what: str) -> int:
    """Items find themselves, better than by chance and with ``at_least`` that score.

    Returns the number of answers: 0 where the items are so much alike that not even their new
    vectors find themselves. Raises UserError.
    """
    chance = CHANCE_SIGMAS / np.sqrt(3 * len(new))  # deviation of a mean of uniform places
    attainable = known_answer_score(new, new, metric)  # below 1 where items are alike
    needed = max(chance, at_least * attainable)
    if attainable < chance + _ALIKE:
        return 0
    score = known_answer_score(translated, new, metric)
    if score < needed:
        raise UserError(
            f"known-answer queries fail on {what}: the new vectors of {len(new)} items find their "
            f"own translated vectors with score {score:.2f} (1: always first, 0: by chance; "
            f"needed {needed:.2f}): the pairing of ids and vectors is shuffled, the direction "
            "is wrong, or another model made one of them"
        )
    return len(new)


def expected_score(map, metric: str) -> float:
    """The score on the pairs that the map keeps and was not fitted on; 0 without any."""
    known = getattr(map, "known", None)
    if known is None or len(known.ids) < 8:
        return 0.0
    translated, _ = map.transform(known.old[:SAMPLE])
    return known_answer_score(translated, known.new[:SAMPLE], metric)


def check_known_pairs(gallery: Gallery, map) -> int:
    """The gallery holds the old vectors of the map's test pairs, where it has their ids.

    Row numbers serve as ids of any set, so that equal ids alone do not mean equal items: ids are
    taken as shuffled only where the vectors are there under other ids.
    Returns how many pairs agree. Raises UserError for a shuffled or already migrated gallery.
    """
    known = getattr(map, "known", None)
    if known is None:
        return 0
    rows = find_rows(gallery.ids, np.asarray(known.ids))
    held = np.flatnonzero(rows >= 0)[:SAMPLE]
    if not len(held):
        return 0
    vectors = gallery.rows(rows[held])
    same = _same(vectors, known.old[held])
    if same.mean() > _AGREE:
        return int(same.sum())
    if known.new.shape[1] == gallery.dim and _same(vectors, known.new[held]).mean() > 0.5:
        raise UserError(
            f"wrong direction: {gallery.name} holds the new model's vectors already, "
            f"as {len(held)} items show that the map was tested on"
        )
    differ = held[~same][:_LOOKED_UP]
    elsewhere = _is_in(gallery, known.old[differ])
    if same.any() or elsewhere.mean() > 0.5:
        raise UserError(
            f"{gallery.name} does not pair ids and vectors as the sample did that the map was "
            f"tested on: of {len(held)} items {np.sum(~same)} have other vectors, such as "
            f"{first_ten(np.asarray(known.ids)[held[~same]])}"
        )
    return 0


def _is_in(gallery: Gallery, wanted: np.ndarray) -> np.ndarray:
    """Which of the vectors are in the gallery, in whatever row; one pass over it."""
    nearest = np.full(len(wanted), np.inf)
    squares = (wanted**2).sum(axis=1)
    for _, vectors in gallery.blocks(_BLOCK):
        gap = (vectors**2).sum(axis=1)[:, None] - 2 * (vectors @ wanted.T) + squares
        nearest = np.minimum(nearest, gap.min(axis=0))
    return nearest <= _SAME**2 * squares


def _same(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    gap = np.linalg.norm(vectors - others, axis=1)
    return gap <= _SAME * np.maximum(np.linalg.norm(others, axis=1), 1e-12)
