"""Searching a partly re-embedded gallery, so that it is never worse than before.

Scores of two spaces are not comparable: merged unchanged, they rank worse than either space
alone. Here each query's scores are brought to one scale by their *tail*, the scores of the best
items of a reference sample embedded by both models. The sample's items are the same in both
spaces, so no label is needed. The correction is one factor and one shift per query, known
before the search: the factor multiplies the query, and ordinary inner-product indexes do the rest
(`Calibration.affine`). The way's row of the table (`fct_jax.upgrade.ways.WAYS`) says which scores
are added.
"""

import functools
from collections.abc import Mapping

import numpy as np

from fct_jax.errors import UserError
from fct_jax.evaluate.nearest import best
from fct_jax.upgrade.maps.backward import Backward
from fct_jax.upgrade.ways import PAIRS, Asked, Mix, Way, angle_between, find_way, weighted
from fct_jax.upgrade.ways.calibration import Calibration
from fct_jax.upgrade.ways.moving import add_moved
from fct_jax.upgrade.ways.scores import Space, chosen_metric, top
from fct_jax.upgrade.ways.stages import second_stage, union


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
    metric: str = "",
    own: np.ndarray | None = None,
    query_bridged=None,
    backward: Backward | None = None,
    settings: Mapping[str, object] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best items of a half-migrated gallery for each query, exactly.

    Args:
      way: a name of `WAYS`, or a `Way`.
      query_old, query_new: (Q, do), (Q, dn) the queries by both models; queries that the way does
        not need may be None.
      old, new: (N, do), (N, dn) the gallery by both models, memory maps or not; only the
        migrated rows of ``new`` are read.
      migrated: (N,) bool, True for re-embedded items.
      k: results per query.
      calibration: a result of `calibrate`, for ways that need both models.
      translated: (N, dn) h(old), for ways that need it.
      metric: "l2" or "cosine", used without a calibration; "" chooses cosine for unit vectors,
        otherwise l2.
      own: (Q,) the row that is never a query's result, or None.
      query_bridged: (Q, do) new queries mapped to the old space, for ways that need them.
      backward: the backward map of a common space, for ways that need it: `Map.backward` of a map
        by the method "common" or "common_relaxed", or `closed_form_turn`.
      settings: settings of the way, for example {"weight": 0.3} for a blend; None: its defaults.

    Returns scores (Q, k) float32, descending, and rows (Q, k) int64, filled with −inf and −1 if
    the gallery has fewer items.

    Raises UserError for arguments that are missing or do not match.

    Example:

        scores, rows = search("fused", query_old, query_new, old, new, migrated, 10, calibration)
    """
    way = find_way(way)
    if settings:
        way = way.having(**settings)
    queries = {"old": query_old, "new": query_new}
    queries |= {"bridged": query_bridged}
    items = {"old": old, "new": new, "translated": translated}
    add_moved(way, queries, items, backward)
    _check(way, queries, items, migrated, k)
    if not way.calibrated:
        calibration = None  # nothing is brought to one scale
    elif calibration is not None and not isinstance(calibration, Calibration):
        raise UserError(f"calibration must be a Calibration, not {type(calibration).__name__}")
    affine = None
    if calibration is not None:
        affine = functools.cache(lambda: calibration.affine(query_old, query_new))
    asked = Asked(way, affine, functools.cache(lambda: angle_between(query_old, query_bridged)))
    spaces = _spaces(items, calibration, metric)
    left, migrated = way.left(asked), np.asarray(migrated)
    if way.reranked is not None:
        return _two_stages(way, asked, left, queries, items, spaces, migrated, k, own)
    groups = [(left, np.flatnonzero(~migrated)), (left, np.flatnonzero(migrated))]
    if way.done is not None:
        groups[1] = way.done(asked), groups[1][1]
    parts = [_part(mix, rows, queries, items, spaces, k, own) for mix, rows in groups]
    return best(np.hstack([part[0] for part in parts]), np.hstack([part[1] for part in parts]), k)


def _two_stages(way: Way, asked, left: Mix, queries, items, spaces, migrated, k: int, own):
    """Return the results of ``left`` with the first ones re-ranked."""
    depth = int(way.settings["depth"])
    if depth < 1:
        raise UserError(f"depth must be at least 1, not {depth}")
    everything, wanted = np.arange(len(migrated)), max(k, depth)
    scores, rows = _part(left, everything, queries, items, spaces, wanted, own)
    if way.beside is not None:
        _, others = _part(way.beside(asked), everything, queries, items, spaces, wanted, own)
        rows = union(rows, others)[:, :wanted]
        scores = _scores_at(left, rows, rows >= 0, queries, items, spaces)
        scores = np.where(rows >= 0, scores, -np.inf)
    first = rows[:, :depth]
    anew = way.reranked(asked)
    anew = _scores_at(anew, first, (first >= 0) & migrated[first], queries, items, spaces)
    return second_stage(scores, rows, anew, migrated, k)


def _scores_at(mix: Mix, rows, used, queries: dict, items: dict, spaces: dict) -> np.ndarray:
    """Return the scores of each query with its own rows (Q, K), of which those ``used`` count."""
    found = np.zeros(rows.shape)
    for name, factor in mix.factors.items():
        by, of = PAIRS[name]
        query, near = spaces[of].queries(queries[by]), np.zeros(found.shape)
        for i, own_rows in enumerate(rows):
            some = np.flatnonzero(used[i])
            own_items = spaces[of].items(items[of][own_rows[some]])
            # Products of a few short rows warn on some processors of values that are not theirs.
            near[i, some] = np.einsum("nd,d->n", own_items, query[i], dtype=np.float64)
        found += np.reshape(np.asarray(factor, np.float64), (-1, 1)) * near
    return found + np.reshape(np.asarray(mix.shift, np.float64), (-1, 1))


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
    """Return the space of each kind of item vectors."""
    if calibration is not None:
        # Both kinds of new vectors are of one space; the damping is of scores that meet.
        plain = calibration.new.damped(0.0, None)
        return {"old": calibration.old, "new": calibration.new, "translated": plain}
    found = {}
    # Translated and new vectors are of one space, both in the new model's and in a common one.
    for kind, first, measured in (
        ("old", "old", "old"),
        ("new", "translated", "new"),
        ("translated", "translated", "translated"),
        ("moved", "forward", "new"),
        ("forward", "forward", "translated"),
    ):
        sample = items.get(kind) if items.get(first) is None else items[first]
        if sample is not None:
            seen = items[measured] if items[measured] is not None else sample
            found[kind] = Space.of(sample, chosen_metric(metric, seen)[0])
    return found


def _check(way: Way, queries: dict, items: dict, migrated, k) -> None:
    """Raise UserError for arguments that are missing or do not match."""
    if np.ndim(migrated) != 1 or np.asarray(migrated).dtype != bool:
        raise UserError(
            "migrated must be (N,) of True and False, one per item of the gallery; "
            f"it is {np.asarray(migrated).dtype} {np.shape(migrated)}"
        )
    if not isinstance(k, int | np.integer) or k < 1:
        raise UserError(f"k must be a whole number of at least 1, not {k!r}")
    moved = way.done is not None or way.reranked is not None
    needed = [kind for kind in items if kind in way.items or (kind == "new" and moved)]
    asked = {f"query_{kind}": queries.get(kind) for kind in way.queries}
    stored = {kind: items[kind] for kind in needed}
    for name, array in (asked | stored).items():
        if array is None:
            raise UserError(f"{way.name} search needs {name}=…")
        if np.ndim(array) != 2:
            raise UserError(f"{name} must have shape (n, dimension), not {np.shape(array)}")
    for name, array in stored.items():
        if len(array) != len(migrated):
            raise UserError(
                f"{name} has {len(array):,} rows, but migrated has {len(migrated):,}; both must "
                "have one per item"
            )
    counts = {name: len(array) for name, array in asked.items()}
    if len(set(counts.values())) > 1:
        raise UserError(f"the numbers of queries must be equal; they are {counts}")
    widths = {name: array.shape[1] for name, array in (asked | stored).items()}
    for by, of in PAIRS.values():
        query = f"query_{by}"
        if query in asked and of in stored and widths[query] != widths[of]:
            raise UserError(
                f"{query} has dimension {widths[query]}, but {of} has {widths[of]}; are old and "
                f"new swapped? dimensions: {widths}"
            )
