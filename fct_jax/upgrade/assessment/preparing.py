"""From a user's files to the world that an assessment measures: pairs, map, queries, ways."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from fct_jax.errors import UserError
from fct_jax.evaluate.orders import Items
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.storage.trec import check_writable
from fct_jax.upgrade.assessment.cascades import POPULAR
from fct_jax.upgrade.assessment.inputs import (
    WEAK,
    Queries,
    check_fit,
    derived_queries,
    fit_on_a_part,
    groups_of,
    metric_of,
    open_queries,
    split_judged,
    unfitted_rows,
)
from fct_jax.upgrade.assessment.rows import applied, held, part_of, translated
from fct_jax.upgrade.assessment.world import World
from fct_jax.upgrade.checks.degenerate import check_alive
from fct_jax.upgrade.checks.guards import ask_map
from fct_jax.upgrade.checks.known_answers import check_known_answers
from fct_jax.upgrade.confidence import usual_cells
from fct_jax.upgrade.inputs import FEWEST, load_array, paired
from fct_jax.upgrade.maps.loading import load_map
from fct_jax.upgrade.maps.map import Map
from fct_jax.upgrade.stores.samples import open_asked, open_pair
from fct_jax.upgrade.ways import WAYS, Way
from fct_jax.upgrade.ways.calibration import calibrate
from fct_jax.upgrade.ways.judged_weights import fit_weights
from fct_jax.upgrade.ways.judgements import judged_of, unknown_ids
from fct_jax.upgrade.ways.traffic import among, by_query_or_item, read_traffic

_ANSWERS = 1000  # items that must find their own translation


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The vectors that an assessment measures, with all that it knows about them.

    Attributes:
      world: the vectors that are searched.
      known: the facts about its items, for orders.
      ways: the ways that can be assessed.
      found: the map.
      old, new: all pairs, those that the map was fitted on included.
      item_ids: (N,) ids of the world's items.
      queries: the assessed queries.
      groups: (Q,) groups of the queries, or None.
      asking: rows of queries in the order asked, from a traffic file, or None.
      metric, old_metric: "l2" or "cosine".
      notes: sentences for the report.
    """

    world: World
    known: Items
    ways: list[Way]
    found: Map
    old: EmbeddingSet
    new: EmbeddingSet
    item_ids: np.ndarray
    queries: Queries
    groups: np.ndarray | None
    asking: np.ndarray | None
    metric: str
    old_metric: str
    notes: list[str]

    @property
    def by(self) -> str:
        """Return what decides which items are relevant."""
        return self.queries.relevance.by


def prepare(
    map,
    old,
    new,
    *,
    query_old,
    query_new,
    labels,
    query_labels,
    judged,
    groups,
    ways: Sequence[Way],
    orders: Sequence[str],
    max_queries: int,
    judged_calibration: float,
    metric: str,
    method: str,
    traffic,
    threshold: float | None,
    sample: int,
    seed: int,
    runs_out,
) -> Prepared:
    """Open and check everything; the arguments are those of ``assess``. Raises UserError."""
    whole_old, whole_new, given = _opened(old, new, labels, sample, seed)
    query_old, query_new = open_asked(query_old, query_new, sample, seed)
    metric, why = metric_of(metric, whole_new)
    old_metric, old_why = metric_of("", whole_old)
    notes = [f"New vectors are compared by {metric} ({why}), old ones by {old_metric} ({old_why})."]
    if map is None:
        found = fit_on_a_part(whole_old, whole_new, judged, method=method, metric=metric, seed=seed)
    else:
        found = load_map(map).forward().for_dim(whole_old.dim)
    check_fit(found, whole_old, whole_new)
    rng = np.random.default_rng(seed)
    unseen, seen, reference = unfitted_rows(found, whole_old, rng)
    gallery_old, gallery_new = part_of(whole_old, unseen), part_of(whole_new, unseen)
    _check_map(found, gallery_old, gallery_new, metric)
    pairs = tuple(np.asarray(s.vectors[reference], np.float32) for s in (whole_old, whole_new))
    # Rows of the gallery that serve as the sample if no other items are known.
    inside = np.flatnonzero(np.isin(unseen, reference))
    outside = tuple(part[:0] for part in pairs) if len(inside) else pairs
    calibration = calibrate(*pairs, metric=metric, old_metric=old_metric, seed=seed)
    judged, groups = judged_of(judged), load_array(groups, "groups")
    of_items = groups[unseen] if groups is not None and groups.shape == (given,) else None
    queries = open_queries(
        query_old, query_new, query_labels, gallery_old, gallery_new, calibration.new, judged,
        of_items,
    )  # fmt: skip
    if runs_out is not None:
        check_writable("a query", queries.ids)
        check_writable("an item", gallery_new.ids)
    traffic = None if traffic is None else read_traffic(traffic)
    popular, wished = by_query_or_item(traffic, queries.ids, gallery_new.ids)
    if judged is not None:
        notes += unknown_ids(judged, queries.ids, whole_new.ids)
    if groups is not None:
        groups = groups_of(groups, queries, given, unseen)
    for name, wanted in (
        ("threshold", threshold is not None),
        ("judged_calibration", judged_calibration > 0),
    ):
        if wanted and queries.old is None:
            raise UserError(f"{name} needs query_old, the queries by the old model")
    kept, learn, dropped = _chosen(queries, max_queries, judged_calibration, rng)
    if len(learn):
        weights = fit_weights(
            outside,
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
            *pairs, metric=metric, old_metric=old_metric, weights=weights, seed=seed
        )
    asking = None
    if popular is not None:
        asking, said = among(popular, kept, len(queries.new), POPULAR, seed)
        notes += said
    queries = queries.of(kept)
    asked = {"new": queries.new} | ({} if queries.old is None else {"old": queries.old})
    notes += _without_old(ways, queries)
    more, backward, said = derived_queries(
        ways, found, whole_old, whole_new, seen if len(inside) == 0 else unseen, queries, inside,
        metric, seed,
    )  # fmt: skip
    asked, notes = asked | more, notes + said
    possible = [way for way in ways if set(way.queries) <= set(asked)]
    if backward is None:
        same = [way for way in possible if way.needs_backward and way.needs_translated]
        possible = [way for way in possible if way not in same]
        if same and {way.name for way in ways} != set(WAYS):
            notes.append(f"Left out: {same[0].name}; with a rotation it is the way translated.")
    if not possible:
        raise UserError(f"none of these ways can be assessed. {' '.join(notes[1:])}")
    in_cells = any("class_mean" in (orders or way.orders) for way in possible)
    moved, uncertainty, cells = translated(
        found, gallery_old.vectors, usual_cells(len(unseen)) | {"seed": seed} if in_cells else None
    )
    items = {
        "old": held(gallery_old.vectors),
        "new": held(gallery_new.vectors),
        "translated": moved,
    }
    if backward is not None and any(way.needs_backward for way in possible):
        for of, name in (("new", "moved"), ("translated", "forward")):
            items[name] = applied(backward.moved, items[of], backward.weight.shape[1])
    world = World(
        items=items,
        queries=asked,
        relevance=queries.relevance,
        own=queries.own,
        calibration=calibration,
        sample=outside,
        inside=inside,
    )
    known = Items(
        len(unseen),
        seed,
        metric,
        old=items["old"],
        transformed=moved,
        uncertainty=uncertainty if found.has_uncertainty else None,
        cells=cells,
        traffic=None if wished is None else wished.per_row(len(unseen)),
        training=None if not len(seen) else np.asarray(whole_old.vectors[seen], np.float32),
    )
    notes += [] if wished is None else wished.notes
    notes += _notes(queries, dropped, len(whole_new) - len(unseen), found)
    return Prepared(
        world, known, possible, found, whole_old, whole_new, gallery_new.ids, queries,
        None if groups is None else groups[kept], asking, metric, old_metric, notes,
    )  # fmt: skip


def _opened(old, new, labels, sample: int, seed: int) -> tuple[EmbeddingSet, EmbeddingSet, int]:
    """Return both sets of pairs, and the number of given items."""
    *_, given = opened = open_pair(old, new, sample, seed)
    whole_old, whole_new = paired(*opened)
    labels = load_array(labels, "labels")
    if labels is not None:
        if labels.shape != (len(given),) or len(given) != len(whole_new):
            raise UserError(f"labels must be {len(given)} integers, one per item, and every item "
                            "must be in both sets")  # fmt: skip
        whole_new = dataclasses.replace(whole_new, labels=labels)
        whole_old = dataclasses.replace(whole_old, labels=labels)
    whole_old.check_finite()
    whole_new.check_finite()
    check_alive(whole_old, whole_new)
    return whole_old, whole_new, len(given)


def _check_map(found: Map, old: EmbeddingSet, new: EmbeddingSet, metric: str) -> None:
    """Raise UserError if some items show that the map or the pairing is wrong."""
    some = slice(0, _ANSWERS)
    some_old, some_new = old.vectors[some], new.vectors[some]
    mapped, _ = found.transform(some_old)
    check_known_answers(ask_map(found, some_old, mapped, some_new, metric), "the test gallery")


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


def _notes(queries: Queries, dropped: int, fitted: int, found: Map) -> list[str]:
    notes = [f"The queries are {queries.how}."]
    if queries.relevance.by in WEAK:
        notes.append(f"The evidence is weak: {WEAK[queries.relevance.by]}.")
    if fitted:
        notes.append(f"{fitted} items that the map was fitted on are left out of the gallery.")
    if dropped:
        notes.append(f"{dropped} queries without a relevant item in the gallery are left out.")
    if not found.has_uncertainty:
        notes.append("The map has no uncertainty, so items cannot be ordered by it.")
    return notes
