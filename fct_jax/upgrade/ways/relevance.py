"""Relevance by labels, by judged pairs, or by the new model's own neighbours."""

import dataclasses

import numpy as np

from fct_jax.errors import UserError
from fct_jax.upgrade.ways.judgements import rows_of_ids
from fct_jax.upgrade.ways.scores import Space, top

METRICS = ("cmc@1", "cmc@5", "recall@10", "ndcg@10", "mrr", "map")
_CUT = 10  # rank at which recall and nDCG are cut


@dataclasses.dataclass(frozen=True)
class Relevance:
    """The gallery rows that are relevant to Q queries, and their gains.

    Attributes:
      by: "labels", "judged pairs" or "agreement".
      total: (Q,) number of relevant rows.
      ideal: (Q, 10) their gains in descending order, filled with 0.
      labels: ((Q,), (N,)) labels of queries and gallery, or None.
      keys, values: for each judged pair ``query · N + row``, ascending, and the gain; or None.
      own: (Q,) the row that does not count, or None.
    """

    by: str
    total: np.ndarray
    ideal: np.ndarray
    labels: tuple[np.ndarray, np.ndarray] | None = None
    keys: np.ndarray | None = None
    values: np.ndarray | None = None
    own: np.ndarray | None = None
    size: int = 0

    def gains(self, rows: np.ndarray) -> np.ndarray:
        """Return the gains (Q, K) of results (Q, K), gallery rows or −1; 0 if not relevant."""
        if self.labels is not None:
            query, gallery = self.labels
            found = (gallery[rows] == query[:, None]) & (rows >= 0)
            if self.own is not None:
                found &= rows != self.own[:, None]
            return found.astype(np.float64)
        keys = np.arange(len(rows))[:, None] * self.size + rows
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        found = (self.keys[place] == keys) & (rows >= 0)
        return np.where(found, self.values[place], 0.0)

    def of(self, queries: np.ndarray) -> "Relevance":
        """Return the relevance of some of the queries."""
        labels = keys = values = own = None
        if self.labels is not None:
            labels = self.labels[0][queries], self.labels[1]
            own = None if self.own is None else self.own[queries]
        else:
            asked, row = np.divmod(self.keys, self.size)
            place = np.full(len(self.total), -1)
            place[queries] = np.arange(len(queries))
            kept = place[asked] >= 0
            keys, values = place[asked[kept]] * self.size + row[kept], self.values[kept]
            order = np.argsort(keys)
            keys, values = keys[order], values[order]
        return Relevance(
            self.by, self.total[queries], self.ideal[queries], labels, keys, values, own, self.size
        )


def by_labels(query_labels, gallery_labels, own: np.ndarray | None = None) -> Relevance:
    """Take rows with the query's label as relevant; its own row (Q,) does not count."""
    names, counts = np.unique(gallery_labels, return_counts=True)
    place = np.minimum(np.searchsorted(names, query_labels), len(names) - 1)
    total = np.where(names[place] == query_labels, counts[place], 0) - (own is not None)
    ideal = (np.arange(_CUT) < total[:, None]).astype(np.float64)
    labels = np.asarray(query_labels), np.asarray(gallery_labels)
    return Relevance("labels", total, ideal, labels, own=own)


def by_pairs(asked, rows, gains, queries: int, size: int, by: str = "judged pairs") -> Relevance:
    """Take pairs (P,) of query and gallery row, each once, with gains above 0 (P,)."""
    keys = np.asarray(asked, np.int64) * size + rows
    order = np.argsort(keys)
    keys, gains = keys[order], np.asarray(gains, np.float64)[order]
    if (keys[1:] == keys[:-1]).any():
        raise UserError("a pair of query and item is judged more than once")
    total = np.bincount(asked, minlength=queries)
    ideal = np.zeros((queries, _CUT))
    best_first = np.lexsort((-gains, keys // size)) if len(keys) else []
    starts = np.cumsum(total) - total
    asked, gains_sorted = (keys // size)[best_first], gains[best_first]
    place = np.arange(len(keys)) - starts[asked]
    kept = place < _CUT
    ideal[asked[kept], place[kept]] = gains_sorted[kept]
    return Relevance(by, total, ideal, keys=keys, values=gains, size=size)


def by_table(judged: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray) -> Relevance:
    """Return the relevance by a user's table of judged pairs.

    Args:
      judged: (Q,) the only relevant id of each query in order, or (P, 2) rows of query id and
        relevant id, or (P, 3) with a gain; a gain of 0 or less means not relevant.
      query_ids: (Q,).
      gallery_ids: (N,). Pairs with unknown ids are left out.
    """
    judged = np.asarray(judged)
    if judged.ndim == 1:
        if len(judged) != len(query_ids):
            raise UserError(f"judged has {len(judged)} ids, but there are {len(query_ids)} queries")
        asked, ids, gains = np.arange(len(judged)), judged, np.ones(len(judged))
    elif judged.ndim == 2 and judged.shape[1] in (2, 3):
        asked = rows_of_ids(query_ids, judged[:, 0])
        ids = judged[:, 1]
        gains = _gains(judged[:, 2]) if judged.shape[1] == 3 else np.ones(len(judged))
    else:
        raise UserError(f"judged must have shape (Q,), (P, 2) or (P, 3), not {judged.shape}")
    rows = rows_of_ids(gallery_ids, ids)
    kept = (asked >= 0) & (rows >= 0) & (gains > 0)
    return by_pairs(asked[kept], rows[kept], gains[kept], len(query_ids), len(gallery_ids))


def _gains(given: np.ndarray) -> np.ndarray:
    try:
        return given.astype(np.float64)
    except ValueError as error:
        raise UserError(f"the gains of judged pairs must be numbers: {error}") from None


def by_agreement(query_new, new, space: Space, own: np.ndarray | None = None) -> Relevance:
    """Take the new model's own 10 nearest items, in the gallery that it has embedded completely."""
    k = min(_CUT, len(new) - (own is not None))
    rows = np.arange(len(new))
    _, found = top(space.queries(query_new), lambda r: space.items(new[r]), rows, k, own)
    asked = np.repeat(np.arange(len(found)), k)
    return by_pairs(asked, found.ravel(), np.ones(found.size), len(found), len(new), "agreement")


def per_query(rows: np.ndarray, relevance: Relevance) -> dict[str, np.ndarray]:
    """Return the `METRICS` (Q,) of ranked results (Q, K), from 0 to 1.

    cmc@k: 1 if a relevant item is among the first k. recall@10: share of the relevant items that
    are among the first 10. ndcg@10: gains divided by log2(rank + 1), as a share of the best
    possible sum. mrr: reciprocal rank of the first relevant item, 0 beyond K. map: mean, over the
    relevant items that could be among the K results, of the precision at their rank (TREC's
    definition cut at K). Every query must have a relevant item.
    """
    gains = relevance.gains(rows)
    hit = gains > 0
    depth = rows.shape[1]
    rank = np.arange(1, depth + 1)
    first = np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, np.inf)
    precision = np.cumsum(hit, axis=1) / rank
    discount = 1 / np.log2(np.arange(2, _CUT + 2))
    cut = min(_CUT, depth)
    return {
        "cmc@1": (first <= 1).astype(np.float64),
        "cmc@5": (first <= 5).astype(np.float64),
        "recall@10": hit[:, :_CUT].sum(axis=1) / relevance.total,
        "ndcg@10": (gains[:, :_CUT] @ discount[:cut]) / (relevance.ideal @ discount),
        "mrr": 1 / first,
        "map": (precision * hit).sum(axis=1) / np.minimum(relevance.total, depth),
    }
