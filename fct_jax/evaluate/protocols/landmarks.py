"""Landmark retrieval: revisited Oxford and Paris (easy, medium, hard) and Google Landmarks."""

from collections.abc import Mapping, Sequence

import numpy as np

from fct_jax.errors import UserError

# protocol: kinds that count as hits, and kinds that are removed before scoring
PROTOCOLS = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}


def revisited_map(
    ranks, ground_truth: Sequence[Mapping], kappas: Sequence[int] = (1, 5, 10)
) -> dict[str, dict[str, float]]:
    """Return mAP and mean precision at k of revisited Oxford/Paris (Radenović et al., CVPR 2018).

    Source: https://arxiv.org/abs/1803.11285.

    Args:
      ranks: (gallery, queries) integers; column q holds gallery rows, nearest first.
        Rows that are missing, or -1, count as not found.
      ground_truth: a mapping for each query, with gallery rows under ``easy``, ``hard``, ``junk``.
      kappas: the k of the mean precisions.

    Returns:
      ``{"easy" | "medium" | "hard": {"map": …, "mp@1": …, …}}`` as fractions. A query without a
      positive is left out of that protocol's means, which are NaN if no query is left.

    Raises:
      UserError: no query, or another number of columns than of ground truths.

    >>> truth = [{"easy": [2], "hard": [0], "junk": [1]}]
    >>> found = revisited_map(np.array([[1], [0], [2]]), truth, kappas=(1,))
    >>> found["hard"]  # junk leaves the ranking; the easy item is junk here
    {'map': 1.0, 'mp@1': 1.0}
    """
    ranks = _check(ranks, ground_truth)
    report = {}
    for protocol, (wanted, removed) in PROTOCOLS.items():
        positives = [_rows(truth, wanted) for truth in ground_truth]
        junk = [_rows(truth, removed) for truth in ground_truth]
        ap, precision = revisited_per_query(ranks, positives, junk, kappas)
        scored = ~np.isnan(ap)
        report[protocol] = {"map": _mean(ap[scored])}
        for column, kappa in enumerate(kappas):
            report[protocol][f"mp@{kappa}"] = _mean(precision[scored, column])
    return report


def revisited_per_query(ranks, positives, junk, kappas=(1, 5, 10)) -> tuple[np.ndarray, np.ndarray]:
    """Return trapezoid average precision (Q,) and precision at each k (Q, K) of single queries.

    Junk leaves the ranking first. A query without positives is NaN. The precision at k divides
    by ``min(k, rank of the last hit)``, as the benchmark's own evaluation does.
    """
    ranks = _check(ranks, positives)
    kappas = np.asarray(kappas, np.int64)
    ap = np.full(len(positives), np.nan)
    precision = np.full((len(positives), len(kappas)), np.nan)
    for query, (hits, ignored) in enumerate(zip(positives, junk, strict=True)):
        hits = np.unique(np.asarray(hits, np.int64))
        hits = hits[hits >= 0]
        if hits.size == 0:
            continue
        column = ranks[:, query]
        found = np.flatnonzero(np.isin(column, hits))
        skipped = np.flatnonzero(np.isin(column, np.asarray(ignored, np.int64)))
        # The rank of a hit once the junk above it is gone.
        found = found - np.searchsorted(skipped, found)
        ap[query] = _trapezoid_ap(found, hits.size)
        depth = np.minimum(kappas, found[-1] + 1 if found.size else kappas)
        precision[query] = np.searchsorted(found, depth) / depth
    return ap, precision


def map_at_k(ranked, positives: Sequence, k: int = 100) -> float:
    """Return the mean average precision of the first k results (Google Landmarks v2: k = 100).

    This is the mean of `ap_at_k`, with its arguments and errors. Queries without hits or without
    positives count as 0, as in the published evaluation.

    >>> map_at_k([[4, 2, 9, 7]], [[2, 7]], k=3)  # hits at ranks 2 and 4, of which 3 count
    0.25
    """
    return float(ap_at_k(ranked, positives, k).mean())


def ap_at_k(ranked, positives: Sequence, k: int = 100) -> np.ndarray:
    """Return the average precision (Q,) of the first k results of each query.

    AP is the sum of the precisions at the hits over ``min(number of positives, k)``, 0 without
    hits or without positives.

    Args:
      ranked: (Q, n) integer ids, best first; -1 is padding and never a hit.
      positives: for each query its relevant ids.
      k: number of results that count. The published code counts hits beyond k and only divides by
        at most k (APs above 1); here the ranking is cut at k.

    Raises:
      UserError: no query, k below 1, or different numbers of rankings and positives.
    """
    ranked = np.asarray(ranked)
    if ranked.ndim != 2 or len(ranked) != len(positives) or len(ranked) == 0:
        raise UserError(
            f"map_at_k needs one ranking a query: rankings {ranked.shape}, "
            f"positives of {len(positives)} queries"
        )
    if k < 1:
        raise UserError(f"map_at_k: k must be at least 1, not {k}")
    ranked = ranked[:, :k].astype(np.int64)
    positives = [np.unique(np.asarray(ids, np.int64)) for ids in positives]
    positives = [ids[ids >= 0] for ids in positives]
    counts = np.array([ids.size for ids in positives])

    # One key for each (query, id), so that all queries are looked up at once.
    width = 1 + max(ranked.max(initial=0), max(ids.max(initial=0) for ids in positives))
    query = np.arange(len(ranked))
    right = np.concatenate(positives) + np.repeat(query, counts) * width
    hit = np.isin(ranked + query[:, None] * width, right) & (ranked >= 0)

    precision = np.cumsum(hit, axis=1) / np.arange(1, ranked.shape[1] + 1)
    return (precision * hit).sum(axis=1) / np.maximum(np.minimum(counts, k), 1)


def _trapezoid_ap(found: np.ndarray, num_positives: int) -> float:
    """Return the mean precision just before and at each hit; ``found``: sorted 0-based ranks."""
    number = np.arange(len(found))
    before = np.where(found == 0, 1.0, number / np.maximum(found, 1))
    return float((before + (number + 1) / (found + 1)).sum() / (2 * num_positives))


def _rows(truth: Mapping, names: Sequence[str]) -> np.ndarray:
    parts = [np.asarray(truth.get(name, ()), np.int64).ravel() for name in names]
    return np.concatenate(parts)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def _check(ranks, ground_truth) -> np.ndarray:
    ranks = np.asarray(ranks)
    if len(ground_truth) == 0:
        raise UserError("the ground truth is empty: it has no query")
    if ranks.ndim != 2 or ranks.shape[1] != len(ground_truth):
        raise UserError(
            f"ranks must be (gallery, queries) with {len(ground_truth)} columns, not {ranks.shape}"
        )
    return ranks
