"""One cell of the grid: a map fitted on a number of pairs, assessed on two sets of queries."""

import time

import numpy as np

from fct_jax import upgrade
from fct_jax.errors import UserError
from fct_jax.upgrade.assessment.inputs import unfitted_rows
from fct_jax.upgrade.inputs import row_hashes
from tools.upgrading.pairs import Cut, whole_of

ON_SAMPLE, ON_GALLERY = "the sample", "the gallery"


def measure(made: Cut, method: str, size: int, seed: int, settings: dict) -> dict:
    """Return the record of a cell as plain numbers and text.

    The first half of the queries gives the verdict, and the best variant of ways that have several.
    The fresh half, which took no part in these decisions, shows what they are worth. A refusal, for
    example by a map that needs equal sizes, is a record with "refused".
    """
    start = time.perf_counter()
    sample = [part.vectors[:size] for part in made.sample]
    labels = made.sample[1].labels
    try:
        found = upgrade.fit(
            *sample, method=method, labels=None if labels is None else labels[:size],
            epochs=settings["epochs"], seed=seed,
        )  # fmt: skip
        fit_s = time.perf_counter() - start
        fitted = np.flatnonzero(np.isin(row_hashes(sample[0]), found.fitted))
        whole = whole_of(made.sample, fitted, made.gallery)
        start = time.perf_counter()
        decided, fresh = (
            _assess(found, whole, queries, made.judged, seed, settings) for queries in made.queries
        )
    except UserError as error:
        return {"refused": str(error)}
    assess_s = (time.perf_counter() - start) / 2
    _, seen, reference = unfitted_rows(found, whole[0], np.random.default_rng(seed))
    new = _whole(fresh)
    record = {
        "method": found.method,
        "fit_s": round(fit_s, 2),
        "assess_s": round(assess_s, 2),
        "queries": [decided.queries, fresh.queries],
        "items": decided.items,
        "judged_by": decided.by,
        "target": decided.target,
        "calibrated_on": ON_SAMPLE if np.isin(reference, seen).all() else ON_GALLERY,
        "keep": fresh.point("keep").values[fresh.target],
        "new": new.values[fresh.target],
        "new_gain": list(new.gain),
        "advice": decided.advice,
        "way": decided.way,
        "order": decided.order,
        "share": decided.share,
        "way_settings": dict(decided.verdict.settings),
        "text": decided.text,
        "points": _points(decided, fresh),
    }
    advised = [p for p in record["points"] if _is_advised(p, record)]
    record["fresh_gain"] = advised[0]["fresh"] if advised else None
    return record


def _assess(found, whole, queries, judged, seed: int, settings: dict):
    return upgrade.assess(
        found, *whole, query_old=queries[0], query_new=queries[1], judged=judged,
        ways=settings["ways"], orders=settings["orders"], shares=settings["shares"],
        resamples=settings["resamples"], max_queries=max(len(queries[0]), 20), seed=seed,
    )  # fmt: skip


def _whole(found):
    return found.point("re-embed all")


def _points(decided, fresh) -> list[dict]:
    """Return every point with its values on the first half of the queries and on the fresh half."""
    theirs = {(p.label, p.order, p.share): p for p in fresh.points if p.way != "translate"}
    made = []
    for p in decided.points:
        if p.way == "translate":
            continue  # this is a point on the curve of "translated"
        other = theirs[p.label, p.order, p.share]
        made.append(
            {
                "way": p.way,
                "label": p.label,
                "settings": dict(p.settings),
                "order": p.order,
                "share": p.share,
                "value": p.values[decided.target],
                "gain": list(p.gain),
                "fresh_value": other.values[fresh.target],
                "fresh": list(other.gain),
            }
        )
    return made


def _is_advised(p: dict, record: dict) -> bool:
    return (p["way"], p["settings"], p["share"]) == (
        record["way"], record["way_settings"], record["share"],
    ) and record["order"] in (None, p["order"])  # fmt: skip
