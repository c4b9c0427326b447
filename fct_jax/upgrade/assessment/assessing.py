"""The assessment: the gain of each way of upgrading, measured on held-out queries."""

from collections.abc import Sequence
from pathlib import Path

from fct_jax.evaluate.orders import find_order
from fct_jax.runtime import threads
from fct_jax.upgrade.assessment.cascades import gaps, replayed_all, stream_of
from fct_jax.upgrade.assessment.curves import Curves, typical_queries
from fct_jax.upgrade.assessment.cutoffs import cutoffs
from fct_jax.upgrade.assessment.points import Budget, points_of
from fct_jax.upgrade.assessment.preparing import prepare
from fct_jax.upgrade.assessment.report import Assessment
from fct_jax.upgrade.assessment.runs import write_runs
from fct_jax.upgrade.assessment.settings import check_settings, checked_shares, is_plain
from fct_jax.upgrade.assessment.stored_types import recall_by_type
from fct_jax.upgrade.assessment.streamed import Streamed
from fct_jax.upgrade.assessment.verdict import (
    Bootstrap,
    options_of,
    recommend,
    without_evidence,
    without_keep,
)
from fct_jax.upgrade.assessment.world import KEEP, TRANSLATE, WHOLE, spots_of
from fct_jax.upgrade.stores.samples import SAMPLE
from fct_jax.upgrade.ways import WAYS, Way, find_way
from fct_jax.upgrade.ways.calibration import calibrate

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
    made = prepare(
        map, old, new, query_old=query_old, query_new=query_new, labels=labels,
        query_labels=query_labels, judged=judged, groups=groups, ways=ways, orders=orders,
        max_queries=max_queries, judged_calibration=judged_calibration, metric=metric,
        method=method, traffic=traffic, threshold=threshold, sample=sample, seed=seed,
        runs_out=runs_out,
    )  # fmt: skip
    world, queries, by = made.world, made.queries, made.by
    count = len(queries.new)
    target = target or _TARGETS[by]
    tried = {
        way.name: [o for o in (orders or way.orders) if not find_order(o).lacks(made.known)]
        for way in made.ways
    }
    depth = depth or (1000 if by in ("labels", "groups") else 100)
    curves = (Streamed if world.is_large else Curves)(world, made.known, depth)
    spots = spots_of(made.ways, tried, shares)
    measured = curves.run(spots)

    bootstrap = Bootstrap(count, resamples, seed)
    once = stream_of(count, 0.0, seed)
    asking = made.asking
    if asking is None:
        asking = stream_of(count, popularity, seed) if popularity else once
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
    typical = typical_queries(count)
    calibration = calibrate(
        made.old.vectors,
        made.new.vectors,
        query_old=None if queries.old is None else queries.old[typical],
        query_new=queries.new[typical],
        metric=made.metric,
        old_metric=made.old_metric,
        weights=world.calibration.weights,
        seed=seed,
    )
    budget = Budget(gallery_size or len(made.new), items_per_second, cost_per_1000, currency)
    named = {spot.name: spot.way for spot in spots}
    shown = _with_translate(measured, named)
    points = points_of(shown, named, target, bootstrap, budget, made.groups, curves.baseline)
    report = Assessment(
        by=by,
        target=target,
        method=made.found.method,
        queries=count,
        items=world.count,
        points=points,
        verdict=verdict,
        budget=budget,
        notes=made.notes,
        calibration=calibration,
        faithful=by == "agreement",
        replays=replays,
        deep_enough=deep_enough,
        cutoffs=cut or {},
        stored=_stored(world, made.metric, made.found),
        settings=settings,
        baseline=curves.baseline[0],
    )
    if runs_out is not None:
        write_runs(runs_out, curves, spots, verdict, queries.ids, made.item_ids)
    if out is not None:
        report.write(Path(out))
    return report


def _stored(world, metric: str, found) -> dict[str, float]:
    """Return `recall_by_type` of translated vectors, if there are any."""
    if "translated" not in world.items:
        return {}
    known = None if found.known is None else found.known.new
    items, queries = world.items["translated"], world.queries["new"]
    return recall_by_type(items, queries, metric, world.own, known)


def _with_translate(measured: dict, named: dict) -> dict:
    """Add the point of the translated gallery before anything is re-embedded."""
    start = next(
        (name for name, way in named.items() if way.name == "translated" and name[2] == 0), None
    )
    more = {} if start is None else {(TRANSLATE, "", 0.0): measured[start]}
    first = {name: of for name, of in measured.items() if name == (KEEP, "", 0.0)}
    return first | more | measured
