"""Inputs of an assessment: the held-out gallery, its queries, and the relevant items."""

import dataclasses

import numpy as np

from fct_jax.errors import UserError
from fct_jax.storage.embedding_set import EmbeddingSet, check_fingerprint, check_paired
from fct_jax.upgrade.checks.guards import as_found, check_space, new_space, old_space
from fct_jax.upgrade.inputs import FEWEST, load_array, open_sample, row_hashes, take
from fct_jax.upgrade.maps.backward import Backward
from fct_jax.upgrade.maps.common_space import closed_form_turn
from fct_jax.upgrade.maps.fitting import fit
from fct_jax.upgrade.maps.map import Map
from fct_jax.upgrade.ways import relevance as judge
from fct_jax.upgrade.ways.judgements import judged_of, rows_of_ids
from fct_jax.upgrade.ways.scores import Space, chosen_metric

REFERENCE = 4000  # items of a calibration
# Share of |old|² by which a step of the common space's turn must still help. With 1e-6 the turn of
# 4,000 text pairs takes four times as long, and its MRR over 20,000 items is the same to 0.001.
_ALIKE = 1e-4
_LOOKED_AT = 64  # vectors whose length is measured
_FITTED_SHARE, _FITTED = 0.4, 5000  # share and largest number of pairs to fit a map on
_QUICK = ("procrustes", "ridge")  # methods that take seconds


WEAK = {
    "agreement": "agreement with the new model's own ten nearest cannot tell whether that "
    "model is better",
    "groups": "groups say which items are alike, not which items a query should find",
}


@dataclasses.dataclass(frozen=True)
class Queries:
    """The queries by both models, (Q, do) and (Q, dn), their relevant items, and their own rows.

    how: describes the queries for a sentence; ids: (Q,) their ids.
    """

    old: np.ndarray | None
    new: np.ndarray
    relevance: judge.Relevance
    own: np.ndarray | None = None
    how: str = "the items themselves"
    ids: np.ndarray | None = None

    def of(self, rows: np.ndarray) -> "Queries":
        own = None if self.own is None else self.own[rows]
        ids = None if self.ids is None else self.ids[rows]
        old = None if self.old is None else self.old[rows]
        return Queries(old, self.new[rows], self.relevance.of(rows), own, self.how, ids)


def metric_of(given: str, found: EmbeddingSet) -> tuple[str, str]:
    """Return "l2" or "cosine", and the reason: given, in meta.json, or the vectors' length."""
    return chosen_metric(given, found.vectors, found.meta.get("metric"))


def fit_on_a_part(
    old: EmbeddingSet, new: EmbeddingSet, judged, *, method: str, metric: str, seed: int
) -> Map:
    """Fit a map on some of the pairs; the others are left to judge it.

    The pairs are drawn from items that are not relevant to a judged query. Raises UserError if
    there are too few.
    """
    free = np.ones(len(new), bool)
    wanted = judged_of(judged)
    if wanted is not None:
        rows = rows_of_ids(new.ids, wanted if wanted.ndim == 1 else wanted[:, 1])
        free[rows[rows >= 0]] = False
    free = np.flatnonzero(free)
    count = min(int(_FITTED_SHARE * len(new)), _FITTED, len(free))
    if count < 2 * FEWEST:
        raise UserError(
            f"only {count} of {len(new)} pairs can be used to fit a map; at least {2 * FEWEST} "
            "are needed: give more pairs, or a map"
        )
    rows = np.sort(np.random.default_rng(seed).permutation(free)[:count])
    old, new = take(old, rows), take(new, rows)
    return fit(old, new, method=method, candidates=_QUICK, metric=metric, seed=seed)


def derived_queries(
    ways, found: Map, old: EmbeddingSet, new: EmbeddingSet, rows: np.ndarray, queries: Queries,
    inside, metric, seed: int,
) -> tuple[dict[str, np.ndarray], Backward | None, list[str]]:  # fmt: skip
    """Return the new queries in other spaces, by kind; the backward map unless it rotates; notes.

    A map with a backward map of its own defines the common space; otherwise it is the closed form.

    old, new: pairs; only ``rows`` of them may be fitted on. inside: rows of the gallery among them.
    """
    wanted = {kind for way in ways for kind in way.queries} & {"bridged", "common", "moved"}
    made, notes, backward = {}, [], found.backward
    itself = bool(len(inside)) and queries.own is not None  # nothing else to fit on
    trained = backward is not None and metric == "cosine"
    kinds = {"bridged"} if trained or metric != "cosine" else wanted  # those that are fitted here
    if itself and wanted & kinds:
        left_out = ", ".join(way.name for way in ways if wanted & kinds & set(way.queries))
        reason = "the items are the queries, and no other pairs are known"
        notes.append(f"Left out: {left_out}; {reason}.")
    rows = np.sort(np.random.default_rng(seed).permutation(rows)[:_FITTED])
    old, new = take(old, rows), take(new, rows)
    if {"common", "moved"} & wanted:
        if metric != "cosine":
            names = ", ".join(way.name for way in ways if way.needs_backward)
            notes.append(f"Left out: {names}; a common space is compared by cosine.")
        elif trained or not itself:
            if not trained:
                backward = closed_form_turn(new.vectors, old.vectors, _ALIKE)
            made["common"] = backward.asked(queries.new, old.dim)
            made["moved"] = queries.new if backward.rotates else backward.moved(queries.new)
    if "bridged" in wanted and not itself:
        try:
            bridge = fit(
                old, new, direction="backward", candidates=_QUICK, uncertainty=False, seed=seed
            )
            made["bridged"] = bridge.transform(queries.new)[0]
        except UserError as error:
            notes.append(f"Left out: ways that need a map from new to old vectors; {error}")
    return made, None if backward is None or backward.rotates else backward, notes


def check_fit(found: Map, old: EmbeddingSet, new: EmbeddingSet) -> None:
    """Raise UserError unless both sets, finite ones, match the map's models and spaces."""
    check_fingerprint(old, found.old_fingerprint, "old")
    check_fingerprint(new, found.new_fingerprint, "new")
    for role, given, dim in (("old", old, found.dim_in), ("new", new, found.dim_out)):
        if given.dim != dim:
            raise UserError(
                f"{given.name} has dimension {given.dim}, but the map's {role} model has {dim}"
            )
    for role, given, space in (("old", old, old_space(found)), ("new", new, new_space(found))):
        check_space(given.name, as_found(given.meta, given.vectors[:_LOOKED_AT]), space, role)


def unfitted_rows(found: Map, old: EmbeddingSet, rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows that the map was not fitted on, the fitted ones, and rows to calibrate on."""
    fitted = np.zeros(len(old), bool)
    if found.fitted is not None:
        fitted = np.isin(row_hashes(old.vectors), found.fitted)
    unseen, seen = np.flatnonzero(~fitted), np.flatnonzero(fitted)
    if len(unseen) < FEWEST:
        raise UserError(
            f"the map was fitted on {len(seen)} of the {len(old)} items; "
            f"at least {FEWEST} others are needed to judge it"
        )
    reference = seen if len(seen) >= min(1000, len(old) // 5) else unseen
    return unseen, seen, np.sort(rng.permutation(reference)[:REFERENCE])


def open_queries(
    query_old,
    query_new,
    query_labels,
    old: EmbeddingSet,
    new: EmbeddingSet,
    space: Space,
    judged,
    groups: np.ndarray | None = None,
) -> Queries:
    """Return the queries and their relevant items; the arguments are those of ``assess``.

    old, new: the held-out gallery; space: space of the new model, for the agreement with it;
    groups: (N,) groups of the gallery's items, or None.
    """
    judged = judged_of(judged)
    query_labels = load_array(query_labels, "query_labels")
    own, how = None, "the given queries"
    if _absent(query_new) and not _absent(query_old):
        raise UserError(
            "query_old alone cannot be assessed: every way but keeping the old model needs the "
            "queries by the new one; give query_new too, or neither"
        )
    if _absent(query_new):
        asked_old, asked_new, own = old, new, np.arange(len(old))
        how = "the items themselves"
    else:
        asked_old, asked_new = None, open_sample(query_new, "query_new")
        sides = [(asked_new, new)]
        if not _absent(query_old):
            asked_old = open_sample(query_old, "query_old")
            check_paired(asked_old, asked_new)
            sides.append((asked_old, old))
        for asked, items in sides:
            asked.check_finite()
            if asked.dim != items.dim:
                raise UserError(
                    f"{asked.name} has dimension {asked.dim}, but {items.name} has {items.dim}"
                )
            check_fingerprint(asked, items.fingerprint, "gallery's")
    for asked in (asked_new, asked_old):
        if query_labels is None and asked is not None:
            query_labels = asked.labels
    labels = new.labels if new.labels is not None else old.labels
    asked_vectors = np.asarray(asked_new.vectors, np.float32)
    if judged is not None:
        found = judge.by_table(judged, asked_new.ids, new.ids)
    elif labels is not None and query_labels is not None:
        if len(query_labels) != len(asked_new):
            raise UserError(
                f"there are {len(query_labels)} query labels for {len(asked_new)} queries"
            )
        found = judge.by_labels(query_labels, labels, own)
    elif groups is not None and own is not None:
        found = dataclasses.replace(judge.by_labels(groups, groups, own), by="groups")
    else:
        found = judge.by_agreement(asked_vectors, new.vectors, space, own)
    if asked_old is not None:
        asked_old = np.asarray(asked_old.vectors, np.float32)
    return Queries(asked_old, asked_vectors, found, own, how, asked_new.ids)


def _absent(what) -> bool:
    return what is None or (isinstance(what, str) and not what)


def groups_of(groups: np.ndarray, queries: Queries, given: int, unseen: np.ndarray) -> np.ndarray:
    """Return the group (Q,) of each query; ``given``: number of items before some were held out."""
    if queries.own is not None and len(groups) == given:
        groups = groups[unseen]
    if groups.shape != (len(queries.new),):
        raise UserError(
            f"groups must have shape ({len(queries.new)},), one per query, not {groups.shape}"
        )
    return groups


def split_judged(kept, share: float, by: str, rng) -> tuple[np.ndarray, np.ndarray]:
    """Return queries to assess with, and a share of them to learn the calibration from."""
    if by == "agreement":
        raise UserError("judged_calibration needs judged pairs or labels")
    if not 0 < share < 1:
        raise UserError(f"judged_calibration must be a share between 0 and 1, not {share}")
    order = rng.permutation(kept)
    count = int(share * len(kept))
    if min(count, len(kept) - count) < FEWEST:
        raise UserError(
            f"judged_calibration={share} leaves fewer than {FEWEST} of {len(kept)} queries for "
            "learning or for judging"
        )
    return np.sort(order[count:]), np.sort(order[:count])
