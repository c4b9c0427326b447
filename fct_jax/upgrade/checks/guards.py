"""What is looked at before anything is written: vectors, spaces, and known answers."""

import dataclasses

import numpy as np

from fct_jax.errors import UserError
from fct_jax.storage.ids import find_rows, first_ten
from fct_jax.upgrade.checks.known_answers import known_answer_score
from fct_jax.upgrade.galleries.base import Gallery

# What must agree between two sets of one space, as far as both say it.
SPACE = ("fingerprint", "model", "prefix", "normalized", "metric")
EXPECTED_SHARE = 0.75  # of the score on the pairs that the map was tested on
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
    """Checksums, and `inspect`: a UserError with counts and the first ten unusable ids."""
    gallery.verify()
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
    some = None
    if gallery.exact:
        some = gallery.rows(gallery.spread_rows(32))
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
    # What the sample said of itself, though it may have been fitted for another metric.
    meta = {"metric": map.metric, **meta, "fingerprint": map.new_fingerprint}
    return as_found(meta, None if known is None else known.new)


def as_found(meta: dict, vectors) -> dict:
    """``meta`` with what the vectors show themselves, where there are some (None: unknown).

    That they are not normalized is what ``meta.json`` says by default, so it is measured; and
    by which metric unit vectors are compared makes no difference.
    """
    if vectors is None or not len(vectors):
        return {k: v for k, v in meta.items() if k != "normalized" or v}
    lengths = np.linalg.norm(np.asarray(vectors, np.float32), axis=1)
    lengths = lengths[np.isfinite(lengths) & (lengths > 0)]  # the others are reported by id
    if not len(lengths):
        return as_found(meta, None)
    unit = bool(np.abs(lengths - 1).max() <= _UNIT)
    if meta.get("normalized") and not unit:
        return dict(meta)  # a contradiction in itself, which is reported with its lengths
    kept = {k: v for k, v in meta.items() if not (unit and k == "metric")}
    return {**kept, "normalized": unit}


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
