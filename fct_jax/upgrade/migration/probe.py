"""A probe set: queries of the new model that measure a gallery while it is re-embedded.

    PROBE/new/           EmbeddingSet: some items of the gallery, embedded by the new model
    PROBE/query/         EmbeddingSet: queries, embedded by the new model
    PROBE/query_old/     EmbeddingSet: the same queries by the old model, for ways that ask both
    PROBE/relevant.npy   (Q,) the id of each query's relevant item; optional

Quality is the mean reciprocal rank of the relevant item if ``relevant.npy`` exists; otherwise
mean average precision if both sets have labels; otherwise the agreement with the new model: the
share of a query's ten nearest new vectors that are among its ten nearest in the gallery. Only the
items of the probe are searched, so that this takes seconds for a gallery of any size.
"""

from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.evaluate.distances import unit_rows
from fct_jax.evaluate.metrics import retrieval_metrics
from fct_jax.evaluate.search import knn
from fct_jax.storage.embedding_set import EmbeddingSet, check_paired
from fct_jax.storage.ids import rows_of
from fct_jax.upgrade.checks.guards import as_found, check_space, new_space
from fct_jax.upgrade.maps.backward import Backward
from fct_jax.upgrade.maps.common_space import closed_form_turn
from fct_jax.upgrade.maps.loading import load_map
from fct_jax.upgrade.ways import Way, relevance
from fct_jax.upgrade.ways.calibration import calibrate
from fct_jax.upgrade.ways.scores import Space
from fct_jax.upgrade.ways.serving import search

_NEIGHBOURS = 10
_QUERIES = 1000  # largest number of queries, enough for two digits
_BLOCK = 128  # queries compared together
_DEPTH = 1000  # results judged per query, for dual and fused


class Probe:
    """The queries and the items of a probe set.

    Attributes:
      measure: "mrr", "map" or "agreement@10".
      ids: (m,) ids of its items, all of which are in the gallery.
      new: (m, D) float32: the items by the new model.
      query: (Q, D) float32: at most 1,000 of the queries.
      query_old: (Q, Do) float32: the same queries by the old model, or None.
      backward: the backward map of the map's common space, or None.
    """

    def __init__(self, folder, metric: str, backward: Backward | None = None):
        folder = Path(folder)
        for part in ("new", "query"):
            if not (folder / part / "vectors.npy").is_file():
                raise UserError(f"the probe {folder} has no EmbeddingSet {part!r}")
        items, queries = EmbeddingSet.read(folder / "new"), EmbeddingSet.read(folder / "query")
        for found in (items, queries):
            found.check_finite()
        if items.dim != queries.dim:
            raise UserError(
                f"{queries.name} has dimension {queries.dim}, but {items.name} has {items.dim}"
            )
        self.name, self.metric, self.meta = str(folder), metric, items.meta
        self.query_meta = queries.meta
        self.ids, self.new = items.ids, np.asarray(items.vectors, np.float32)
        kept = np.arange(len(queries))
        if len(kept) > _QUERIES:
            kept = np.sort(np.random.default_rng(0).choice(len(kept), _QUERIES, replace=False))
        self.query = np.asarray(queries.vectors[kept], np.float32)
        self.query_old, self.backward = None, backward
        if (folder / "query_old" / "vectors.npy").is_file():
            asked = EmbeddingSet.read(folder / "query_old")
            asked.check_finite()
            check_paired(asked, queries)
            self.query_old = np.asarray(asked.vectors[kept], np.float32)
        self._labels = self._relevant = None
        if (folder / "relevant.npy").is_file():
            self.measure = "mrr"
            relevant = np.load(folder / "relevant.npy", allow_pickle=False)
            if relevant.shape != (len(queries),):
                raise UserError(
                    f"{folder}/relevant.npy has shape {relevant.shape}; "
                    f"it must have one id for each of {len(queries)} queries"
                )
            self._relevant = rows_of(items.ids, relevant[kept], "relevant.npy", items.name)
        elif items.labels is not None and queries.labels is not None:
            self.measure = "map"
            self._labels = np.asarray(queries.labels)[kept], np.asarray(items.labels)
        else:
            self.measure = f"agreement@{_NEIGHBOURS}"
            self._ideal = self._nearest(self.new)

    def rows(self, gallery) -> np.ndarray:
        """Return the gallery's row of each item. Raises UserError for items not in the gallery."""
        return rows_of(gallery.ids, self.ids, f"items of the probe {self.name}", gallery.name)

    def served(
        self, way: Way, old: np.ndarray, new, migrated, old_metric: str, mixed=None
    ) -> float:
        """Return the quality of serving the items in a way of the table.

        Args:
          way: a way for which new vectors matter (`Way.reembeds`).
          old: (m, Do) the items by the old model.
          new: (m, D) the items by the new model; only migrated ones are used.
          migrated: (m,) bool, True for re-embedded items.
          old_metric: "l2" or "cosine", metric of the old space.

          mixed: (m, D) new vectors of the migrated items, translated ones of the others, for ways
            that need them.

        The calibration, and the common space unless the map has one, use the probe's items, which
        both models have embedded.
        Raises UserError if the way needs queries by the old model and there are none.
        """
        absent = self.query_old is None or self.query_old.shape[1] != old.shape[1]
        if way.needs_old_queries and absent:
            raise UserError(
                f"serve={way.name} queries both models: the probe {self.name} needs query_old, "
                f"the queries by the old model, of dimension {old.shape[1]}"
            )
        made, backward = None, self.backward
        if way.calibrated:
            made = calibrate(old, self.new, metric=self.metric, old_metric=old_metric)
        if way.needs_backward:
            if "l2" in (self.metric, old_metric):
                raise UserError(f"serve={way.name} needs vectors that are compared by cosine")
            if backward is None:
                backward = closed_form_turn(self.new, old)
        depth = min(len(old), _DEPTH)
        _, rows = search(
            way, self.query_old, self.query, old, new, migrated, depth, made,
            translated=mixed, metric=self.metric, backward=backward,
        )  # fmt: skip
        name = self.measure.replace("agreement", "recall")
        return float(relevance.per_query(rows, self._judged())[name].mean())

    def _judged(self) -> relevance.Relevance:
        if self._relevant is not None:
            asked, gains = np.arange(len(self.query)), np.ones(len(self.query))
            return relevance.by_pairs(asked, self._relevant, gains, len(asked), len(self.ids))
        if self._labels is not None:
            return relevance.by_labels(*self._labels)
        return relevance.by_agreement(self.query, self.new, Space.of(self.new, self.metric))

    def quality(self, vectors: np.ndarray) -> float:
        """Return the quality of searching the items as one space with the given vectors (m, D)."""
        vectors = np.asarray(vectors, np.float32)
        if self._relevant is not None:
            return self._mean_reciprocal_rank(vectors)
        if self._labels is not None:
            query_labels, labels = self._labels
            return retrieval_metrics(
                self.query, vectors, query_labels, labels, metric=self.metric, ks=(1,)
            )["map"]
        found = self._nearest(vectors)
        common = [
            len(np.intersect1d(a, b, assume_unique=True))
            for a, b in zip(found, self._ideal, strict=True)
        ]
        return float(np.mean(common)) / self._ideal.shape[1]

    def _nearness(self, vectors: np.ndarray):
        """Yield (first query, nearness (n, m)): larger is nearer."""
        if self.metric == "cosine":
            vectors = unit_rows(vectors)
        half = 0 if self.metric == "cosine" else (vectors**2).sum(axis=1) / 2
        for first in range(0, len(self.query), _BLOCK):
            yield first, self.query[first : first + _BLOCK] @ vectors.T - half

    def _mean_reciprocal_rank(self, vectors: np.ndarray) -> float:
        total = 0.0
        for first, near in self._nearness(vectors):
            wanted = self._relevant[first : first + _BLOCK]
            own = near[np.arange(len(near)), wanted][:, None]
            # Of equally near items the lower row comes first.
            earlier = np.arange(near.shape[1]) < wanted[:, None]
            rank = 1 + ((near > own) | ((near == own) & earlier)).sum(axis=1)
            total += float((1 / rank).sum())
        return total / len(self.query)

    def _nearest(self, vectors: np.ndarray) -> np.ndarray:
        return knn(self.query, vectors, min(_NEIGHBOURS, len(vectors)), metric=self.metric)[1]


def open_probe(where, mapping) -> Probe | None:
    """Open a probe set; return None for None. Raises UserError if it is of another space."""
    if where is None:
        return None
    probe = Probe(where, mapping.metric, mapping.backward)
    if probe.new.shape[1] != mapping.dim_out:
        raise UserError(
            f"{where} has dimension {probe.new.shape[1]}, but the map's new dimension is "
            f"{mapping.dim_out}"
        )
    # Queries may have a prefix of their own.
    query_meta = {k: v for k, v in probe.query_meta.items() if k != "prefix"}
    for part, meta, vectors in (("new", probe.meta, probe.new), ("query", query_meta, probe.query)):
        check_space(f"{where}/{part}", as_found(meta, vectors), new_space(mapping), "new")
    return probe


def probe_of(where, metric: str, way: Way, mapping) -> Probe:
    """Open the probe set of a begun upgrade; ``mapping``: the name of its map.

    The map is loaded only for a way that needs its backward map.
    """
    backward = load_map(mapping).backward if way.needs_backward else None
    return Probe(where, metric, backward)
