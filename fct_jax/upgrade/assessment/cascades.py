"""Cascades in use: the vectors they make on demand, their cost, and the depth they need."""

from collections.abc import Mapping

import numpy as np

from fct_jax.upgrade.assessment.curves import Curves
from fct_jax.upgrade.assessment.verdict import Bootstrap
from fct_jax.upgrade.assessment.world import WHOLE, Candidates, Spot, World
from fct_jax.upgrade.ways.cascade_depth import candidate_reuse
from fct_jax.upgrade.ways.on_demand import Replay, popular_stream, replay
from fct_jax.upgrade.ways.relevance import Relevance, per_query

EPSILON = 0.01  # gap to the new model that counts as none
POPULAR = 10_000  # queries drawn by their popularity


def stream_of(queries: int, popularity: float, seed: int) -> np.ndarray:
    """Return the queries in the order of time.

    popularity: exponent of the Zipf law by which 10,000 queries are drawn; with 0 each query is
    asked once, in random order.
    """
    if popularity:
        return popular_stream(queries, POPULAR, exponent=popularity, seed=seed)
    return np.random.default_rng(seed).permutation(queries)


def replayed(
    spot: Spot, found: Candidates, stream: np.ndarray, size: int, budget: int | None
) -> Replay:
    """Replay a stream for one cascade; size: number of items; budget: new vectors per query.

    Nothing is ranked without a budget: each query is then served as the curves have it.
    """
    depth = min(spot.way.settings["depth"], found.rows.shape[1])
    part = slice(0, depth)
    return replay(
        stream,
        found.rows[:, part],
        found.old_scores[:, part],
        found.new_scores[:, part],
        size=size,
        budget=budget,
        k=0 if budget is None else depth,
    )


def quality_of(
    made: Replay, found: Candidates, stream: np.ndarray, relevance: Relevance, depth: int
) -> dict[str, np.ndarray]:
    """Return {metric: (Q,)} of a replay in which each query was asked once.

    The first stage's further results follow the ranked candidates.
    """
    ranked = np.full((len(stream), depth), -1, np.int64)
    width = min(made.rows.shape[1], depth)
    ranked[stream, :width] = made.rows[:, :width]
    rest = found.rows[:, width:depth]
    ranked[:, width : width + rest.shape[1]] = rest
    return per_query(ranked, relevance)


def told(
    made: Replay, found: Candidates, depth: int, items_per_second: float, cost_per_1000: float
) -> dict:
    """Summarise a replay for the report: counts, shares, seconds and money."""
    each = made.embeddings
    return {
        "reused": candidate_reuse(found.rows[:, :depth]),
        **each,
        "share_after": made.shares,
        "ranked_by_old_score": float(made.old_scored.mean()),
        "queued": int(made.queued.sum()),
        "seconds_p99": each["p99"] / items_per_second if items_per_second else None,
        "cost_of_1000_queries": each["mean"] * cost_per_1000 if cost_per_1000 else None,
    }


def replayed_all(
    spots, measured: dict, curves: Curves, world: World, budget, stream, once, rate, price
) -> dict[str, dict]:
    """Return what each cascade embeds; a budget per query also replaces its quality.

    stream: (S,) queries in the order asked; once: the same queries, each asked once.
    """
    found = {}
    for spot in spots:
        if spot.way.reranked is None:
            continue
        recalled = curves.candidates[spot.way.name, spot.way.settings["score"]]
        made = replayed(spot, recalled, stream, world.count, budget)
        depth = spot.way.settings["depth"]
        found[spot.way.label] = told(made, recalled, depth, rate, price)
        if budget is not None:
            if stream is not once:
                made = replayed(spot, recalled, once, world.count, budget)
            measured[spot.name] = quality_of(made, recalled, once, world.relevance, curves.depth)
    return found


def gaps(
    spots, measured: Mapping[tuple, dict], target: str, bootstrap: Bootstrap
) -> tuple[dict[str, dict], dict[str, int | None]]:
    """Return each cascade's gap to the new model, and the depths that are sufficient.

    The first is {cascade: {"gap", "low", "high"}}, a mean with its 95 % interval. The second is
    {way and score: K*}, the smallest tried depth with a mean gap of at most 0.01, or None.
    """
    whole = measured[WHOLE, "", 1.0][target]
    found, deep = {}, {}
    for spot in spots:
        if spot.way.reranked is None:
            continue
        gap = whole - measured[spot.name][target]
        low, high = bootstrap.interval(gap)
        found[spot.way.label] = {"gap": float(gap.mean()), "low": low, "high": high}
        kind = f"{spot.way.name} {spot.way.settings['score']}"
        deep.setdefault(kind, {})[spot.way.settings["depth"]] = float(gap.mean())
    smallest = {
        kind: next((d for d in sorted(of) if of[d] <= EPSILON), None) for kind, of in deep.items()
    }
    return found, smallest
