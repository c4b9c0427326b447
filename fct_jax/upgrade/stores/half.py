"""Search in a half-migrated gallery in two stores of any kind.

The old store holds every item's old vector; its sibling holds the new vectors of the re-embedded
items (version `NEW`). Scores of two models are not comparable; the affine factors of
`fct_jax.upgrade.stores.affine` bring them to one scale, query by query.
"""

import numpy as np

from fct_jax.errors import UserError, unknown
from fct_jax.upgrade.stores.base import NEW, ranked

WAYS = ("dual", "fused")
_DEEPEST = 16_384  # largest number of results per query that every server allows
FUSED_DEPTH = 4  # candidates of each space per result, with fused
_FEWEST = 100


def search_half(
    old, new, queries_old, queries_new, k: int, affine, *, way="dual", exact: bool = False
):
    """Return the k best items of a half-migrated gallery for each query.

    With "dual" an item that is not re-embedded scores ``keep·s_old + keep_shift``, and a
    re-embedded one ``dual·s_new + dual_shift``; each list comes from its own index. With "fused" a
    re-embedded item scores ``fused_old·s_old + fused_new·s_new + fused_shift``; the candidates are
    the best `FUSED_DEPTH` times k of each space, and are scored exactly.

    Args:
      old, new: a `Store` and its sibling.
      queries_old, queries_new: (Q, do) and (Q, dn), the same queries embedded by both models.
      affine: factors and shifts of the stores' scores, (Q,) each.
      way: "dual" or "fused".
      exact: find candidates without the stores' indexes.

    Returns scores (Q, k) float32, descending, and ids (Q, k), in the form of `Store.search`.
    """
    check_way(way, affine, len(queries_old), len(queries_new))
    depth = depth_of(way, k)
    of_old, ids_old, migrated = _deep(old, new, queries_old, k, depth, exact)
    of_new, ids_new = new.search(queries_new, depth, only=NEW, exact=exact)
    hits = []
    for q in range(len(queries_old)):
        kept = np.isfinite(of_old[q]) & ~migrated[q]
        left = affine.keep[q] * of_old[q][kept] + affine.keep_shift[q]
        found = list(zip(left.tolist(), ids_old[q][kept].tolist(), strict=True))
        there = ids_new[q][np.isfinite(of_new[q])]
        if way == "dual":
            score = affine.dual[q] * of_new[q][: len(there)] + affine.dual_shift[q]
        else:
            there = np.union1d(there, ids_old[q][np.isfinite(of_old[q]) & migrated[q]])
            there, score = _fused(old, new, queries_old[q], queries_new[q], there, affine, q)
        found += zip(score.tolist(), there.tolist(), strict=True)
        hits.append(sorted(found, key=lambda hit: (-hit[0], hit[1])))
    return ranked(hits, k, old)


def check_way(way: str, affine, asked_old: int, asked_new: int) -> None:
    """Raise UserError for an unknown way, or for factors of other queries."""
    if way not in WAYS:
        raise unknown("way of searching two stores", way, WAYS)
    if not asked_old == asked_new == len(affine.keep):
        raise UserError(
            f"there are {asked_old} old and {asked_new} new queries, and factors of "
            f"{len(affine.keep)}; give the same queries to each"
        )


def depth_of(way: str, k: int) -> int:
    """Return the number of candidates to take from each space for k results."""
    return k if way == "dual" else max(FUSED_DEPTH * k, _FEWEST)


def scores(metric: str, query: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return the scores (n,) of vectors (n, D) for a query (D,), as in `Store.search`."""
    query, vectors = np.asarray(query, np.float64), np.asarray(vectors, np.float64)
    if metric == "l2":
        return -((vectors - query) ** 2).sum(axis=1) / 2
    inner = vectors @ query
    if metric == "cosine":
        length = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
        inner = inner / np.maximum(length, 1e-12)
    return inner


def _deep(old, new, queries, k: int, depth: int, exact: bool):
    """Search the old store deeply enough to find k items per query that are not re-embedded.

    Returns scores, ids and whether each item is re-embedded, (Q, depth) each.
    """
    total = old.count()
    while True:
        of_old, ids = old.search(queries, depth, exact=exact)
        states = new.states(np.unique(ids[np.isfinite(of_old)]))
        done = {one for one, (version, _) in states.items() if version == NEW}
        migrated = np.array([[one in done for one in row] for row in ids.tolist()], bool)
        enough = ((~migrated & np.isfinite(of_old)).sum(axis=1) >= k).all()
        if enough or depth >= min(total, _DEEPEST):
            return of_old, ids, migrated.reshape(ids.shape)
        depth = min(4 * depth, _DEEPEST)


def _fused(old, new, query_old, query_new, ids, affine, q: int):
    """Score re-embedded candidates exactly; return the ids that both stores have, and scores."""
    if not len(ids):
        return ids, np.zeros(0)
    in_old, vectors_old = old.get(ids)
    in_new, vectors_new = new.get(ids)
    both = in_old & in_new
    of_old = scores(old.metric, query_old, vectors_old[both[in_old]])
    of_new = scores(new.metric, query_new, vectors_new[both[in_new]])
    score = affine.fused_old[q] * of_old + affine.fused_new[q] * of_new + affine.fused_shift[q]
    return ids[both], score
