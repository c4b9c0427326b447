"""One row of a comparison of compatible models: self, cross, hot refresh, negative flips, gaps.

A *score* is a function ``(query (Q, D), gallery (G, D)) -> Scored``; there is one for each kind of
test set, so that landmarks, persons, faces and classes stand side by side in one report.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fct_jax.compare.measures import SHARES, hot_refresh_curve, negative_flip_rate
from fct_jax.errors import UserError
from fct_jax.evaluate.metrics import grouped, per_query_results
from fct_jax.evaluate.protocols.landmarks import PROTOCOLS, ap_at_k, revisited_per_query
from fct_jax.evaluate.search import knn


class Scored(NamedTuple):
    """``map`` as a fraction; ``hit`` (Q,): is the nearest item right; ``groups``: mAP of each;
    ``more``: other metrics that the test set is known for."""

    map: float
    hit: np.ndarray | None = None
    groups: Mapping[object, float] | None = None
    more: Mapping[str, float] | None = None


Score = Callable[[np.ndarray, np.ndarray], Scored]


class Row(NamedTuple):
    """Vectors of one model on one test set.

    Attributes:
      query: (Q, D) by the model.
      gallery: (G, D) by the model.
      old_gallery: (G, D) what is searched before the gallery is re-embedded: the old model's
        vectors, or those vectors through a transformation.
    """

    query: np.ndarray
    gallery: np.ndarray
    old_gallery: np.ndarray


def labelled(labels, query_labels=None, *, groups=None) -> Score:
    """Class labels: mAP over the full ranking, cosine; groups are the queries' classes.

    Args:
      labels: (G,) of the gallery.
      query_labels: (Q,); None: leave-one-out, item i is query i.
      groups: (Q,) other groups of queries.
    """
    own = np.asarray(labels if query_labels is None else query_labels)
    groups = own if groups is None else np.asarray(groups)
    gallery_labels = None if query_labels is None else labels

    def score(query, gallery) -> Scored:
        found = per_query_results(query, gallery, own, gallery_labels, metric="cosine", ks=(1,))
        per_group = {name: values["map"] for name, values in grouped(found, groups).items()}
        return Scored(found.mean()["map"], found.hit[1], per_group)

    return score


def group_means(values: np.ndarray, groups) -> dict | None:
    """{group: mean of its ``values`` (Q,)}, NaN left out; None without ``groups`` (Q,)."""
    if groups is None:
        return None
    groups, counts = np.asarray(groups), ~np.isnan(values)
    return {
        name.item(): float(values[counts & (groups == name)].mean())
        for name in np.unique(groups[counts])
    }


def revisited(ground_truth: Sequence[Mapping], protocol: str = "medium", *, groups=None) -> Score:
    """ROxford5k or RParis6k: mAP of "easy", "medium" (the published figure) or "hard".

    ``groups`` (Q,) of the queries, their landmarks say.
    """
    wanted, removed = PROTOCOLS[protocol]

    def rows(truth, kinds):
        return np.concatenate([np.asarray(truth[kind], np.int64) for kind in kinds])

    positives = [rows(truth, wanted) for truth in ground_truth]
    junk = [rows(truth, removed) for truth in ground_truth]

    def score(query, gallery) -> Scored:
        _, ids = knn(query, gallery, len(gallery), metric="cosine")
        ap, precision = revisited_per_query(ids.T, positives, junk, (1,))
        scored = ~np.isnan(ap)
        hit = precision[scored, 0] == 1
        return Scored(float(ap[scored].mean()), hit, group_means(ap, groups))

    return score


def landmarks(positives: Sequence, k: int = 100, *, groups=None) -> Score:
    """Google Landmarks v2: mAP@100; ``groups`` (Q,) of the queries."""

    def score(query, gallery) -> Scored:
        _, ids = knn(query, gallery, k, metric="cosine")
        hit = np.array([ids[i, 0] in set(rows) for i, rows in enumerate(positives)])
        aps = ap_at_k(ids, positives, k)
        return Scored(float(aps.mean()), hit, group_means(aps, groups))

    return score


def measure(
    score: Score,
    old: Row,
    rows: Mapping[str, Row],
    *,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
) -> dict[str, dict]:
    """Scores the old model and every row of one test set.

    Returns:
      ``{"old": {"self"}, row: {"self", "cross", "curve" (S,), "nfr", "relative_nfr", "gap"}}``:
      mAPs as fractions; ``curve`` at each share of a re-embedded gallery; negative flips of
      cross against old search, and the difference of the best and the worst group in cross
      search, where the score gives them; likewise its other metrics, "self NAME", "cross NAME".

    Raises:
      UserError: vectors that do not fit together, or are not finite.
    """
    before = score(old.query, old.gallery)
    found = {"old": _with_gap({"self": before.map, **_more("self", before)}, before)}
    for name, row in rows.items():
        if np.shape(row.query)[1] != np.shape(row.old_gallery)[1]:
            raise UserError(
                f"{name} has embeddings of {np.shape(row.query)[1]}, the gallery that it searches "
                f"of {np.shape(row.old_gallery)[1]}"
            )
        cross = score(row.query, row.old_gallery)

        own = score(row.query, row.gallery)

        def mean_ap(gallery, row=row):
            return {"map": score(row.query, gallery).map}

        # What is already scored is not searched again.
        inner = [share for share in shares if 0 < share < 1]
        points = {0.0: cross.map, 1.0: own.map}
        if inner:
            curve = hot_refresh_curve(
                row.gallery, row.old_gallery, mean_ap, shares=inner, seed=seed
            )
            points |= zip(inner, curve.values["map"].tolist(), strict=True)
        values = {
            "self": own.map,
            "cross": cross.map,
            "curve": [points[float(share)] for share in shares],
            **_more("self", own),
            **_more("cross", cross),
        }
        if before.hit is not None and cross.hit is not None:
            values |= negative_flip_rate(before.hit, cross.hit)
        found[name] = _with_gap(values, cross)
    return found


def _more(kind: str, scored: Scored) -> dict[str, float]:
    return {f"{kind} {name}": value for name, value in (scored.more or {}).items()}


def _with_gap(values: dict, scored: Scored) -> dict:
    """Adds the gap between the best and the worst of several groups that have a mAP."""
    aps = [ap for ap in (scored.groups or {}).values() if not np.isnan(ap)]
    return {**values, "gap": max(aps) - min(aps)} if len(aps) > 1 else values
