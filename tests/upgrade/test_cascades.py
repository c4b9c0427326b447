"""Assessments of cascades, and of a service's cut-off."""

import dataclasses

import numpy as np
import pytest

from fct_jax.errors import UserError
from fct_jax.upgrade import assess
from fct_jax.upgrade.assessment.cascades import gaps, stream_of
from fct_jax.upgrade.assessment.cutoffs import cutoffs
from fct_jax.upgrade.assessment.verdict import Bootstrap
from fct_jax.upgrade.assessment.world import WHOLE, World, spots_of
from fct_jax.upgrade.ways import WAYS
from fct_jax.upgrade.ways import relevance as judge
from fct_jax.upgrade.ways.calibration import calibrate


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(500, 24))
    asked = latent[:120] + 0.5 * rng.normal(size=(120, 24))
    made = []
    for dim, noise in ((16, 0.8), (32, 0.4)):
        turn = rng.normal(size=(24, dim)) / 5
        for part in (latent, asked):
            rows = part @ turn + noise * rng.normal(size=(len(part), dim))
            made.append((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))
    return made


def assessed(vectors, **keywords):
    old, query_old, new, query_new = vectors
    return assess(
        None,
        old,
        new,
        query_old=query_old,
        query_new=query_new,
        judged=np.arange(120),
        method="ridge",
        ways=("cascade", "translated_cascade"),
        resamples=200,
        **keywords,
    )


@pytest.mark.slow
def test_a_budget_of_new_vectors_lies_between_none_and_all(vectors):
    none, few, every = (assessed(vectors, embeddings_a_query=b) for b in (0, 3, None))
    keep = every.point("keep").values
    for depth in (20, 200):
        label = f"cascade {depth} sum"
        # With nothing embedded it is today's ranking; with all candidates, the warm cascade.
        assert none.point(label, "candidates").values["mrr"] == pytest.approx(keep["mrr"])
        told = [found.replays[label] for found in (none, few, every)]
        assert [t["mean"] for t in told] == sorted(t["mean"] for t in told)
        assert told[0]["mean"] == 0 and told[1]["p99"] <= 3 and told[2]["ranked_by_old_score"] == 0
        assert told[0]["share_after"][120] == 0 < told[1]["share_after"][120]
        assert told[1]["mean"] * 120 == pytest.approx(told[1]["share_after"][120] * every.items)
    again = assessed(vectors, embeddings_a_query=10**6)
    for label in ("cascade 50 new", "translated_cascade 20 sum"):
        one, other = (found.point(label, "candidates").values for found in (again, every))
        assert one["mrr"] == pytest.approx(other["mrr"]) and one["cmc@1"] == other["cmc@1"]
    assert every.advice in ("upgrade", "cannot tell") and every.order in ("candidates", None)


@pytest.mark.slow
def test_popular_queries_embed_less(vectors):
    once = assessed(vectors, items_per_second=50, cost_per_1000=2.0)
    popular = assessed(vectors, popularity=1.0)
    told, often = (found.replays["cascade 20 sum"] for found in (once, popular))
    assert often["mean"] < told["mean"] and list(often["share_after"]) == [100, 1000, 10_000]
    assert told["seconds_p99"] == pytest.approx(told["p99"] / 50)
    assert told["cost_of_1000_queries"] == pytest.approx(told["mean"] * 2.0)
    assert sorted(stream_of(9, 0.0, 1)) == list(range(9))


def test_gaps_and_the_depth_that_is_enough():
    rng = np.random.default_rng(0)
    spots = spots_of([WAYS["cascade"]], {}, (0.0, 1.0))
    whole = rng.random(100)
    behind = {20: 0.2, 50: 0.02, 100: 0.009, 200: 0.0}
    measured = {(WHOLE, "", 1.0): {"mrr": whole}}
    for spot in spots:
        measured[spot.name] = {"mrr": whole - behind[spot.way.settings["depth"]]}
    found, enough = gaps(spots, measured, "mrr", Bootstrap(100, 50, 0))
    assert enough == {"cascade new": 100, "cascade sum": 100}
    assert found["cascade 20 new"]["gap"] == pytest.approx(0.2)
    assert found["cascade 50 sum"]["low"] == pytest.approx(0.02)


def world_of(old, new, translated, query_old, query_new):
    made = calibrate(old, new, metric="cosine")
    return World(
        {"old": old, "new": new, "translated": translated},
        {"old": query_old, "new": query_new},
        judge.by_labels(np.zeros(len(query_old)), np.zeros(len(old))),
        None,
        made,
        (old[:0], new[:0]),
        np.arange(len(old)),
    )


def test_a_cut_off_finds_its_place_on_other_scores(vectors):
    old, query_old, _, _ = vectors
    # The new model adds a constant direction: cosines become (c + 1) / 2, and 0.5 becomes 0.75.
    more = np.ones((len(old), 1), np.float32)
    new = np.hstack([old, more]) / np.sqrt(2)
    query_new = np.hstack([query_old, more[: len(query_old)]]) / np.sqrt(2)
    found = cutoffs(world_of(old, new, new, query_old, query_new), 0.5)
    assert found["old to new"]["threshold"] == pytest.approx(0.75, abs=0.005)
    assert found["old to new"]["agreement_after"] > 0.995
    assert found["old to new"]["agreement_before"] < found["old to new"]["agreement_after"]
    assert found["new to old"]["threshold"] == pytest.approx(0.5, abs=0.01)
    assert found["old to translated"]["threshold"] == pytest.approx(0.75, abs=0.005)


def test_a_cut_off_is_in_the_report(vectors):
    made = assessed(vectors, threshold=0.6)
    assert "The service's cut-off" in made.markdown()
    assert made.to_json()["cutoffs"]["old to new"]["pairs"] == 120 * 90


def test_mistakes_are_one_line(vectors):
    old, query_old, new, query_new = vectors
    made = world_of(old, new, new, query_old, query_new)
    with pytest.raises(UserError, match="threshold must be a cosine"):
        cutoffs(made, 3.0)
    far = dataclasses.replace(made, calibration=calibrate(old, new, metric="l2"))
    with pytest.raises(UserError, match="compared by cosine; these are compared by l2"):
        cutoffs(far, 0.5)
    for keywords, message in (
        ({"embeddings_a_query": -1}, "embeddings_a_query must be 0 or more"),
        ({"popularity": -0.5}, "popularity must be 0 or more"),
    ):
        with pytest.raises(UserError, match=message):
            assessed(vectors, **keywords)
