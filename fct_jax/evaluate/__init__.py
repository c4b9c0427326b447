"""Retrieval metrics, backfilling curves and reports."""

from fct_jax.compare.measures import (
    compatibility_scores,
    hot_refresh_curve,
    hot_refresh_order,
    negative_flip_rate,
    update_gain,
)
from fct_jax.evaluate.backfill import (
    BackfillCurve,
    backfill_curve,
    backfill_curves,
)
from fct_jax.evaluate.metrics import grouped, per_query_results, retrieval_metrics
from fct_jax.evaluate.orders import backfill_order
from fct_jax.evaluate.protocols.landmarks import map_at_k, revisited_map
from fct_jax.evaluate.protocols.reid import k_reciprocal_rerank, market1501
from fct_jax.evaluate.search import knn, ranked_metrics

__all__ = [
    "BackfillCurve",
    "backfill_curve",
    "backfill_curves",
    "backfill_order",
    "compatibility_scores",
    "grouped",
    "hot_refresh_curve",
    "hot_refresh_order",
    "k_reciprocal_rerank",
    "knn",
    "map_at_k",
    "market1501",
    "negative_flip_rate",
    "per_query_results",
    "ranked_metrics",
    "retrieval_metrics",
    "revisited_map",
    "update_gain",
]
