"""Retrieval metrics, backfilling curves and reports.

The functions are imported when first used, because some of them need compilers and search
libraries that a map does not need.
"""

from fct_jax.runtime import lazy

# public name -> module that defines it
_PUBLIC = {
    "BackfillCurve": "evaluate.backfill",
    "backfill_curve": "evaluate.backfill",
    "backfill_curves": "evaluate.backfill",
    "backfill_order": "evaluate.orders",
    "compatibility_scores": "compare.measures",
    "grouped": "evaluate.metrics",
    "hot_refresh_curve": "compare.measures",
    "hot_refresh_order": "compare.measures",
    "k_reciprocal_rerank": "evaluate.protocols.reid",
    "knn": "evaluate.search",
    "map_at_k": "evaluate.protocols.landmarks",
    "market1501": "evaluate.protocols.reid",
    "negative_flip_rate": "compare.measures",
    "per_query_results": "evaluate.metrics",
    "ranked_metrics": "evaluate.search",
    "retrieval_metrics": "evaluate.metrics",
    "revisited_map": "evaluate.protocols.landmarks",
    "update_gain": "compare.measures",
}

__getattr__, __dir__, __all__ = lazy.names(__name__, _PUBLIC)
