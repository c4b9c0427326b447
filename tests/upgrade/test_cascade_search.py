"""Cascades, and how deep they must look, against plain loops."""

import math

import numpy as np
import pytest
from cascade_worlds import distinct, world
from hypothesis import given, settings
from hypothesis import strategies as st

from fct_jax.errors import UserError
from fct_jax.evaluate.distances import unit_rows
from fct_jax.upgrade.ways import cascade_depth
from fct_jax.upgrade.ways.calibration import calibrate
from fct_jax.upgrade.ways.cascade import cascade, continued, reranked, union

seeds = st.integers(0, 10_000)
few = settings(max_examples=25, deadline=None)


def unit(x):
    return x / max(np.linalg.norm(x), 1e-12)


def raw(query, item, metric):
    query, item = query.astype(np.float64), item.astype(np.float64)
    if metric == "cosine":
        return unit(query) @ unit(item)
    return -((query - item) ** 2).sum() / 2


def slow_cascade(w, depth, k, score, metric, own):
    """Return scores and rows by sorting the whole gallery, query by query."""
    results = []
    for q in range(len(w["query_old"])):
        gallery = [i for i in range(len(w["old"])) if own is None or i != own[q]]
        old = {i: raw(w["query_old"][q], w["old"][i], metric) for i in gallery}
        new = {i: raw(w["query_new"][q], w["new"][i], metric) for i in gallery}
        first = sorted(gallery, key=lambda i: (-old[i], i))[:depth]
        final = {i: new[i] + old[i] if score == "sum" else new[i] for i in first}
        results.append((first, old, final))
    return results


@given(
    seeds,
    st.integers(1, 60),
    st.integers(1, 12),
    st.sampled_from(["new", "sum"]),
    st.sampled_from(["l2", "cosine"]),
    st.booleans(),
)
@few
def test_a_cascade_is_the_loop_over_items(seed, depth, k, score, metric, leave_out):
    w = world(seed)
    own = np.arange(6) if leave_out else None
    arguments = {"depth": depth, "k": k, "score": score, "metric": metric, "own": own}
    if score == "sum" and metric == "l2":
        with pytest.raises(UserError, match="calibration"):
            cascade(**w, **arguments)
        return
    scores, rows = cascade(**w, **arguments)
    assert scores.shape == rows.shape == (6, k)
    for q, (first, old, final) in enumerate(slow_cascade(w, depth, k, score, metric, own)):
        got = [row for row in rows[q] if row >= 0]
        assert len(got) == len(set(got)) == min(k, len(first))
        assert np.all(np.isneginf(scores[q, len(got) :]))
        assert own is None or own[q] not in got
        # Float32 results: a few units in the seventh digit of cosines, or of L2 scores up to 50.
        tol = 4e-6 if metric == "cosine" else 1e-4
        # Recalled items are as near as the loop's; equally near items may be swapped.
        worst = min(old[i] for i in first)
        assert all(old[i] >= worst - tol for i in got)
        if all(abs(old[i] - worst) > tol for i in old if i not in first):
            wanted = sorted(final.values(), reverse=True)[:k]
            if metric == "cosine":
                np.testing.assert_allclose(scores[q, : len(got)], wanted, atol=tol)
            # The L2 score leaves out the query's own length, which is the same for all items.
            spread = np.diff(scores[q, : len(got)].astype(float))
            np.testing.assert_allclose(spread, np.diff(wanted), atol=tol)
            np.testing.assert_allclose([final[i] for i in got], wanted, atol=tol)


def test_a_cascade_with_nothing_to_find():
    w, _ = distinct(0)
    w["old"], w["new"] = w["old"][:0], w["new"][:0]
    scores, rows = cascade(**w, depth=5, k=2, metric="cosine", score="sum")
    assert np.all(rows == -1)
    assert np.all(np.isneginf(scores))
    w, _ = distinct(0)
    for nothing in (np.full((7, 3), -1), np.zeros((7, 0), int)):
        _, rows = cascade(**w, depth=5, k=2, candidates=nothing)
        assert np.all(rows == -1)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_a_cascade_over_everything_is_the_new_model(metric):
    w, _ = distinct(0)
    _, rows = cascade(**w, depth=50, k=50, metric=metric)
    for q in range(7):
        wanted = [raw(w["query_new"][q], w["new"][i], metric) for i in rows[q]]
        assert np.all(np.diff(wanted) <= 1e-5)
    _, deep = cascade(**w, depth=10**6, k=50, metric=metric)
    assert np.array_equal(rows, deep)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("score", ["new", "sum"])
def test_a_calibrated_cascade_has_the_calibrations_scores(metric, score):
    w, rng = distinct(1)
    sample = rng.normal(size=(60, 4)), rng.normal(size=(60, 6)) * 3
    cal = calibrate(*sample, metric=metric)
    scores, rows = cascade(**w, depth=20, k=5, score=score, calibration=cal)
    affine = cal.affine(w["query_old"], w["query_new"])
    asked = cal.old.queries(w["query_old"]), cal.new.queries(w["query_new"])
    old, new = asked[0] @ cal.old.items(w["old"]).T, asked[1] @ cal.new.items(w["new"]).T
    for q in range(7):
        first = np.argsort(-old[q])[:20]
        if score == "sum":
            final = affine.fused_old[q] * old[q] + affine.fused_new[q] * new[q]
            final = final + affine.fused_shift[q]
        else:
            final = affine.dual[q] * new[q] + affine.dual_shift[q]
        wanted = first[np.argsort(-final[first])][:5]
        assert rows[q].tolist() == wanted.tolist()
        np.testing.assert_allclose(scores[q], final[wanted], rtol=1e-4, atol=1e-4)


class OnlySome:
    """A gallery with only a few of its rows."""

    def __init__(self, array, allowed):
        self.array, self.allowed = array, allowed

    def __getitem__(self, rows):
        assert set(np.asarray(rows).ravel().tolist()) <= self.allowed
        return self.array[rows]


def test_only_the_candidates_new_vectors_are_read():
    w, _ = distinct(2)
    first = np.argsort(-(unit_rows(w["query_old"]) @ unit_rows(w["old"]).T), axis=1)[:, :5]
    w["new"] = OnlySome(w["new"], set(first.ravel().tolist()))
    cascade(**w, depth=5, k=3, metric="cosine")


def test_candidates_from_elsewhere():
    w, rng = distinct(3)
    given_rows = np.array([rng.permutation(50)[:8] for _ in range(7)])
    given_rows[:, 6:] = -1
    scores, rows = cascade(
        **w, depth=8, k=7, metric="cosine", candidates=given_rows, own=given_rows[:, 0]
    )
    for q in range(7):
        allowed = given_rows[q, 1:6].tolist()
        new = {i: raw(w["query_new"][q], w["new"][i], "cosine") for i in allowed}
        assert sorted(rows[q, :5].tolist()) == sorted(allowed)
        assert rows[q, 5:].tolist() == [-1, -1]
        np.testing.assert_allclose(scores[q, :5], sorted(new.values(), reverse=True), atol=2e-5)


@given(seeds, st.integers(1, 5), st.integers(1, 5))
@few
def test_union_keeps_each_row_once_in_turn(seed, first, second):
    rng = np.random.default_rng(seed)
    lists = [
        np.array([rng.permutation(np.arange(-1, 6))[:size] for _ in range(4)])
        for size in (first, second)
    ]
    got = union(*lists)
    assert got.shape == (4, first + second)
    for q in range(4):
        wanted = []
        for place in range(max(first, second)):
            for side in lists:
                if place < side.shape[1] and side[q, place] >= 0:
                    wanted.append(int(side[q, place]))
        wanted = list(dict.fromkeys(wanted))
        assert got[q].tolist() == wanted + [-1] * (first + second - len(wanted))
        after = dict.fromkeys(i for side in lists for i in side[q].tolist() if i >= 0)
        follows = continued(*lists)[q].tolist()
        assert follows == [*after] + [-1] * (first + second - len(after))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"depth": 0}, "depth must be"),
        ({"k": 1.5}, "k must be"),
        ({"score": "summ"}, "did you mean 'sum'"),
        ({"query_new": np.ones((2, 6))}, "each query embedded by both models"),
        ({"metric": "l1"}, "unknown metric"),
    ],
)
def test_mistakes_in_a_cascade(changed, message):
    w, _ = distinct(4)
    with pytest.raises(UserError, match=message):
        cascade(**{**w, "depth": 5, "k": 2, **changed})


def test_equal_new_scores_keep_the_old_order():
    rows, scores = np.array([[4, 2, 9]]), np.array([[1.0, 1.0, 2.0]])
    assert reranked(rows, scores, 5)[1].tolist() == [[9, 4, 2, -1, -1]]


@given(seeds, st.integers(1, 30), st.integers(1, 8))
@few
def test_the_gap_curve_is_the_loop(seed, width, k):
    rng = np.random.default_rng(seed)
    candidates = np.array([rng.permutation(30)[:width] for _ in range(5)])
    new = rng.integers(0, 6, (5, 30)).astype(float)
    scores = np.take_along_axis(new, candidates, 1)
    native = np.argsort(-new, axis=1, kind="stable")[:, :k]
    relevant = rng.random((5, 30)) < 0.3

    def quality(rows):
        return [
            sum(relevant[q, i] for i in found if i >= 0) for q, found in enumerate(rows.tolist())
        ]

    depths = sorted({1, (width + 1) // 2, width})
    curve = cascade_depth.gap_curve(candidates, scores, native, quality, depths, k)
    for q in range(5):
        best = quality(native)[q]
        for d, depth in enumerate(depths):
            first = candidates[q, :depth].tolist()
            ranked = sorted(first, key=lambda i: (-new[q, i], first.index(i)))[:k]
            assert curve.quality[q, d] == sum(relevant[q, i] for i in ranked)
            assert curve.gap[q, d] == best - curve.quality[q, d]
            inside = len(set(native[q].tolist()) & set(first)) / k
            assert math.isclose(curve.containment[q, d], inside)
    fitting = [d for d, gap in zip(depths, curve.gap.mean(axis=0), strict=True) if gap <= 0.5]
    assert curve.smallest_depth(0.5) == (fitting[0] if fitting else None)


def test_mistakes_in_a_gap_curve():
    rows, scores = np.arange(6).reshape(2, 3), np.zeros((2, 3))
    for depths in ((), (0,), (4,)):
        with pytest.raises(UserError, match="depths must be between 1 and the 3 candidates"):
            cascade_depth.gap_curve(rows, scores, rows, len, depths, 2)
    with pytest.raises(UserError, match="ranking has 3 rows"):
        cascade_depth.gap_curve(rows, scores, rows, len, (1,), 4)
    curve = cascade_depth.gap_curve(rows, scores, rows, lambda r: np.zeros(2), (1,), 2)
    with pytest.raises(UserError, match="epsilon"):
        curve.smallest_depth(-0.1)


def test_reuse_ignores_what_is_missing():
    rows = np.array([[1, 2, -1], [2, -1, -1]])
    assert math.isclose(cascade_depth.candidate_reuse(rows), 1 - 2 / 3)
    assert cascade_depth.embeddings_per_query(rows) == 1
    assert math.isnan(cascade_depth.candidate_reuse(np.full((2, 3), -1)))
    assert cascade_depth.worth(1.0) == "borderline"


@given(seeds)
@few
def test_the_stability_of_a_ranking_is_the_loop(seed):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(4, 500)) - np.arange(500) * rng.choice([0, 0.002, 0.02])
    found = cascade_depth.ranking_stability(scores)
    tail, deepest, late, last, margin = [], [], [], [], []
    for row in scores:
        top = {d: sorted(range(d), key=lambda i: (-row[i], i))[:10] for d in (50, 100, 200, 500)}
        tail.append(1 - len(set(top[50]) & set(top[500])) / 10)
        deepest.append(max(top[500]) + 1)
        steps = ((50, 100), (100, 200), (200, 500))
        late.append(sum(len(set(top[b]) - set(top[a])) for a, b in steps) / 10)
        last.append(any(i >= 200 for i in top[500]))
        margin.append(row[top[50][9]] - max(row[50:100]) <= 0)
    wanted = [np.mean(tail), 1 - np.mean(tail), np.percentile(deepest, 90)]
    wanted += [np.mean(late), np.mean(last), np.mean(margin)]
    np.testing.assert_allclose(list(vars(found).values()), wanted, atol=1e-9)
    with pytest.raises(UserError, match=r"of shape \(Q, 500\)"):
        cascade_depth.ranking_stability(scores[:, :400])
