"""Searching a gallery of which a part is re-embedded, so that it is never worse than before.

Three ways. *translated*: one space; items that are not re-embedded stand as h(old), the query is
the new model's. *dual*: the old query against the old vectors of items that are not re-embedded,
the new query against the others. *fused*: old vectors are kept, and a re-embedded item scores by
both spaces.

Scores of two spaces are not comparable: merged as they are they rank worse than either space
alone. Here each query's scores are brought to one scale by their *tail*, the scores of the best
items of a reference sample embedded by both models; the sample's items are the same in both
spaces, so that no label is needed. The correction is one factor and one shift a query, known
before the search: it multiplies the query, and ordinary inner-product indexes do the rest
(`Calibration.affine`).
"""

import numpy as np

from fct_jax.errors import UserError, unknown
from fct_jax.upgrade.ways.calibration import Calibration
from fct_jax.upgrade.ways.scores import Space, best, top

WAYS = ("translated", "dual", "fused")


def search(
    way: str,
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
    """The k best items of a half-migrated gallery for each query, exactly.

    Args:
      way: "translated", "dual" or "fused".
      query_old, query_new: (Q, do), (Q, dn) the queries by both models ("translated" needs the
        new ones alone).
      old, new: (N, do), (N, dn) the gallery by both models, memory maps or not; of ``new`` the
        migrated rows alone are read.
      migrated: (N,) bool, which items are re-embedded.
      k: results a query.
      calibration: of `calibrate`, for "dual" and "fused".
      translated: (N, dn) h(old), for "translated".
      metric: of the new space, for "translated".
      own: (Q,) the row that is never a query's result, or None.

    Returns scores (Q, k) float32, descending, and rows (Q, k) int64; −inf and −1 where the
    gallery has fewer items.
    """
    if way not in WAYS:
        raise unknown("way of serving", way, WAYS)
    left, done = np.flatnonzero(~migrated), np.flatnonzero(migrated)
    if way == "translated":
        space = Space.of(new if translated is None else translated, metric)
        queries = space.queries(query_new)
        parts = [
            top(queries, lambda rows: space.items(translated[rows]), left, k, own),
            top(queries, lambda rows: space.items(new[rows]), done, k, own),
        ]
        return _merged(parts, k)
    if calibration is None:
        raise UserError(f"{way} search needs a calibration; see fct_jax.upgrade.calibrate")
    c, affine = calibration, calibration.affine(query_old, query_new)
    asked_old, asked_new = c.old.queries(query_old), c.new.queries(query_new)
    score, row = top(
        asked_old * affine.keep[:, None], lambda rows: c.old.items(old[rows]), left, k, own
    )
    parts = [(score + affine.keep_shift[:, None], row)]
    if way == "dual":
        score, row = top(
            asked_new * affine.dual[:, None], lambda rows: c.new.items(new[rows]), done, k, own
        )
        parts.append((score + affine.dual_shift[:, None], row))
    else:
        both = np.concatenate(
            [asked_old * affine.fused_old[:, None], asked_new * affine.fused_new[:, None]], axis=1
        )

        def items(rows):
            return np.concatenate([c.old.items(old[rows]), c.new.items(new[rows])], axis=1)

        score, row = top(both, items, done, k, own)
        parts.append((score + affine.fused_shift[:, None], row))
    return _merged(parts, k)


def _merged(parts, k: int):
    return best(np.hstack([part[0] for part in parts]), np.hstack([part[1] for part in parts]), k)
