"""Galleries that are re-embedded on demand, against plain loops."""

import math

import numpy as np
import pytest
from cascade_worlds import distinct
from hypothesis import given, settings
from hypothesis import strategies as st

from fct_jax.errors import UserError
from fct_jax.evaluate.distances import unit_rows
from fct_jax.upgrade.ways import on_demand
from fct_jax.upgrade.ways.cascade import cascade

seeds = st.integers(0, 10_000)
few = settings(max_examples=25, deadline=None)


def slow_replay(stream, rows, old, new, size, budget, k, background, failing):
    """Replay on demand with plain sets and lists."""
    has, lost, ever, queue, log = set(), set(), set(), [], []

    def embed(i):
        (lost if failing[i] else has).add(i)

    for q in stream:
        found = [i for i in rows[q].tolist() if i >= 0]
        missing = [i for i in found if i not in has | lost]
        now = missing if budget is None else missing[:budget]
        for i in now:
            embed(i)
        later = [i for i in missing[len(now) :] if i not in ever]
        ever |= set(later)
        queue += later
        place = {i: c for c, i in enumerate(rows[q].tolist())}
        score = {i: (new if i in has else old)[q][place[i]] for i in found}
        ranked = sorted(found, key=lambda i: (-score[i], place[i]))[:k]
        old_scored = sum(i not in has for i in found)
        done = 0
        while queue and (background is None or done < background):
            i = queue.pop(0)
            if i not in has | lost:
                embed(i)
                done += 1
        log.append((ranked, len(now), len(later), old_scored, len(has)))
    return log, len(lost)


@given(
    seeds,
    st.sampled_from([0, 1, 3, None]),
    st.sampled_from([0, 2, None]),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.3]),
)
@few
def test_a_replay_is_the_loop(seed, budget, background, k, failing):
    rng = np.random.default_rng(seed)
    size = 15
    rows = np.array([rng.permutation(np.arange(-1, size))[:5] for _ in range(6)])
    old, new = rng.integers(0, 4, (2, 6, 5)).astype(float)
    stream = rng.integers(0, 6, 25)
    fails = rng.random(size) < failing
    got = on_demand.replay(
        stream,
        rows,
        old,
        new,
        size=size,
        budget=budget,
        k=k,
        background=background,
        failing=fails,
    )
    log, failed = slow_replay(stream, rows, old, new, size, budget, k, background, fails)
    for turn, (ranked, now, later, old_scored, present) in enumerate(log):
        assert [i for i in got.rows[turn].tolist() if i >= 0] == ranked
        assert (got.embedded[turn], got.queued[turn]) == (now, later)
        assert (got.old_scored[turn], got.present[turn]) == (old_scored, present)
    assert got.failed == failed
    assert budget is None or got.embedded.max() <= budget


def test_a_replay_ends_where_a_full_cascade_is():
    w, _ = distinct(5, queries=20)
    old_scores = unit_rows(w["query_old"]) @ unit_rows(w["old"]).T
    rows = np.argsort(-old_scores, axis=1)[:, :12]
    scores = np.take_along_axis(unit_rows(w["query_new"]) @ unit_rows(w["new"]).T, rows, 1)
    kept = np.take_along_axis(old_scores, rows, 1)
    stream = np.tile(np.arange(20), 12)
    got = on_demand.replay(stream, rows, kept, scores, size=50, budget=1, k=5)
    _, wanted = cascade(**w, depth=12, k=5, metric="cosine")
    assert np.array_equal(got.rows[-20:], wanted)
    assert got.old_scored[-20:].max() == 0
    assert got.embedded.sum() == len(np.unique(rows)) == got.present[-1]
    assert got.embeddings["p99"] == 1
    assert list(got.shares) == [100, 240]
    assert got.share_after(240) == len(np.unique(rows)) / 50
    # Items that have their new vectors already cost nothing.
    there = on_demand.replay(
        stream, rows, kept, scores, size=50, budget=1, k=5, present=np.ones(50, bool)
    )
    assert there.embedded.sum() == 0
    assert there.present[0] == 50
    assert np.array_equal(there.rows[:20], wanted)


def test_a_stream_of_popular_queries():
    stream = on_demand.popular_stream(50, 20_000, exponent=1.0, seed=1)
    counts = np.sort(np.bincount(stream, minlength=50))[::-1]
    chance = 1 / np.arange(1, 51)
    expected = 20_000 * chance[0] / chance.sum()
    assert abs(counts[0] - expected) < 6 * math.sqrt(expected)
    assert np.array_equal(stream, on_demand.popular_stream(50, 20_000, exponent=1.0, seed=1))
    even = np.bincount(on_demand.popular_stream(4, 8000, exponent=0), minlength=4)
    assert np.all(np.abs(even - 2000) < 6 * math.sqrt(8000 * 0.25 * 0.75))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"budget": -1}, "budget must be at least 0"),
        ({"background": -1}, "background must be at least 0"),
        ({"stream": np.zeros(0, int)}, "empty"),
        ({"stream": np.array([2])}, "must be between 0 and 1"),
        ({"size": 3}, "candidate 3 is beyond the gallery of 3 items"),
    ],
)
def test_mistakes_in_a_replay(changed, message):
    given_ = {
        "stream": np.array([0, 1]),
        "candidates": np.array([[0, 1], [2, 3]]),
        "old_scores": np.zeros((2, 2)),
        "new_scores": np.zeros((2, 2)),
        "size": 4,
        "budget": 1,
        "k": 1,
    }
    with pytest.raises(UserError, match=message):
        on_demand.replay(**{**given_, **changed})
    with pytest.raises(UserError, match="must be between 1 and that, not 3"):
        on_demand.replay(**given_).share_after(3)
    with pytest.raises(UserError, match="at least 1 query"):
        on_demand.popular_stream(0, 5)
