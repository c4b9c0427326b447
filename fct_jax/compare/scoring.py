"""Scores of each kind of test set, and one row of a comparison of compatible models.

A *score* is a function ``(query (Q, D), gallery (G, D)) -> Scored``; there is one for each kind of
test set, so that landmarks, persons, faces and classes stand side by side in one report. `measure`
makes a row of it: self, cross, hot refresh, negative flips, gaps.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fct_jax.compare.measures import SHARES, hot_refresh_curve, negative_flip_rate
from fct_jax.data.ijb import Media, Pairs, Subjects
from fct_jax.errors import UserError
from fct_jax.evaluate.distances import unit_rows
from fct_jax.evaluate.metrics import grouped, per_query_results
from fct_jax.evaluate.orders import backfill_order
from fct_jax.evaluate.protocols.landmarks import PROTOCOLS, ap_at_k, revisited_per_query
from fct_jax.evaluate.protocols.reid import k_reciprocal_rerank, market1501_per_query
from fct_jax.evaluate.protocols.verification import (
    identification_per_probe,
    pair_scores,
    pool_templates,
    tar_at_far,
    tpir_at_fpir,
)
from fct_jax.evaluate.search import knn
from fct_jax.storage.ids import first_ten

KS = (1, 5, 10)


class Scored(NamedTuple):
    """``map`` as a fraction; ``hit`` (Q,): whether the nearest item is right; ``groups``: mAP of
    each group; ``more``: other usual metrics of the test set."""

    map: float
    hit: np.ndarray | None = None
    groups: Mapping[object, float] | None = None
    more: Mapping[str, float] | None = None


Score = Callable[[np.ndarray, np.ndarray], Scored]


class Row(NamedTuple):
    """Vectors of one model on one test set.

    Attributes:
      query: (Q, D) queries by the model.
      gallery: (G, D) gallery by the model.
      old_gallery: (G, D) the gallery before re-embedding: the old model's vectors, possibly
        translated. None: the model cannot search it, because its vectors have another size.
      uncertainty: (G,) log-variance of each of these vectors, or None.
    """

    query: np.ndarray
    gallery: np.ndarray
    old_gallery: np.ndarray | None
    uncertainty: np.ndarray | None = None


def labelled(labels, query_labels=None, *, groups=None) -> Score:
    """Return the score of class labels: cosine mAP over the full ranking; groups are the classes.

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
    """Return {group: mean of its ``values`` (Q,) without NaN}, or None without ``groups`` (Q,)."""
    if groups is None:
        return None
    groups, counts = np.asarray(groups), ~np.isnan(values)
    return {
        name.item(): float(values[counts & (groups == name)].mean())
        for name in np.unique(groups[counts])
    }


def revisited(ground_truth: Sequence[Mapping], protocol: str = "medium", *, groups=None) -> Score:
    """Return the score of ROxford5k or RParis6k: mAP of "easy", "medium" (published) or "hard".

    ``groups`` (Q,) are groups of the queries, their landmarks for example.
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
    """Return the score of Google Landmarks v2: mAP@100; ``groups`` (Q,) belong to the queries."""

    def score(query, gallery) -> Scored:
        _, ids = knn(query, gallery, k, metric="cosine")
        hit = np.array([ids[i, 0] in set(rows) for i, rows in enumerate(positives)])
        aps = ap_at_k(ids, positives, k)
        return Scored(float(aps.mean()), hit, group_means(aps, groups))

    return score


def persons(
    query_ids, gallery_ids, query_cameras, gallery_cameras, *, rerank: bool = False, groups=None
) -> Score:
    """Return the score of Market-1501: mAP and CMC-1/5/10 without images of the query's camera.

    Both sides are normalised (the published code leaves an old gallery raw).

    Args:
      query_ids, query_cameras: (Q,);  gallery_ids, gallery_cameras: (G,).
      rerank: distances by k-reciprocal re-ranking instead of plain ones.
      groups: (Q,) of the queries; None: their cameras.
    """
    groups = query_cameras if groups is None else groups

    def score(query, gallery) -> Scored:
        distances = (k_reciprocal_rerank if rerank else _cosine_distances)(query, gallery)
        aps, ranks = market1501_per_query(
            distances, query_ids, gallery_ids, query_cameras, gallery_cameras
        )
        valid = ranks > 0
        more = {f"cmc@{k}": float((ranks[valid] <= k).mean()) for k in KS}
        by_group = group_means(aps, groups)
        return Scored(float(aps[valid].mean()), ranks[valid] == 1, by_group, more)

    return score


def faces(
    media: Media,
    rows,
    pairs: Pairs,
    gallery: Subjects,
    probe: Subjects,
    *,
    weights=None,
    normalize: bool = False,
    groups=None,
) -> Score:
    """Return the score of IJB-B or IJB-C: mAP, top-1/5/10 and TPIR of 1:N, TAR of 1:1.

    The score's query and gallery both hold a vector of every image. First templates of pairs and
    probes are pooled from the query's, second templates and the gallery of persons from the
    gallery's.

    Args:
      media: images by template and medium.
      rows: (N,) the row of each of its images among the vectors.
      pairs: pairs of 1:1 verification.
      gallery, probe: templates of 1:N identification.
      weights, normalize: settings for the images in their templates, see `pool_templates`.
      groups: (P,) groups of the probe templates.
    """
    rows = np.asarray(rows)

    def pooled(vectors):
        if len(vectors) <= rows.max():
            raise UserError(f"{rows.max() + 1} face images need as many vectors: {len(vectors)}")
        found, of = np.asarray(vectors)[rows], (media.templates, media.media)
        return pool_templates(found, *of, weights=weights, normalize=normalize)

    def score(query, search) -> Scored:
        ids, asked = pooled(query)
        searched = asked if search is query else pooled(search)[1]
        # Verification takes one list of vectors: the second templates follow the first.
        offset = int(ids.max()) + 1
        both = np.concatenate([ids, ids + offset]), np.concatenate([asked, searched])
        scores = pair_scores(*both, pairs.first, pairs.second + offset)
        found = identification_per_probe(
            _of(ids, asked, probe), probe.subjects, _of(ids, searched, gallery), gallery.subjects
        )
        mated = found.rank > 0
        more = {f"top@{k}": float((found.rank[mated] <= k).mean()) for k in KS}
        more |= tpir_at_fpir(found) | tar_at_far(scores, pairs.same)
        mean_ap, by_group = float(found.ap[mated].mean()), group_means(found.ap, groups)
        return Scored(mean_ap, found.rank[mated] == 1, by_group, more)

    return score


def _of(ids, vectors, wanted: Subjects) -> np.ndarray:
    """Return the vectors of some templates."""
    missing = np.setdiff1d(wanted.templates, ids)
    if missing.size:
        raise UserError(
            f"templates of the persons' lists have no image: {first_ten(missing, 'template')}"
        )
    return vectors[np.searchsorted(ids, wanted.templates)]


def _cosine_distances(query, gallery) -> np.ndarray:
    return 1 - unit_rows(query).astype(np.float32) @ unit_rows(gallery).astype(np.float32).T


def measure(
    score: Score,
    old: Row,
    rows: Mapping[str, Row],
    *,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
) -> dict[str, dict]:
    """Score the old model and every row on one test set.

    Returns:
      ``{"old": {"self"}, row: {"self", "cross", "curve" (S,), "nfr", "relative_nfr", "gap"}}``:
      mAPs as fractions; ``curve`` at each re-embedded share of the gallery, in random order, and
      "curve by uncertainty" if the row has an uncertainty; negative flips of cross against old
      search, and the gap between the best and the worst group in cross search, if the score gives
      them; other metrics as "self NAME", "cross NAME". A row without an old gallery has only the
      model's own figures.

    Raises:
      UserError: vectors that do not match, or are not finite.
    """
    before = score(old.query, old.gallery)
    found = {"old": _with_gap({"self": before.map, **_more("self", before)}, before)}
    for name, row in rows.items():
        own = score(row.query, row.gallery)
        if row.old_gallery is None:
            found[name] = {"self": own.map, **_more("self", own)}
            continue
        if np.shape(row.query)[1] != np.shape(row.old_gallery)[1]:
            raise UserError(
                f"{name} has embeddings of {np.shape(row.query)[1]} dimensions, but the gallery "
                f"that it searches has {np.shape(row.old_gallery)[1]}"
            )
        cross = score(row.query, row.old_gallery)
        values = {
            "self": own.map,
            "cross": cross.map,
            **_curves(score, row, own, cross, shares, seed),
            **_more("self", own),
            **_more("cross", cross),
        }
        if before.hit is not None and cross.hit is not None:
            values |= negative_flip_rate(before.hit, cross.hit)
        found[name] = _with_gap(values, cross)
    return found


def _curves(score: Score, row: Row, own: Scored, cross: Scored, shares, seed: int) -> dict:
    """Return mAPs at each share, in random order and, where it is known, by uncertainty."""

    def mean_ap(gallery):
        return {"map": score(row.query, gallery).map}

    inner = [share for share in shares if 0 < share < 1]  # the ends are scored already
    orders = {"curve": None}
    if row.uncertainty is not None:
        orders["curve by uncertainty"] = backfill_order("uncertainty", uncertainty=row.uncertainty)
    found = {}
    for name, order in orders.items():
        points = {0.0: cross.map, 1.0: own.map}
        if inner:
            curve = hot_refresh_curve(
                row.gallery, row.old_gallery, mean_ap, shares=inner, order=order, seed=seed
            )
            points |= zip(inner, curve.values["map"].tolist(), strict=True)
        found[name] = [points[float(share)] for share in shares]
    return found


def _more(kind: str, scored: Scored) -> dict[str, float]:
    return {f"{kind} {name}": value for name, value in (scored.more or {}).items()}


def _with_gap(values: dict, scored: Scored) -> dict:
    """Add the gap between the best and the worst of several groups that have a mAP."""
    aps = [ap for ap in (scored.groups or {}).values() if not np.isnan(ap)]
    return {**values, "gap": max(aps) - min(aps)} if len(aps) > 1 else values
