"""What an assessment starts from: the held-out gallery, its queries, and what is relevant."""

import dataclasses

import numpy as np

from fct_jax.errors import UserError
from fct_jax.storage.embedding_set import EmbeddingSet, check_fingerprint, check_paired
from fct_jax.upgrade.checks.guards import as_found, check_space, new_space, old_space
from fct_jax.upgrade.inputs import FEWEST, load_array, open_sample, row_hashes
from fct_jax.upgrade.maps.map import Map
from fct_jax.upgrade.ways import relevance as judge
from fct_jax.upgrade.ways.scores import Space

REFERENCE = 4000  # items of a calibration
_LOOKED_AT = 64  # vectors, for their length


@dataclasses.dataclass(frozen=True)
class Queries:
    """The queries by both models, (Q, do) and (Q, dn), what is relevant, and their own rows."""

    old: np.ndarray
    new: np.ndarray
    relevance: judge.Relevance
    own: np.ndarray | None = None

    def of(self, rows: np.ndarray) -> "Queries":
        own = None if self.own is None else self.own[rows]
        return Queries(self.old[rows], self.new[rows], self.relevance.of(rows), own)


def check_fit(found: Map, old: EmbeddingSet, new: EmbeddingSet) -> None:
    """Both sets are of the map's models and spaces, and finite. Raises UserError."""
    check_fingerprint(old, found.old_fingerprint, "old")
    check_fingerprint(new, found.new_fingerprint, "new")
    old.check_finite()
    new.check_finite()
    for role, given, dim in (("old", old, found.dim_in), ("new", new, found.dim_out)):
        if given.dim != dim:
            raise UserError(f"{given.name} has dimension {given.dim}, but the {role} model's {dim}")
    for role, given, space in (("old", old, old_space(found)), ("new", new, new_space(found))):
        check_space(given.name, as_found(given.meta, given.vectors[:_LOOKED_AT]), space, role)


def held_out_rows(found: Map, old: EmbeddingSet, rng) -> tuple[np.ndarray, np.ndarray]:
    """Rows that the map was not fitted on, and the rows for the calibration."""
    fitted = np.zeros(len(old), bool)
    if found.fitted is not None:
        fitted = np.isin(row_hashes(old.vectors), found.fitted)
    unseen, seen = np.flatnonzero(~fitted), np.flatnonzero(fitted)
    if len(unseen) < FEWEST:
        raise UserError(
            f"{len(seen)} of {len(old)} items are among those that the map was fitted on; "
            f"at least {FEWEST} others are needed to judge it"
        )
    reference = seen if len(seen) >= min(1000, len(old) // 5) else unseen
    return unseen, np.sort(rng.permutation(reference)[:REFERENCE])


def open_queries(
    query_old, query_new, query_labels, old: EmbeddingSet, new: EmbeddingSet, space: Space, judged
) -> Queries:
    """The queries and what is relevant to each; arguments as of ``assess``.

    old, new: the held-out gallery; space: that of the new model, for the agreement with it.
    """
    judged = load_array(judged, "judged")
    query_labels = load_array(query_labels, "query_labels")
    own = None
    if _absent(query_old) != _absent(query_new):
        raise UserError("give both query_old and query_new, or neither")
    if _absent(query_old):
        asked_old, asked_new, own = old, new, np.arange(len(old))
    else:
        asked_old, asked_new = (
            open_sample(query_old, "query_old"),
            open_sample(query_new, "query_new"),
        )
        check_paired(asked_old, asked_new)
        for asked, items in ((asked_old, old), (asked_new, new)):
            asked.check_finite()
            if asked.dim != items.dim:
                raise UserError(f"{asked.name} has dimension {asked.dim}, {items.name} {items.dim}")
            check_fingerprint(asked, items.fingerprint, "gallery's")
    if query_labels is None:
        query_labels = asked_new.labels if asked_new.labels is not None else asked_old.labels
    labels = new.labels if new.labels is not None else old.labels
    asked_vectors = np.asarray(asked_new.vectors, np.float32)
    if judged is not None:
        found = judge.by_table(judged, asked_new.ids, new.ids)
    elif labels is not None and query_labels is not None:
        if len(query_labels) != len(asked_new):
            raise UserError(f"{len(query_labels)} query labels for {len(asked_new)} queries")
        found = judge.by_labels(query_labels, labels, own)
    else:
        found = judge.by_agreement(asked_vectors, new.vectors, space, own)
    return Queries(np.asarray(asked_old.vectors, np.float32), asked_vectors, found, own)


def _absent(what) -> bool:
    return what is None or (isinstance(what, str) and not what)


def groups_of(groups: np.ndarray, queries: Queries, given: int, unseen: np.ndarray) -> np.ndarray:
    """(Q,) the group of each query; ``given``: items before some were held out."""
    if queries.own is not None and len(groups) == given:
        groups = groups[unseen]
    if groups.shape != (len(queries.old),):
        raise UserError(f"groups must be one for each of {len(queries.old)} queries")
    return groups


def split_judged(kept, share: float, by: str, rng) -> tuple[np.ndarray, np.ndarray]:
    """Queries to assess with, and a share of them to learn the calibration from."""
    if by == "agreement":
        raise UserError("judged_calibration needs judged pairs or labels")
    if not 0 < share < 1:
        raise UserError(f"judged_calibration must be a share below 1, not {share}")
    order = rng.permutation(kept)
    count = int(share * len(kept))
    if min(count, len(kept) - count) < FEWEST:
        raise UserError(f"judged_calibration={share} leaves fewer than {FEWEST} queries on a side")
    return np.sort(order[count:]), np.sort(order[:count])
