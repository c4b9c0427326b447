"""The assessment: the gain of each way of upgrading, measured on held-out queries."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.evaluate.orders import Items, find_order
from fct_jax.runtime import threads
from fct_jax.storage.trec import check_writable
from fct_jax.upgrade.assessment.cascades import (
    POPULAR,
    gaps,
    replayed_all,
    stream_of,
)
from fct_jax.upgrade.assessment.curves import Curves, typical_queries
from fct_jax.upgrade.assessment.cutoffs import cutoffs
from fct_jax.upgrade.assessment.inputs import (
    WEAK,
    Queries,
    bridged_queries,
    check_fit,
    fit_on_a_part,
    groups_of,
    held_out_rows,
    metric_of,
    open_queries,
    split_judged,
)
from fct_jax.upgrade.assessment.points import Budget, points_of
from fct_jax.upgrade.assessment.report import Assessment
from fct_jax.upgrade.assessment.runs import write_runs
from fct_jax.upgrade.assessment.settings import check_settings, checked_shares, is_plain
from fct_jax.upgrade.assessment.streamed import LARGE, Streamed
from fct_jax.upgrade.assessment.verdict import (
    Bootstrap,
    options_of,
    recommend,
    without_evidence,
    without_keep,
)
from fct_jax.upgrade.assessment.world import KEEP, TRANSLATE, WHOLE, World, spots_of
from fct_jax.upgrade.checks.degenerate import check_alive
from fct_jax.upgrade.checks.guards import ask_map
from fct_jax.upgrade.checks.known_answers import check_known_answers
from fct_jax.upgrade.inputs import FEWEST, load_array, paired, take
from fct_jax.upgrade.maps.loading import load_map
from fct_jax.upgrade.maps.map import Map
from fct_jax.upgrade.stores.samples import SAMPLE, open_asked, open_pair
from fct_jax.upgrade.ways import WAYS, Way, find_way
from fct_jax.upgrade.ways.calibration import calibrate
from fct_jax.upgrade.ways.judged_weights import fit_weights
from fct_jax.upgrade.ways.judgements import judged_of, unknown_ids
from fct_jax.upgrade.ways.traffic import among, by_query_or_item, read_traffic

_ANSWERS = 1000  # items that must find their own translation
_TARGETS = {"labels": "map", "judged pairs": "mrr", "groups": "map", "agreement": "recall@10"}
_MARKS = (100, 1_000, 10_000, 100_000)  # queries after which a cascade's work is reported


@threads.single()
def assess(
    map,
    old,
    new,
    *,
    query_old=None,
    query_new=None,
    labels=None,
    query_labels=None,
    judged=None,
    groups=None,
    target: str = "",
    shares: Sequence[float] = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0),
    ways: Sequence[str | Way] = tuple(WAYS),
    orders: Sequence[str] = (),
    depth: int = 0,
    max_queries: int = 2000,
    judged_calibration: float = 0.0,
    gallery_size: int = 0,
    items_per_second: float = 0.0,
    cost_per_1000: float = 0.0,
    currency: str = "USD",
    resamples: int = 1000,
    metric: str = "",
    method: str = "auto",
    embeddings_a_query: int | None = None,
    popularity: float = 0.0,
    traffic=None,
    threshold: float | None = None,
    sample: int = SAMPLE,
    seed: int = 0,
    runs_out=None,
    out=None,
) -> Assessment:
    """Advise whether to upgrade, how and how far: quality, safety, time and money of every way.

    Args:
      map: a Map or its directory; None fits a map on a part of the pairs and judges it on the rest.
      old, new: a test gallery embedded by both models, as for ``fit``, from a store ``sample``
        items. Items that the map was fitted on are recognised by their old vectors. They serve for
        the calibration, but are left out, because their translation is better than that of others.
      query_old, query_new: queries embedded by both models, or stores of them; with None each item
        queries the others.
      labels, query_labels: (N,), (Q,) integers or ``.npy`` files; None: those of the sets.
      judged: judged pairs, as in ``relevance.by_table``, a TREC qrels file or a BEIR folder; they
        take precedence over labels. Clicks are judged pairs with their counts as gains. Without
        judged pairs, labels and groups of items the relevant items are unknown: the figures are
        then agreement with the new model's own ten nearest, and the advice is "cannot tell".
      groups: (Q,) integers, one per query (one per item if items are the queries), or a ``.npy``
        file. Groups of items are weak evidence of relevance, used if there is no other.
      target: the metric that decides; "" means map with labels, mrr with judged pairs, otherwise
        recall@10.
      shares: re-embedded shares of the gallery, the points of each curve.
      ways: names of the table of ways of serving.
      orders: names of orders of re-embedding to try; empty: those that each way names.
      depth: number of results judged per query; 0 means 1,000 with labels, where a query has many
        relevant items, otherwise 100.
      max_queries: if there are more queries, this number of them is sampled.
      judged_calibration: share of the judged queries from which the calibration of dual and
        fused learns; these are not assessed. With 0 the calibration uses no judgements.
      gallery_size: number of items in the whole gallery, for time and money; 0: as given.
      items_per_second, cost_per_1000, currency: speed and price of embedding with the new model.
      resamples: number of bootstrap resamples.
      metric: "l2" or "cosine" in the new space; "": as meta.json says, or cosine for unit vectors.
      method: method of the map that is fitted if ``map`` is None, as for ``fit``.
      embeddings_a_query: largest number of new vectors that a cascade makes while a query waits;
        the other candidates keep their old score and are queued. None: no limit.
      popularity: exponent of the Zipf law by which queries repeat, for the vectors that a cascade
        embeds over 10,000 queries; 0: each query is asked once.
      traffic: file of the queries as they are asked, which a cascade replays: ids of queries in
        their order, or ids with weights (see ``traffic.read_traffic``). If it names items, it is
        how often each item is asked for, which the order "traffic" and ``NAME×traffic`` use.
      threshold: the service's cut-off on the cosine of old vectors; the report converts it.
      seed: seed of all random choices.
      runs_out: directory for TREC runs of keep, of the new model and of the advised way
        (without a limit of embeddings per query); None writes none.
      out: directory for the report and the calibration; None writes nothing.

    Raises:
      UserError: sets that do not match the map or each other, or too few queries or items.

    Example:

        found = assess(None, "old.npy", "new.npy", query_old="q_old.npy", query_new="q_new.npy",
                       judged="relevant.npy", out="report")
        print(found.advice, found.way, found.share)
    """
    settings = {k: v for k, v in locals().items() if is_plain(v)}
    shares = checked_shares(shares)
    ways = [find_way(way) for way in ways]
    check_settings(locals())
    *_, given = opened = open_pair(old, new, sample, seed)
    whole_old, whole_new = paired(*opened)
    query_old, query_new = open_asked(query_old, query_new, sample, seed)
    labels = load_array(labels, "labels")
    if labels is not None:
        if labels.shape != (len(given),) or len(given) != len(whole_new):
            raise UserError(f"labels must be {len(given)} integers, one per item, and every item "
                            "must be in both sets")  # fmt: skip
        whole_new = dataclasses.replace(whole_new, labels=labels)
        whole_old = dataclasses.replace(whole_old, labels=labels)
    metric, why = metric_of(metric, whole_new)
    old_metric, old_why = metric_of("", whole_old)
    notes = [f"New vectors are compared by {metric} ({why}), old ones by {old_metric} ({old_why})."]
    whole_old.check_finite()
    whole_new.check_finite()
    check_alive(whole_old, whole_new)
    if map is None:
        found = fit_on_a_part(whole_old, whole_new, judged, method=method, metric=metric, seed=seed)
    else:
        found = load_map(map).forward().for_dim(whole_old.dim)
    check_fit(found, whole_old, whole_new)
    rng = np.random.default_rng(seed)
    unseen, seen, reference = held_out_rows(found, whole_old, rng)
    gallery_old, gallery_new = take(whole_old, unseen), take(whole_new, unseen)
    some = slice(0, _ANSWERS)
    some_old, some_new = gallery_old.vectors[some], gallery_new.vectors[some]
    mapped, _ = found.transform(some_old)
    check_known_answers(ask_map(found, some_old, mapped, some_new, metric), "the test gallery")
    sample = tuple(np.asarray(s.vectors[reference], np.float32) for s in (whole_old, whole_new))
    # Rows of the gallery that serve as the sample if no other items are known.
    inside = np.flatnonzero(np.isin(unseen, reference))
    calibration = calibrate(*sample, metric=metric, old_metric=old_metric, seed=seed)
    judged = judged_of(judged)
    groups = load_array(groups, "groups")
    of_items = groups[unseen] if groups is not None and groups.shape == (len(given),) else None
    queries = open_queries(
        query_old, query_new, query_labels, gallery_old, gallery_new, calibration.new, judged,
        of_items,
    )  # fmt: skip
    if runs_out is not None:
        check_writable("a query", queries.ids)
        check_writable("an item", gallery_new.ids)
    asking, traffic = None, None if traffic is None else read_traffic(traffic)
    popular, wished = by_query_or_item(traffic, queries.ids, gallery_new.ids)
    if judged is not None:
        notes += unknown_ids(judged, queries.ids, whole_new.ids)
    if groups is not None:
        groups = groups_of(groups, queries, len(given), unseen)
    by = queries.relevance.by
    for name, wanted in (
        ("threshold", threshold is not None),
        ("judged_calibration", judged_calibration > 0),
    ):
        if wanted and queries.old is None:
            raise UserError(f"{name} needs query_old, the queries by the old model")
    kept, learn, dropped = _chosen(queries, max_queries, judged_calibration, rng)
    if len(learn):
        weights = fit_weights(
            tuple(part[:0] for part in sample) if len(inside) else sample,
            queries.old[learn],
            queries.new[learn],
            gallery_old.vectors,
            gallery_new.vectors,
            queries.relevance.of(learn),
            metric=metric,
            old_metric=old_metric,
            own=None if queries.own is None else queries.own[learn],
            seed=seed,
        )
        calibration = calibrate(
            *sample, metric=metric, old_metric=old_metric, weights=weights, seed=seed
        )
    if popular is not None:
        asking, said = among(popular, kept, len(queries.new), POPULAR, seed)
        notes += said
    queries = queries.of(kept)
    groups = None if groups is None else groups[kept]

    target = target or _TARGETS[by]
    depth = depth or (1000 if by in ("labels", "groups") else 100)
    translated, uncertainty = found.transform(gallery_old.vectors)
    asked = {"new": queries.new} | ({} if queries.old is None else {"old": queries.old})
    notes += _without_old(ways, queries)
    if any({"bridged", "common"} & set(way.queries) for way in ways):
        more, said = bridged_queries(
            ways, whole_old, whole_new, seen if len(inside) == 0 else unseen, queries,
            inside, metric, seed,
        )  # fmt: skip
        asked |= more
        notes += said
    ways = [way for way in ways if set(way.queries) <= set(asked)]
    if not ways:
        raise UserError(f"none of these ways can be assessed. {' '.join(notes[1:])}")
    world = World(
        items={
            "old": np.asarray(gallery_old.vectors, np.float32),
            "new": np.asarray(gallery_new.vectors, np.float32),
            "translated": translated,
        },
        queries=asked,
        relevance=queries.relevance,
        own=queries.own,
        calibration=calibration,
        sample=tuple(part[:0] for part in sample) if len(inside) else sample,
        inside=inside,
    )
    known = Items(
        len(unseen),
        seed,
        metric,
        old=world.items["old"],
        transformed=translated,
        uncertainty=uncertainty if found.has_uncertainty else None,
        traffic=None if wished is None else wished.per_row(len(unseen)),
        training=None if not len(seen) else np.asarray(whole_old.vectors[seen], np.float32),
    )
    tried = {
        way.name: [o for o in (orders or way.orders) if not find_order(o).lacks(known)]
        for way in ways
    }
    curves = (Streamed if world.count > LARGE else Curves)(world, known, depth)
    spots = spots_of(ways, tried, shares)
    measured = curves.run(spots)

    bootstrap = Bootstrap(len(kept), resamples, seed)
    once = stream_of(len(kept), 0.0, seed)
    if asking is None:
        asking = stream_of(len(kept), popularity, seed) if popularity else once
    replays = replayed_all(
        spots, measured, curves, world, embeddings_a_query, asking, once, items_per_second,
        cost_per_1000,
    )  # fmt: skip
    cut = None if threshold is None else cutoffs(world, threshold, seed)
    keep, whole = measured[curves.baseline], measured[WHOLE, "", 1.0]
    if by == "agreement":
        verdict = without_evidence(keep["recall@10"], queries.how, queries.old is not None)
    else:
        options = options_of(spots, measured, target)
        verdict = recommend(options, keep[target], whole[target], bootstrap)
        if queries.old is None:
            verdict = without_keep(verdict)
    behind, deep_enough = gaps(spots, measured, target, bootstrap)
    for label, gap in behind.items():
        replays[label] |= gap
    # The calibration for serving uses all items that both models have embedded.
    typical = typical_queries(len(kept))
    calibration = calibrate(
        whole_old.vectors,
        whole_new.vectors,
        query_old=None if queries.old is None else queries.old[typical],
        query_new=queries.new[typical],
        metric=metric,
        old_metric=old_metric,
        weights=calibration.weights,
        seed=seed,
    )
    budget = Budget(gallery_size or len(whole_new), items_per_second, cost_per_1000, currency)
    named = {spot.name: spot.way for spot in spots}
    shown = _with_translate(measured, named)
    points = points_of(shown, named, target, bootstrap, budget, groups, curves.baseline)
    notes += [] if wished is None else wished.notes
    notes += _notes(queries, by, dropped, len(whole_new) - len(unseen), found)
    made = Assessment(
        by=by,
        target=target,
        method=found.method,
        queries=len(kept),
        items=len(unseen),
        points=points,
        verdict=verdict,
        budget=budget,
        notes=notes,
        calibration=calibration,
        faithful=by == "agreement",
        replays=replays,
        deep_enough=deep_enough,
        cutoffs=cut or {},
        settings=settings,
        baseline=curves.baseline[0],
    )
    if runs_out is not None:
        write_runs(runs_out, curves, spots, verdict, queries.ids, gallery_new.ids)
    if out is not None:
        made.write(Path(out))
    return made


def _chosen(queries: Queries, most: int, judged_calibration: float, rng):
    """Return the queries to assess, those to learn from, and the number without relevant items."""
    kept = np.flatnonzero(queries.relevance.total > 0)
    dropped = len(queries.new) - len(kept)
    if len(kept) < FEWEST:
        raise UserError(
            f"{len(kept)} queries have a relevant item in the test gallery; "
            f"at least {FEWEST} are needed"
        )
    if len(kept) > most:
        kept = np.sort(rng.permutation(kept)[:most])
    if not judged_calibration:
        return kept, kept[:0], dropped
    return *split_judged(kept, judged_calibration, queries.relevance.by, rng), dropped


def _without_old(ways: Sequence[Way], queries: Queries) -> list[str]:
    """Return a note on the ways that ask the old model, unless its queries are given."""
    names = ", ".join(way.name for way in ways if way.needs_old_queries)
    if not names or (queries.old is not None and queries.own is None):
        return []
    if queries.old is None:
        return [f"Left out: {names}; they need the queries by the old model, too (query_old). "
                "Today's quality is unknown without them."]  # fmt: skip
    return [f"These ways embed every query by the old model, too, and are impossible without it: "
            f"{names}."]  # fmt: skip


def _with_translate(measured: dict, named: dict) -> dict:
    """Add the point of the translated gallery before anything is re-embedded."""
    start = next(
        (name for name, way in named.items() if way.name == "translated" and name[2] == 0), None
    )
    more = {} if start is None else {(TRANSLATE, "", 0.0): measured[start]}
    first = {name: of for name, of in measured.items() if name == (KEEP, "", 0.0)}
    return first | more | measured


def _notes(queries: Queries, by: str, dropped: int, fitted: int, found: Map) -> list[str]:
    notes = [f"The queries are {queries.how}."]
    if by in WEAK:
        notes.append(f"The evidence is weak: {WEAK[by]}.")
    if fitted:
        notes.append(f"{fitted} items that the map was fitted on are left out of the gallery.")
    if dropped:
        notes.append(f"{dropped} queries without a relevant item in the gallery are left out.")
    if not found.has_uncertainty:
        notes.append("The map has no uncertainty, so items cannot be ordered by it.")
    return notes
