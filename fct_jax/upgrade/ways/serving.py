"""Searching a gallery of which a part is re-embedded, so that it is never worse than before.

Scores of two spaces are not comparable: merged as they are they rank worse than either space
alone. Here each query's scores are brought to one scale by their *tail*, the scores of the best
items of a reference sample embedded by both models; the sample's items are the same in both
spaces, so that no label is needed. The correction is one factor and one shift a query, known
before the search: it multiplies the query, and ordinary inner-product indexes do the rest
(`Calibration.affine`). What is added up is the row of the table (`fct_jax.upgrade.ways.WAYS`).
"""

import functools

import numpy as np

from fct_jax.errors import UserError
from fct_jax.upgrade.ways import PAIRS, Asked, Mix, Way, find_way, weighted
from fct_jax.upgrade.ways.calibration import Calibration
from fct_jax.upgrade.ways.scores import Space, best, top


def search(
    way: str | Way,
    query_old,
    query_new,
    old,
    new,
    migrated: np.ndarray,
    k: int,
    calibration: Calibration | None = None,
    *,
    translated=None,
    metric: str = "l2",
    own: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best items of a half-migrated gallery for each query, exactly.

    Args:
      way: a name of `WAYS`, or a `Way`.
      query_old, query_new: (Q, do), (Q, dn) the queries by both models; those that the way does
        not need may be None.
      old, new: (N, do), (N, dn) the gallery by both models, memory maps or not; of ``new`` the
        migrated rows alone are read.
      migrated: (N,) bool, which items are re-embedded.
      k: results a query.
      calibration: of `calibrate`, for ways that need both models.
      translated: (N, dn) h(old), for ways that need it.
      metric: of the new space, where there is no calibration.
      own: (Q,) the row that is never a query's result, or None.

    Returns scores (Q, k) float32, descending, and rows (Q, k) int64; −inf and −1 where the
    gallery has fewer items.

    Example:

        scores, rows = search("fused", query_old, query_new, old, new, migrated, 10, calibration)
    """
    way = find_way(way)
    queries, items = _checked(way, query_old, query_new, old, new, translated, migrated, k)
    if not way.needs_calibration:
        calibration = None  # one space: nothing is brought to one scale
    elif calibration is not None and not isinstance(calibration, Calibration):
        raise UserError(f"calibration must be a Calibration, not {type(calibration).__name__}")
    affine = None
    if calibration is not None:
        affine = functools.cache(lambda: calibration.affine(query_old, query_new))
    asked = Asked(way.name, affine)
    mixes = way.left(asked), (way.done or way.left)(asked)
    migrated = np.asarray(migrated)
    groups = np.flatnonzero(~migrated), np.flatnonzero(migrated)
    spaces = _spaces(items, calibration, metric)
    parts = [
        _part(mix, rows, queries, items, spaces, k, own)
        for mix, rows in zip(mixes, groups, strict=True)
    ]
    return best(np.hstack([part[0] for part in parts]), np.hstack([part[1] for part in parts]), k)


def _part(mix: Mix, rows, queries: dict, items: dict, spaces: dict, k: int, own):
    """Return scores and rows (Q, k) of some gallery rows."""
    pairs = [PAIRS[name] for name in mix.factors]
    asked = [
        weighted(factor, spaces[of].queries(queries[by]))
        for factor, (by, of) in zip(mix.factors.values(), pairs, strict=True)
    ]

    def block(some):
        return np.concatenate([spaces[of].items(items[of][some]) for _, of in pairs], axis=1)

    score, found = top(np.concatenate(asked, axis=1), block, rows, k, own)
    return score + np.reshape(np.asarray(mix.shift, np.float32), (-1, 1)), found


def _spaces(items: dict, calibration: Calibration | None, metric: str) -> dict[str, Space]:
    """Return how item vectors of each kind are compared."""
    if calibration is not None:
        return {"old": calibration.old, "new": calibration.new, "translated": calibration.new}
    found = {}
    for kind in ("old", "new", "translated"):
        sample = items["translated"] if kind == "new" else items[kind]
        sample = items[kind] if sample is None else sample  # new and translated are one space
        if sample is not None:
            found[kind] = Space.of(sample, metric)
    return found


def _checked(way: Way, query_old, query_new, old, new, translated, migrated, k):
    """Return the query and the item vectors by kind. Raises UserError for what does not fit."""
    if np.ndim(migrated) != 1 or np.asarray(migrated).dtype != bool:
        raise UserError(
            "migrated must be (N,) of True and False, one for each item of the gallery; "
            f"it is {np.asarray(migrated).dtype} {np.shape(migrated)}"
        )
    if not isinstance(k, int | np.integer) or k < 1:
        raise UserError(f"k must be a whole number from 1 on, not {k!r}")
    queries = {"old": query_old, "new": query_new}
    items = {"old": old, "new": new, "translated": translated}
    needed = [kind for kind in items if kind in way.items or (kind == "new" and way.done)]
    asked = {f"query_{kind}": queries[kind] for kind in way.queries}
    stored = {kind: items[kind] for kind in needed}
    for name, array in (asked | stored).items():
        if array is None:
            raise UserError(f"{way.name} search needs {name}=…")
        if np.ndim(array) != 2:
            raise UserError(f"{name} must have shape (n, dimension), not {np.shape(array)}")
    for name, array in stored.items():
        if len(array) != len(migrated):
            raise UserError(
                f"{name} has {len(array):,} rows, but migrated says of {len(migrated):,} items "
                "whether they are re-embedded"
            )
    counts = {name: len(array) for name, array in asked.items()}
    if len(set(counts.values())) > 1:
        raise UserError(f"the same queries by both models are needed; there are {counts}")
    widths = {name: array.shape[1] for name, array in (asked | stored).items()}
    for kind in way.queries:
        for name in needed:
            same_space = (name == "old") == (kind == "old")
            if same_space and widths[name] != widths[f"query_{kind}"]:
                raise UserError(
                    f"query_{kind} has dimension {widths[f'query_{kind}']}, but {name} has "
                    f"{widths[name]}; are old and new swapped? dimensions: {widths}"
                )
    return queries, items
