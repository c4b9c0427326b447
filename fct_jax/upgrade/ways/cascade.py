"""Cascade: the old index recalls candidates, and their new vectors rank them.

Only the candidates' new vectors are read, so they may be made on demand (`on_demand`); the
gallery is then re-embedded in the order of the queries.
"""

import numpy as np

from fct_jax.errors import UserError, unknown
from fct_jax.upgrade.ways import SCORES
from fct_jax.upgrade.ways.calibration import Calibration
from fct_jax.upgrade.ways.scores import Space, top
from fct_jax.upgrade.ways.stages import once, union

__all__ = ["candidate_scores", "cascade", "continued", "reranked", "union"]

_GATHERED = 1 << 22  # numbers of candidates' vectors held at a time


def cascade(
    query_old: np.ndarray,
    query_new: np.ndarray,
    old,
    new,
    *,
    depth: int,
    k: int,
    score: str = "new",
    calibration: Calibration | None = None,
    metric: str = "l2",
    old_metric: str | None = None,
    own: np.ndarray | None = None,
    candidates: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Rank the ``depth`` best items of the old index by their new vectors, exactly.

    Args:
      query_old, query_new: (Q, do), (Q, dn) the queries by both models.
      old, new: (N, do), (N, dn) the gallery by both models, memory maps or not; only the
        candidates' rows of ``new`` are read.
      depth: candidates per query; the whole gallery if it has fewer items.
      k: results per query; at most ``depth`` are found.
      score: "new" ranks by the new model's score. "sum" adds the old score after the calibration
        has brought both to one scale; without a calibration it adds the two cosines.
      calibration: a result of `calibrate`; its spaces and its scale of scores are then used.
      metric, old_metric: "l2" or "cosine", used without a calibration (old_metric None: the same).
      own: (Q,) the row that is never a query's result, or None.
      candidates: (Q, K) rows recalled by another index, best first, −1 for none: a translated
        index, say, or both indexes (see `union`). The old gallery is then read only for "sum", and
        only the first ``depth`` candidates of each query count.

    Returns scores (Q, k) float32, descending, and rows (Q, k) int64, filled with −inf and −1 if
    there are fewer. Equal scores keep the order of the candidates.

    Raises UserError for a depth or k below 1, an unknown score, or a sum of scores that cannot be
    added.

    Example: ``scores, rows = cascade(q_old, q_new, old, new, depth=100, k=10, metric="cosine")``.
    """
    for name, value in (("depth", depth), ("k", k)):
        if int(value) != value or value < 1:
            raise UserError(f"{name} must be a whole number of at least 1, not {value}")
    if score not in SCORES:
        raise unknown("score of a cascade", score, SCORES)
    if len(query_old) != len(query_new):
        raise UserError(
            f"a cascade needs each query embedded by both models; there are {len(query_old)} old "
            f"and {len(query_new)} new queries"
        )
    spaces = _spaces(query_old, query_new, calibration, metric, old_metric, score)
    if candidates is None:
        asked = spaces[0].queries(query_old)
        everything = np.arange(len(old))
        _, rows = top(
            asked, lambda rows: spaces[0].items(old[rows]), everything, min(depth, len(old)), own
        )
    else:
        rows = np.asarray(candidates)[:, :depth]
        if own is not None:
            rows = np.where(rows == own[:, None], -1, rows)
    found = candidate_scores(spaces[1], query_new, new, rows)
    if calibration is None:
        if score == "sum":
            found = found + candidate_scores(spaces[0], query_old, old, rows)
    else:
        affine = calibration.affine(query_old, query_new)
        if score == "sum":
            scored_old = candidate_scores(spaces[0], query_old, old, rows)
            found = affine.fused_new[:, None] * found + affine.fused_old[:, None] * scored_old
            found = found + affine.fused_shift[:, None]
        else:
            found = affine.dual[:, None] * found + affine.dual_shift[:, None]
    return reranked(rows, found, k)


def candidate_scores(space: Space, queries, gallery, rows: np.ndarray) -> np.ndarray:
    """Return the score of each query with its own candidates, (Q, K) float64; −inf for row −1.

    queries (Q, D); gallery (N, D), of which only the rows (Q, K) are read, each once per block of
    queries.
    """
    asked = space.queries(queries)
    scores = np.full(rows.shape, -np.inf)
    size = max(1, _GATHERED // max(1, rows.shape[1] * asked.shape[1]))
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        wanted, place = np.unique(rows[part], return_inverse=True)
        if not len(wanted) or wanted[-1] < 0:
            continue
        items = space.items(np.asarray(gallery[np.maximum(wanted, 0)])).astype(np.float64)
        near = items[place.reshape(rows[part].shape)]
        scores[part] = np.einsum("qe,qke->qk", asked[part].astype(np.float64), near)
    scores[rows < 0] = -np.inf
    return scores


def reranked(rows: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best candidates by score; of equal scores the earlier candidate comes first.

    rows, scores (Q, K) → scores (Q, k) float32, rows (Q, k) int64, filled with −inf and −1.
    """
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    missing = ((0, 0), (0, max(0, k - order.shape[1])))
    scores = np.pad(np.take_along_axis(scores, order, 1), missing, constant_values=-np.inf)
    rows = np.pad(np.take_along_axis(rows, order, 1), missing, constant_values=-1)
    return scores.astype(np.float32), np.where(np.isneginf(scores), -1, rows).astype(np.int64)


def continued(ranked: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Append the remaining candidates to the ranked rows: (Q, k), (Q, K) → (Q, k + K).

    Each row appears once; −1 fills the end. Measures that look beyond the depth of a cascade,
    such as average precision, thus see the old order there.
    """
    return once(np.concatenate([ranked, candidates], axis=1))


def _spaces(query_old, query_new, calibration, metric, old_metric, score):
    if calibration is not None:
        return calibration.old, calibration.new
    spaces = (
        Space.of(np.asarray(query_old), old_metric or metric),
        Space.of(np.asarray(query_new), metric),
    )
    if score == "sum" and any(space.metric != "cosine" for space in spaces):
        raise UserError(
            "two L2 scores can only be added with a calibration; give one from "
            'fct_jax.upgrade.calibrate, or metric="cosine"'
        )
    return spaces
