"""CMC and mean average precision of a retrieval, for all queries, per class or per group."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.evaluate.distances import (
    Keys,
    as_labels,
    as_vectors,
    check_metric,
    check_same_length,
    check_same_width,
    unit_rows,
)


@dataclass(frozen=True)
class PerQuery:
    """Results of each of Q queries.

    ap: average precision (Q,), NaN for queries without a positive, which the mean leaves out.
    hit: for each k, (Q,) bool: whether a positive is among the k nearest.
    """

    ap: np.ndarray
    hit: dict[int, np.ndarray]

    def mean(self, of=slice(None)) -> dict[str, float]:
        """Return ``{"cmc@1": …, "map": …}`` over all queries, or over those in the mask ``of``.

        As published, CMC counts a query without a positive as a miss, and "map" leaves it out.
        If no query has a positive, all values are NaN.
        """
        ap = self.ap[of]
        ap = ap[~np.isnan(ap)]
        if not len(ap):
            return dict.fromkeys([*(f"cmc@{k}" for k in self.hit), "map"], float("nan"))
        values = {f"cmc@{k}": float(np.mean(hit[of])) for k, hit in self.hit.items()}
        return {**values, "map": float(np.mean(ap))}


def retrieval_metrics(
    query,
    gallery,
    query_labels,
    gallery_labels=None,
    *,
    metric: str = "l2",
    ks: Sequence[int] = (1, 5),
) -> dict[str, float]:
    """Return CMC@k and mAP of searching ``gallery`` with ``query``, as fractions from 0 to 1.

    query (Q, D) and gallery (G, D) vectors, query_labels (Q,), gallery_labels (G,). Without
    gallery_labels the evaluation is leave-one-out: both sets hold the same items (of two models,
    say), item i is query i, and its own vector never counts, however small the set.
    metric: "l2" or "cosine".

    Returns ``{"cmc@1": …, "cmc@5": …, "map": …}``. CMC@k is the share of queries with an item of
    their class among the k nearest; of equally near items the lower gallery row comes first, and
    a query whose class has no other item is a miss.
    "map" is the mean, over queries with a positive, of average precision over the
    whole ranking, equally near items forming one threshold (as in scikit-learn's
    ``average_precision_score``). If no query has a positive, all values are NaN.
    Protocol of FCT (CVPR 2022, section 5). Memory does not grow with Q·G.

    Raises UserError for an empty set, NaN or infinity, different lengths or dimensions,
    an unknown metric, or a k below 1.

    >>> gallery, labels = [[0.0], [0.1], [1.0], [1.1]], [0, 0, 1, 1]
    >>> found = retrieval_metrics([[0.05], [0.9]], gallery, [0, 0], labels, ks=(1,))
    >>> {name: round(value, 3) for name, value in found.items()}
    {'cmc@1': 0.5, 'map': 0.708}
    """
    results = per_query_results(query, gallery, query_labels, gallery_labels, metric=metric, ks=ks)
    return results.mean()


def per_query_results(
    query,
    gallery,
    query_labels,
    gallery_labels=None,
    *,
    metric: str = "l2",
    ks: Sequence[int] = (1, 5),
    progress: Callable[[int], None] | None = None,
) -> PerQuery:
    """Return the results of `retrieval_metrics` before the mean.

    ``progress`` is called with the number of queries done, block after block.

    >>> found = per_query_results([[0.0], [0.1], [1.0]], [[0.0], [0.1], [1.0]], [0, 0, 1], ks=(1,))
    >>> found.ap.tolist(), found.hit[1].tolist()  # the third has no other item of its class
    ([1.0, 1.0, nan], [True, True, False])
    """
    check_metric(metric)
    ks = check_ks(ks)
    query, gallery = as_vectors("query", query), as_vectors("gallery", gallery)
    check_same_width("query", query, "gallery", gallery)
    query_labels = as_labels("query_labels", query_labels, len(query))
    leave_one_out = gallery_labels is None
    if leave_one_out:
        check_same_length("query", query, "gallery", gallery)
        gallery_labels = query_labels
    else:
        gallery_labels = as_labels("gallery_labels", gallery_labels, len(gallery))
    if metric == "cosine":
        keys = Keys(unit_rows(query), unit_rows(gallery), "dot")
    else:
        keys = Keys(query, gallery, "l2")
    return results_of_keys(
        keys, query_labels, gallery_labels, leave_one_out=leave_one_out, ks=ks, progress=progress
    )


def results_of_keys(
    keys: Keys, query_labels, gallery_labels, *, leave_one_out: bool, ks, progress=None
) -> PerQuery:
    """Return `per_query_results` of checked labels and any keys."""
    from fct_jax.evaluate.ranking import rank_positives  # late: importing Numba takes a second

    ap, first = rank_positives(
        keys, query_labels, gallery_labels, leave_one_out=leave_one_out, progress=progress
    )
    found = ~np.isnan(ap[:, 0, 0])
    return PerQuery(ap[:, 0, 0], {k: found & (first[:, 0, 0] < k) for k in ks})


def grouped(per_query: PerQuery, groups) -> dict[object, dict[str, float]]:
    """Return metrics of each group of queries, ``{group: {"cmc@1": …, "map": …}}``, groups sorted.

    groups (Q,): one label per query, such as its class or any other division of the queries.
    Raises UserError if the numbers of groups and queries differ.

    >>> vectors, labels = [[0.0], [0.1], [1.0], [5.0]], [0, 0, 1, 1]
    >>> found = grouped(per_query_results(vectors, vectors, labels, ks=(1,)), labels)
    >>> {group: values["cmc@1"] for group, values in found.items()}
    {0: 1.0, 1: 0.5}
    """
    groups = as_labels("groups", groups, len(per_query.ap))
    return {g.item(): per_query.mean(groups == g) for g in np.unique(groups)}


def read_groups(path: str, count: int) -> np.ndarray | None:
    """Return the groups of ``count`` queries from a .npy of integers, or None for the path "".

    Raises UserError if the file is missing, cannot be read or has another shape.
    """
    if not path:
        return None
    if not Path(path).is_file():
        raise UserError(f"config.groups={path} is not a file; give a .npy of {count} integers")
    try:
        groups = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"config.groups={path} is not a .npy of integers: {error}") from None
    if groups.shape != (count,):
        raise UserError(f"{path} has shape {groups.shape}, but there are {count} queries")
    return groups


def check_ks(ks: Sequence[int]) -> tuple[int, ...]:
    """Return ``ks`` as a tuple of integers. Raises UserError if it is empty or one is below 1."""
    ks = tuple(ks)
    if not ks or any(int(k) != k or k < 1 for k in ks):
        raise UserError(f"ks must be whole numbers of at least 1, such as (1, 5), not {ks}")
    return tuple(int(k) for k in ks)
