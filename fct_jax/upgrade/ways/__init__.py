"""Ways of serving a gallery that is only partly re-embedded.

`WAYS` is the only table of them. A `Way` defines the score of an item that is not re-embedded, the
score of one that is, the vectors that these scores need of items and queries, and the orders of
re-embedding worth trying. Searching, assessing, planning and probing use these functions and
compare no names.

Scores are sums over *pairs of spaces* (`PAIRS`): the inner product of one kind of query vector with
one kind of item vector, times a factor per query. Every way is therefore one search of ordinary
inner-product indexes, and an assessment computes the lists of each pair once.

`find_way` also takes ``module:name`` and entry points of the group ``fct_jax.ways``. A new way is
one file and one row. For example, this way searches only old vectors, as the service does today:

    from fct_jax.upgrade.ways import Mix, Way

    STAY = Way("stay", "keep the old index", ("old",), ("old",), lambda asked: Mix({"old": 1.0}))
"""

from collections.abc import Callable, Mapping

import numpy as np

from fct_jax.errors import UserError, unknown
from fct_jax.runtime.plugins import find
from fct_jax.upgrade.ways.way import PAIRS, Asked, Mix, Way, angle_between, slerp_factors, weighted

__all__ = [
    "BLENDS", "PAIRS", "SCORES", "WAYS", "Asked", "Mix", "Way", "angle_between", "find_way",
    "simplicity", "slerp_factors", "weighted",
]  # fmt: skip
# Those with traffic are tried where there is any.
_ONE_MODEL = ("uncertainty", "random", "traffic", "uncertainty×traffic")
_COMMON = (*_ONE_MODEL, "class_mean")  # the order of the paper
# If the old model is still queried, items with a high uncertainty are often those that the old
# model finds best.
_BOTH_MODELS = (
    "uncertainty", "random", "certainty", "traffic", "uncertainty×traffic", "certainty×traffic",
)  # fmt: skip


def _keep(asked: Asked) -> Mix:
    a = asked.affine
    return Mix({"old": a.keep}, a.keep_shift)


def _dual(asked: Asked) -> Mix:
    a = asked.affine
    return Mix({"new": a.dual}, a.dual_shift)


def _fused(asked: Asked) -> Mix:
    a = asked.affine
    return Mix({"old": a.fused_old, "new": a.fused_new}, a.fused_shift)


def _blend(asked: Asked) -> Mix:
    settings = dict(asked.settings)
    kind = settings.pop("kind")
    if kind not in BLENDS:
        raise unknown("kind of blend", kind, BLENDS)
    ours, theirs = BLENDS[kind](asked, **settings)
    return Mix({"old": ours, "bridged": theirs})


def _sum_blend(asked: Asked, weight: float) -> tuple:
    _check_weight(weight)
    return 1 - weight, weight


def _slerp_blend(asked: Asked, weight: float) -> tuple:
    _check_weight(weight)
    ours, theirs = slerp_factors(asked.product, weight)
    return ours, theirs * asked.length


def _per_query_blend(asked: Asked, bias: float, slope: float) -> tuple:
    share = 1 / (1 + np.exp(-(bias + slope * np.asarray(asked.product))))
    return 1 - share, share


def _check_weight(weight: float) -> None:
    if not 0 <= weight <= 1:
        raise UserError(f"the weight of a blend must be between 0 and 1, not {weight}")


# kind of blend -> factors of the old and of the bridged query
# Source: https://arxiv.org/abs/2609.39836; the grids are the published ones.
BLENDS: Mapping[str, Callable] = {
    "slerp": _slerp_blend,
    "sum": _sum_blend,
    "per-query": _per_query_blend,
}


def _reranked(asked: Asked) -> Mix:
    score = asked.settings["score"]
    if score not in SCORES:
        raise unknown("score of a cascade", score, SCORES)
    return SCORES[score](asked)


def _reranked_translated(asked: Asked) -> Mix:
    # Translated and new vectors share one space, so their sum needs no calibration.
    both = {"translated": 1.0, "new": 1.0}
    return Mix(both if asked.settings["score"] == "sum" else {"new": 1.0})


def _recalled_translated(asked: Asked) -> Mix:
    # Doubled in place of both terms of a sum.
    return Mix({"translated": 2.0 if asked.settings["score"] == "sum" else 1.0})


# Scores that rank the re-embedded candidates of a cascade.
SCORES: Mapping[str, Callable] = {"new": _dual, "sum": _fused}
_CASCADES = tuple(
    {"depth": depth, "score": score} for depth in (20, 50, 100, 200) for score in SCORES
)

# Of two ways that cannot be distinguished, the advice names the one that needs less of the
# service: the earlier row.
_ROWS = (
    Way(
        "translated",
        "translate the gallery and query it with the new model",
        ("new",),
        ("translated",),
        left=lambda asked: Mix({"translated": 1.0}),
        done=lambda asked: Mix({"new": 1.0}),
        orders=_ONE_MODEL,
    ),
    Way(
        "bridge",
        "map new queries to the old space and search the unchanged old index",
        ("bridged",),
        ("old",),
        left=lambda asked: Mix({"bridged": 1.0}),
    ),
    Way(
        "blend",
        "search the old index with a mixture of the old query and the bridged new one",
        ("old", "bridged"),
        ("old",),
        left=_blend,
        settings={"kind": "slerp", "weight": 0.5},
        variants=(
            *({"kind": "slerp", "weight": weight / 10} for weight in range(1, 10)),
            *({"kind": "sum", "weight": weight / 4} for weight in range(1, 4)),
            *(
                {"kind": "per-query", "bias": bias, "slope": slope}
                for bias in (-3.0, -1.5, 0.0, 1.5, 3.0)
                for slope in (-3.0, 3.0, 6.0)
            ),
        ),
    ),
    Way(
        # λ-orthogonality: https://arxiv.org/abs/2509.16664
        "common",
        "move new vectors to a common space and search old and re-embedded vectors there alike",
        ("common", "moved"),
        ("old",),
        left=lambda asked: Mix({"common": 1.0}),
        done=lambda asked: Mix({"moved": 1.0}),
        orders=_COMMON,
    ),
    Way(
        # With a rotation it is the way "translated", so that it is only tried without one.
        "common_translated",
        "move translated and new vectors to a common space and search them there",
        ("moved",),
        ("translated",),
        left=lambda asked: Mix({"forward": 1.0}),
        done=lambda asked: Mix({"moved": 1.0}),
        orders=_COMMON,
    ),
    Way(
        "dual",
        "query old vectors with the old model and re-embedded ones with the new model",
        ("old", "new"),
        ("old",),
        left=_keep,
        done=_dual,
        calibrated=True,
        orders=_BOTH_MODELS,
    ),
    Way(
        "fused",
        "keep the old vectors and score re-embedded items by both models",
        ("old", "new"),
        ("old",),
        left=_keep,
        done=_fused,
        keeps_old=True,
        calibrated=True,
        orders=_BOTH_MODELS,
    ),
    Way(
        "cascade",
        "recall candidates from the old index and rank them by new vectors that are made on demand",
        ("old", "new"),
        ("old",),
        left=_keep,
        keeps_old=True,
        calibrated=True,
        reranked=_reranked,
        settings={"depth": 100, "score": "sum"},
        variants=_CASCADES,
    ),
    Way(
        "translated_cascade",
        "recall candidates from the translated index and rank them by new vectors that are made on "
        "demand",
        ("new",),
        ("translated",),
        left=_recalled_translated,
        keeps_old=True,
        reranked=_reranked_translated,
        settings={"depth": 100, "score": "sum"},
        variants=_CASCADES,
    ),
    Way(
        "union_cascade",
        "recall candidates from the old and the translated index by turns and rank them by new "
        "vectors that are made on demand",
        ("old", "new"),
        ("old", "translated"),
        left=_keep,
        beside=lambda asked: Mix({"translated": 1.0}),
        keeps_old=True,
        calibrated=True,
        reranked=_reranked,
        settings={"depth": 100, "score": "sum"},
        variants=_CASCADES,
    ),
)
WAYS: Mapping[str, Way] = {way.name: way for way in _ROWS}


def find_way(name: str | Way) -> Way:
    """Return the way with a name: a row, an entry point or ``module:name``.

    Raises UserError for an unknown name, with the nearest known one.
    """
    if isinstance(name, Way):
        return name
    found = find(WAYS, name, "way of serving", "ways")
    if not isinstance(found, Way):
        raise UserError(
            f"{name} must be a fct_jax.upgrade.ways.Way, but it is of type {type(found).__name__}"
        )
    return found


def simplicity(name: str) -> int:
    """Return a way's place in the table, simplest first; ways outside the table come last."""
    names = list(WAYS)
    return names.index(name) if name in names else len(names)
