"""Thresholds carried over by isotonic regression: against pooling by hand and counting."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fct_jax.errors import UserError
from fct_jax.upgrade.checks.thresholds import (
    agreement,
    fit_isotonic,
    recalibrated_threshold,
    recall,
)

few = settings(max_examples=40, deadline=None)


def slow_isotonic(scores_from, scores_to):
    """Pool adjacent violators: merge blocks of (sum, weight) while any two are out of order."""
    blocks = []
    for score in sorted(set(scores_from)):
        values = [t for s, t in zip(scores_from, scores_to, strict=True) if s == score]
        blocks.append([sum(values), len(values), [score]])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    return {score: total / n for total, n, members in blocks for score in members}


@given(st.integers(0, 10_000), st.integers(1, 40))
@few
def test_isotonic_is_pooling_by_hand(seed, count):
    rng = np.random.default_rng(seed)
    scores_from = rng.integers(0, 12, count) / 8  # with repetitions
    scores_to = scores_from + rng.normal(size=count)
    fit = fit_isotonic(scores_from, scores_to)
    wanted = slow_isotonic(scores_from.tolist(), scores_to.tolist())
    np.testing.assert_allclose(fit(list(wanted)), list(wanted.values()), atol=1e-12)
    assert np.all(np.diff(fit.values) >= 0)
    order = rng.permutation(count)
    again = fit_isotonic(scores_from[order], scores_to[order])
    np.testing.assert_allclose(again.values, fit.values, atol=1e-12)
    assert fit(-9) == fit.values[0]
    assert fit(9) == fit.values[-1]


@given(st.integers(0, 10_000), st.floats(-1, 1), st.floats(-1, 1))
@few
def test_agreement_and_recall_are_counted(seed, threshold, other):
    scores, truth = np.random.default_rng(seed).normal(size=(2, 30))
    pairs = list(zip(scores, truth, strict=True))
    same = [(s >= threshold) == (t >= other) for s, t in pairs]
    assert math.isclose(agreement(scores, truth, threshold, other), sum(same) / 30)
    above = [s >= threshold for s, t in pairs if t >= other]
    got = recall(scores, truth, threshold, other)
    assert math.isclose(got, sum(above) / len(above)) if above else math.isnan(got)


def test_a_monotone_change_of_scores_is_undone_at_any_threshold():
    rng = np.random.default_rng(0)
    old = rng.random(2000)
    new = 0.3 + 0.4 * old**2
    for threshold in (0.3, 0.8):
        found = recalibrated_threshold(old, new, threshold)
        # Neighbouring scores are about 1/2000 apart, and the new ones at most 0.8 times that; the
        # largest of 2,000 gaps is a few times larger.
        assert abs(found.threshold - (0.3 + 0.4 * threshold**2)) < 0.01
        assert found.agreement_after > 0.99 > found.agreement_before
        assert found.recall_after > 0.98
        assert math.isclose(1 - found.agreement_after, found.gained + found.lost)
        assert found.pairs == 2000
    back = recalibrated_threshold(new, old, 0.3 + 0.4 * 0.64)
    assert abs(back.threshold - 0.8) < 0.02
    up = recalibrated_threshold(old, new, 0.8)
    assert up.recall_before == 0 or up.recall_before < up.recall_after
    assert up.agreement_before == agreement(new, old, 0.8)
    assert up.recall_before == recall(new, old, 0.8)


def test_figures_after_are_of_pairs_that_were_held_out():
    # With mere noise, a threshold's success on the pairs it was fitted on means nothing.
    rng = np.random.default_rng(1)
    old, new = rng.random((2, 400))
    found = recalibrated_threshold(old, new, 0.5)
    spread = math.sqrt(0.25 / 400)
    assert abs(found.agreement_after - 0.5) < 6 * spread


def test_a_group_is_held_out_as_a_whole():
    # Each of five groups has one old score and its own level of new scores: the fit knows a group's
    # level only if some of its pairs take part.
    old = np.repeat([0.1, 0.3, 0.5, 0.7, 0.9], 40)
    new = np.repeat([1.0, 2.0, 3.0, 40.0, 50.0], 40) + np.tile(np.linspace(-0.4, 0.4, 40), 5)
    alone = recalibrated_threshold(old, new, 0.7)
    whole = recalibrated_threshold(old, new, 0.7, groups=old)
    # With its own pairs, the threshold is in the middle of the fourth group, so that half of the
    # group is lost; without them it is halfway from 3 to 50, below the whole group.
    assert abs(alone.lost - 0.1) < 0.02
    assert whole.lost == 0
    assert whole.threshold == alone.threshold


def test_edges_of_a_threshold():
    old = np.linspace(0, 1, 10)
    none_above = recalibrated_threshold(old, old, 2.0)
    assert math.isnan(none_above.recall_before)
    assert math.isnan(none_above.recall_after)
    constant = recalibrated_threshold(np.ones(12), np.arange(12.0), 1.0)
    assert math.isclose(constant.threshold, 5.5)
    one_group = recalibrated_threshold(old, old + 1, 0.5, groups=np.zeros(10))
    assert one_group.agreement_after >= 0.9
    for wrong, message in (
        ((old[:9], old[:9], 0.5), "at least 10 pairs"),
        ((old, old[:9], 0.5), "the same pairs"),
        ((old, old, math.nan), "the threshold must be a number"),
        ((old * math.nan, old, 0.5), "NaN"),
    ):
        with pytest.raises(UserError, match=message):
            recalibrated_threshold(*wrong)
    with pytest.raises(UserError, match="groups"):
        recalibrated_threshold(old, old, 0.5, groups=np.zeros(3))
