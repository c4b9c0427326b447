"""The verdict before the spend: what each way of upgrading would gain, on held-out queries."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from fct_jax import config as configs
from fct_jax.errors import UserError, unknown
from fct_jax.upgrade.assessment.curves import Curves
from fct_jax.upgrade.assessment.inputs import (
    Queries,
    check_fit,
    groups_of,
    held_out_rows,
    open_queries,
    split_judged,
)
from fct_jax.upgrade.assessment.report import Assessment, Budget, Point
from fct_jax.upgrade.assessment.verdict import Bootstrap, recommend
from fct_jax.upgrade.checks.known_answers import check_known_answers
from fct_jax.upgrade.inputs import FEWEST, load_array, open_sample, paired, take
from fct_jax.upgrade.maps.loading import load_map
from fct_jax.upgrade.maps.map import Map
from fct_jax.upgrade.ways import WAYS, find_way
from fct_jax.upgrade.ways.calibration import calibrate
from fct_jax.upgrade.ways.judged_weights import fit_weights
from fct_jax.upgrade.ways.relevance import METRICS

_ANSWERS = 1000  # items that must find their own translation
_TARGETS = {"labels": "map", "judged pairs": "mrr", "agreement": "recall@10"}


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
    ways: Sequence[str] = tuple(WAYS),
    depth: int = 0,
    max_queries: int = 2000,
    judged_calibration: float = 0.0,
    gallery_size: int = 0,
    items_per_second: float = 0.0,
    cost_per_1000: float = 0.0,
    currency: str = "USD",
    resamples: int = 1000,
    metric: str = "",
    seed: int = 0,
    out=None,
) -> Assessment:
    """Keep, translate, dual, fused, re-embed x % or all: quality, safety, time and money of each.

    Args:
      map: a Map, or the directory of one.
      old, new: a test gallery embedded by both models, as for ``fit``. Items that the map was
        fitted on are recognised by their old vectors; they serve for the calibration and
        are left out of the gallery, whose translation they would make look too good.
      query_old, query_new: queries embedded by both models; None: items query the others.
      labels, query_labels: (N,), (Q,) integers or ``.npy`` files; None: those of the sets.
      judged: judged pairs, as in ``relevance.by_table``; they go before labels. Without either,
        the yardstick is agreement with the new model's own 10 nearest neighbours.
      groups: (Q,) integers, one a query (one an item, where items query), or a ``.npy`` file.
      target: the metric that decides; "": map by labels, mrr by judged pairs, else recall@10.
      shares: of the gallery re-embedded, the points of each curve.
      ways: of serving a half-migrated gallery: "translated", "dual", "fused".
      depth: results of a query that are judged; 0: 1,000 by labels, where a query has many
        relevant items, else 100.
      max_queries: more queries are sampled down to so many.
      judged_calibration: share of the judged queries from which the calibration of dual and
        fused learns; these are not assessed. 0: the calibration does without judgements.
      gallery_size: items of the whole gallery, for time and money; 0: as many as are given.
      items_per_second, cost_per_1000, currency: of embedding with the new model.
      resamples: of the bootstrap.
      metric: of the new space; "": the map's.
      seed: of all random choices.
      out: directory for the report and the calibration; None: nothing is written.

    Raises:
      UserError: sets that do not fit the map or each other, or too little to judge by.
    """
    if target and target not in METRICS:
        raise unknown("target", target, METRICS)
    for way in ways:
        find_way(way)
    shares = _checked_shares(shares)
    if not ways:
        raise UserError(f"ways must be some of {', '.join(WAYS)}")
    for name, value, least in (
        ("depth", depth, 0),
        ("max_queries", max_queries, FEWEST),
        ("resamples", resamples, 1),
        ("gallery_size", gallery_size, 0),
        ("items_per_second", items_per_second, 0),
        ("cost_per_1000", cost_per_1000, 0),
    ):
        if not value >= least:
            raise UserError(f"{name} must be {least} or more, not {value}")
    if out is not None and Path(out).exists():
        raise UserError(f"{out} exists already; nothing was overwritten")
    given = open_sample(new, "new")
    whole_old, whole_new = paired(open_sample(old, "old"), given)
    found = load_map(map).forward().for_dim(whole_old.dim)
    check_fit(found, whole_old, whole_new)
    labels = load_array(labels, "labels")
    if labels is not None:
        if labels.shape != (len(given),) or len(given) != len(whole_new):
            raise UserError(f"labels must be one integer for each of {len(given)} shared items")
        whole_new = dataclasses.replace(whole_new, labels=labels)
        whole_old = dataclasses.replace(whole_old, labels=labels)
    rng = np.random.default_rng(seed)
    unseen, reference = held_out_rows(found, whole_old, rng)
    gallery_old, gallery_new = take(whole_old, unseen), take(whole_new, unseen)
    metric = metric or found.metric
    some = slice(0, _ANSWERS)
    mapped, _ = found.transform(gallery_old.vectors[some])
    check_known_answers(mapped, gallery_new.vectors[some], metric, "the test gallery")
    sample = tuple(np.asarray(s.vectors[reference], np.float32) for s in (whole_old, whole_new))
    inside = np.isin(unseen, reference)  # a sample of the gallery, where no other items are known
    old_metric = whole_old.meta.get("metric", metric)
    calibration = calibrate(*sample, metric=metric, old_metric=old_metric, seed=seed)
    queries = open_queries(
        query_old, query_new, query_labels, gallery_old, gallery_new, calibration.new, judged
    )
    groups = load_array(groups, "groups")
    if groups is not None:
        groups = groups_of(groups, queries, len(given), unseen)
    kept = np.flatnonzero(queries.relevance.total > 0)
    dropped = len(queries.old) - len(kept)
    if len(kept) < FEWEST:
        raise UserError(
            f"{len(kept)} queries have a relevant item in the test gallery; "
            f"at least {FEWEST} are needed"
        )
    if len(kept) > max_queries:
        kept = np.sort(rng.permutation(kept)[:max_queries])
    if judged_calibration:
        kept, learn = split_judged(kept, judged_calibration, queries.relevance.by, rng)
        weights = fit_weights(
            tuple(part[:0] for part in sample) if inside.any() else sample,
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
    queries = queries.of(kept)
    groups = None if groups is None else groups[kept]

    target = target or _TARGETS[queries.relevance.by]
    depth = depth or (1000 if queries.relevance.by == "labels" else 100)
    curves = Curves(
        found, gallery_old, gallery_new, sample, inside, queries, calibration, metric, depth
    )
    measured = curves.run(ways, shares, seed)

    bootstrap = Bootstrap(len(kept), resamples, seed)
    keep, whole = measured["keep", "", 0.0], measured["re-embed all", "", 1.0]
    paths = {
        (way, order): np.stack([measured[way, order, share][target] for share in shares])
        for way in ways
        for order in curves.orders(way)
    }
    # For serving, all items count that both models have embedded by now.
    calibration = calibrate(
        whole_old.vectors,
        whole_new.vectors,
        metric=metric,
        old_metric=old_metric,
        weights=calibration.weights,
        seed=seed,
    )
    verdict = recommend(paths, shares, keep[target], whole[target], bootstrap)
    budget = Budget(gallery_size or len(whole_new), items_per_second, cost_per_1000, currency)
    points = [
        Point.of(name, values, keep, target, bootstrap, budget, groups)
        for name, values in measured.items()
    ]
    notes = _notes(queries, dropped, len(whole_new) - len(unseen), found)
    made = Assessment(
        by=queries.relevance.by,
        target=target,
        method=found.method,
        queries=len(kept),
        items=len(unseen),
        points=points,
        verdict=verdict,
        budget=budget,
        notes=notes,
        calibration=calibration,
    )
    if out is not None:
        made.write(Path(out))
    return made


def _checked_shares(shares) -> tuple[float, ...]:
    shares = tuple(sorted({0.0, 1.0, *(float(share) for share in shares)}))
    if shares[0] < 0 or shares[-1] > 1:
        raise UserError(f"shares must be from 0 to 1, not {shares}")
    return shares


def _notes(queries: Queries, dropped: int, fitted: int, found: Map) -> list[str]:
    notes = []
    if queries.relevance.by == "agreement":
        notes.append(
            "No labels or judged pairs: relevant are the new model's own 10 nearest neighbours. "
            "That tells how near a gallery is to a re-embedded one, not whether the new model "
            "is better than the old one."
        )
    if fitted:
        notes.append(f"{fitted} items that the map was fitted on are left out of the gallery.")
    if dropped:
        notes.append(f"{dropped} queries without a relevant item in the gallery are left out.")
    if not found.has_uncertainty:
        notes.append("The map has no uncertainty: items are re-embedded in random order alone.")
    return notes


def assess_command(config: ConfigDict, workdir) -> Assessment:
    """The subcommand: ``config.assess`` of a test gallery; the report goes to the directory."""
    configs.check(config)
    if not config.map:
        raise UserError("config.map is empty; give the directory of a map that `fit` made")
    options = config.assess.to_dict()
    options["ways"] = [way.strip() for way in options["ways"].split(",") if way.strip()]
    made = assess(
        config.map,
        config.old,
        config.new,
        labels=config.labels,
        metric=config.metric,
        seed=config.seed,
        out=workdir,
        **options,
    )
    made.print()
    if made.verdict.way:
        advised = f"--config.serve={made.verdict.way} --config.plan.order={made.verdict.order}"
        print(f"For plan and apply: {advised}")
    print(f"{workdir}: report.md, report.json, curves.png, calibration/")
    return made
