"""Checks before anything is written: vectors, spaces, and known answers."""

import numpy as np

from fct_jax.errors import UserError
from fct_jax.evaluate.distances import unit_rows
from fct_jax.storage.ids import find_rows, first_ten
from fct_jax.upgrade.checks.known_answers import Answer, Expected, ask
from fct_jax.upgrade.galleries.base import Gallery
from fct_jax.upgrade.galleries.quarantine import reasons

# Two sets of one space must agree on these keys if both have them.
SPACE = ("fingerprint", "model", "prefix", "normalized", "metric")
SAMPLE = 256  # items of a known-answer check
_FEWEST_KNOWN = 8  # smallest number of tested pairs from which a map's power is estimated
_AGREE = 0.9  # share of test pairs whose vectors a gallery must hold unchanged
_LOOKED_UP = 64
_UNIT = 1e-2  # tolerance for the length of a float16 unit vector
_SAME = 2e-2  # largest relative difference of a vector and its float16 copy
_DIRECTION = 0.995  # smallest cosine of a vector and its copy in one byte a value


def sound(vectors: np.ndarray) -> np.ndarray:
    """Return (n,) bool: True for the usable ones of vectors (n, D)."""
    good = np.ones(len(vectors), bool)
    good[list(reasons(vectors))] = False
    return good


def without(vectors: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Return vectors (n, D) with zeros in place of those that are not ``good``, (n,) bool."""
    return vectors if good.all() else np.where(good[:, None], vectors, np.float32(0))


def check_uncertainty(gallery: Gallery, uncertainty: np.ndarray, start: int = 0) -> None:
    """Raise UserError if the log-variance of a row from ``start`` on is NaN."""
    missing = start + np.flatnonzero(np.isnan(uncertainty))
    if len(missing):
        raise UserError(f"the map gives no uncertainty (NaN) for {first_ten(gallery.ids[missing])}")


def check_batch(ids: np.ndarray, vectors, dim: int, meta: dict, where: str) -> np.ndarray:
    """Return re-embedded vectors as (n, D) float32. Raises UserError if they are unusable."""
    vectors = np.asarray(vectors)
    if vectors.shape != (len(ids), dim) or vectors.dtype.kind != "f":
        raise UserError(
            f"{where} gave {vectors.dtype} {vectors.shape} for {len(ids)} ids; "
            f"it must give floats ({len(ids)}, {dim})"
        )
    vectors = vectors.astype(np.float32, copy=False)
    length = np.linalg.norm(vectors, axis=1)
    if not np.isfinite(length).all():
        raise UserError(f"{where} gave NaN or infinity for {first_ten(ids[~np.isfinite(length)])}")
    if (length == 0).any():
        raise UserError(f"{where} gave zero vectors for {first_ten(ids[length == 0])}")
    check_lengths(where, meta, length)
    return vectors


def check_lengths(name: str, meta: dict, lengths: np.ndarray) -> None:
    """Raise UserError if vectors that are declared normalized have lengths (n,) other than 1."""
    shortest, longest = float(lengths.min()), float(lengths.max())
    if meta.get("normalized") and max(abs(shortest - 1), abs(longest - 1)) > _UNIT:
        cut = ""
        if longest <= 1 + _UNIT:
            cut = ": cut to fewer dimensions (Matryoshka)? Then normalise them again"
        raise UserError(
            f"{name} is declared normalized, but lengths go from {shortest:.4g} to "
            f"{longest:.4g}{cut}"
        )


def check_space(name: str, found: dict, expected: dict, role: str) -> None:
    """Raise UserError, naming the difference, if two sets are known to be of different spaces."""
    for key in SPACE:
        ours, theirs = found.get(key), expected.get(key)
        if ours is not None and theirs is not None and ours != theirs:
            raise UserError(
                f"{name} has {key} {ours!r}, but the {role} space of the map has {theirs!r}"
            )


def check_gallery_fits(gallery: Gallery, mapping) -> None:
    """Raise UserError unless direction, dimension and model of the gallery are the map's."""
    there, old, new = gallery.fingerprint, mapping.old_fingerprint, mapping.new_fingerprint
    if there and there == new != old:
        raise UserError(
            f"wrong direction: {gallery.name} is in the new model's space already "
            f"({there}); the map goes from the old to the new one"
        )
    if gallery.dim != mapping.dim_in:
        swapped = " (it is that of the new model: wrong direction?)"
        raise UserError(
            f"{gallery.name} has dimension {gallery.dim}, but the map takes {mapping.dim_in}"
            + swapped * (gallery.dim == mapping.dim_out)
        )
    some = None
    if gallery.exact:
        some = gallery.rows(gallery.spread_rows(32))
    check_space(gallery.name, as_found(gallery.meta, some), old_space(mapping), "old")


def old_space(mapping) -> dict:
    """Return what the map knows about the old model's vectors, with the keys of ``meta.json``."""
    known = mapping.known
    meta = {**(mapping.description.get("old_meta") or {})}
    meta["fingerprint"] = mapping.old_fingerprint
    return as_found(meta, None if known is None else known.old)


def new_space(mapping) -> dict:
    """Return what the map knows about the new model's vectors, with the keys of ``meta.json``."""
    known = mapping.known
    meta = {**(mapping.description.get("new_meta") or {})}
    # The sample's own description takes precedence over the metric that the map was fitted for.
    meta = {"metric": mapping.metric, **meta, "fingerprint": mapping.new_fingerprint}
    return as_found(meta, None if known is None else known.new)


def as_found(meta: dict, vectors) -> dict:
    """Return ``meta`` corrected by measuring the vectors, if there are any (None: unknown).

    ``meta.json`` says "not normalized" by default, so this is measured. The metric of unit vectors
    is dropped, because it makes no difference.
    """
    if vectors is not None:
        vectors = np.asarray(vectors, np.float32)
        vectors = vectors[sound(vectors)]
    if vectors is None or not len(vectors):
        return {k: v for k, v in meta.items() if k != "normalized" or v}
    lengths = np.linalg.norm(np.asarray(vectors, np.float32), axis=1)
    lengths = lengths[np.isfinite(lengths) & (lengths > 0)]  # the others are reported by id
    if not len(lengths):
        return as_found(meta, None)
    unit = bool(np.abs(lengths - 1).max() <= _UNIT)
    if meta.get("normalized") and not unit:
        return dict(meta)  # a contradiction, which is reported with the lengths
    kept = {k: v for k, v in meta.items() if not (unit and k == "metric")}
    return {**kept, "normalized": unit}


def ask_map(mapping, old, translated, new, metric: str, hard: bool = False) -> Answer:
    """Test whether items fit the map, given its performance on its tested pairs.

    old, translated, new: (m, ·), as in `known_answers.ask`; ``hard``: as in `Expected.of`.
    """
    known, expected = mapping.known, None
    if known is not None and len(known.ids) >= _FEWEST_KNOWN:
        some = slice(0, SAMPLE)
        mapped, _ = mapping.transform(known.old[some])
        pairs = mapped, known.old[some], known.new[some]
        expected = Expected.of(*pairs, metric, len(new), hard)
    return ask(old, translated, new, metric, expected, lambda other: mapping.transform(other)[0])


def check_known_pairs(gallery: Gallery, mapping) -> "tuple[int, Lookup | None]":
    """Compare the gallery with the old vectors of the map's test pairs that have the same ids.

    Row numbers serve as ids of many sets, so equal ids alone do not mean equal items: ids count
    as shuffled only if the gallery has the vectors under other ids.

    Returns:
      The number of pairs that agree, and, if some do not, a `Lookup` that must see all rows.

    Raises:
      UserError: the gallery is migrated already.
    """
    known = mapping.known
    if known is None:
        return 0, None
    rows = find_rows(gallery.ids, np.asarray(known.ids))
    held = np.flatnonzero(rows >= 0)[:SAMPLE]
    if not len(held):
        return 0, None
    vectors = gallery.rows(rows[held])
    same, how = compared(vectors, known.old[held])
    if same.mean() > _AGREE:
        return int(same.sum()), None
    if known.new.shape[1] == gallery.dim and _same(vectors, known.new[held]).mean() > 0.5:
        raise UserError(
            f"wrong direction: {gallery.name} already holds the new model's vectors, "
            f"as {len(held)} items show on which the map was tested"
        )
    differ = held[~same]
    some = f"of {len(held)} items {len(differ)} have other vectors, such as " + first_ten(
        np.asarray(known.ids)[differ]
    )
    if how and gallery.exact:
        raise UserError(f"{gallery.name} and the sample that the map was fitted on {how}: {some}")
    message = (
        f"{gallery.name} does not pair ids and vectors as the sample did on which the map was "
        f"tested: {some}; ids are shuffled, or another model made some of the vectors"
    )
    if same.any():
        raise UserError(message)
    return 0, Lookup(known.old[differ[:_LOOKED_UP]], message)


def check_known_new(name: str, ids: np.ndarray, vectors: np.ndarray, mapping) -> None:
    """Compare new vectors (n, D) of ids (n,) with those that the map's sample has of the same ids.

    Raises UserError where they are not the same, unless they have nothing in common at all: the
    ids of numbered rows say nothing.
    """
    known = mapping.known
    rows = np.empty(0, int) if known is None else find_rows(np.asarray(known.ids), ids)
    held = np.flatnonzero(rows >= 0)
    if not len(held):
        return
    same, how = compared(vectors[held], known.new[rows[held]])
    if same.mean() > _AGREE or not (how or same.any()):
        return
    some = f"of {len(held)} ids {(~same).sum()} have other vectors than in the sample, such as "
    some += first_ten(ids[held[~same]])
    if how:
        raise UserError(f"{name} and the sample that the map was fitted on {how}: {some}")
    raise UserError(f"{name}: {some}; ids are shuffled, or another model made some of the vectors")


def compared(vectors: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, str]:
    """Return which of two lists of vectors of the same items are the same, and how others differ.

    The vectors are (n, D). It is said how only of those that have much in common, else "".
    """
    same = _same(vectors, others)
    good = sound(vectors)
    differ = good & ~same
    if not differ.any() or good.sum() < 2:
        return same, ""
    ours, theirs = unit_rows(vectors[good]), unit_rows(others[good])
    cosine = np.zeros(len(same), np.float32)
    cosine[good] = np.einsum("nd,nd->n", ours, theirs)
    by_chance = np.median(np.einsum("nd,nd->n", ours, np.roll(theirs, 1, axis=0)))
    alike = float(np.median(cosine[differ]))
    if alike > _DIRECTION:
        ratio = np.linalg.norm(vectors[differ], axis=1) / np.linalg.norm(others[differ], axis=1)
        if np.median(np.abs(ratio - 1)) <= _SAME:
            return cosine > _DIRECTION, ""  # kept in fewer bits
        return same, "have vectors of other lengths: one is normalised, the other is not"
    if alike > (1 + by_chance) / 2:
        what = "differ in a prefix, in preprocessing or in the version of the model"
        return same, f"{what} (cosine {alike:.2f})"
    return same, ""


class Lookup:
    """A search for some vectors under any id, in rows that are read anyway."""

    def __init__(self, wanted: np.ndarray, message: str):
        """Take vectors (m, D) and a ``message`` for the error if over half of them are found."""
        self._wanted, self._message = np.asarray(wanted, np.float32), message
        self._squares = (self._wanted**2).sum(axis=1)
        self._nearest = np.full(len(wanted), np.inf)

    def take(self, vectors: np.ndarray) -> None:
        """Search some rows (n, D)."""
        gap = (vectors**2).sum(axis=1)[:, None] - 2 * (vectors @ self._wanted.T) + self._squares
        self._nearest = np.fmin(self._nearest, np.fmin.reduce(gap, axis=0))

    def finish(self) -> None:
        """Raise UserError if more than half of the vectors were among the rows."""
        if (self._nearest <= _SAME**2 * self._squares).mean() > 0.5:
            raise UserError(self._message)


def _same(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    gap = np.linalg.norm(vectors - others, axis=1)
    return gap <= _SAME * np.maximum(np.linalg.norm(others, axis=1), 1e-12)
