"""Blended queries, against plain loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fct_jax.errors import UserError
from fct_jax.evaluate.distances import unit_rows
from fct_jax.upgrade.ways import interpolation

seeds = st.integers(0, 10_000)
few = settings(max_examples=25, deadline=None)


def unit(x):
    return x / max(np.linalg.norm(x), 1e-12)


@given(seeds, st.floats(0, 1), st.integers(2, 5))
@few
def test_slerp_lies_on_the_arc_at_its_share_of_the_angle(seed, weight, dim):
    rng = np.random.default_rng(seed)
    old, bridged = rng.normal(size=(2, 4, dim))
    got = interpolation.slerp(old, unit_rows(bridged), weight)
    for u, v, q in zip(old, bridged, got, strict=True):
        u, v = unit(u), unit(v)
        theta = math.acos(np.clip(u @ v, -1, 1))
        if theta > 3.1:
            continue
        np.testing.assert_allclose(np.linalg.norm(q), 1, atol=1e-9)
        assert math.isclose(math.acos(np.clip(u @ q, -1, 1)), weight * theta, abs_tol=1e-6)


@given(seeds, st.floats(0, 1), st.integers(1, 3), st.integers(1, 3))
@few
def test_a_shorter_old_space_is_the_padded_one_cut_off(seed, weight, do, more):
    rng = np.random.default_rng(seed)
    dn = do + more
    new, old = unit_rows(rng.normal(size=(9, dn))), unit_rows(rng.normal(size=(9, do)))
    # Padded with zeros to a square problem, as published.
    u, _, vt = np.linalg.svd(new.T @ np.pad(old, ((0, 0), (0, more))))
    asked_new, asked_old = unit_rows(rng.normal(size=(5, dn))), unit_rows(rng.normal(size=(5, do)))
    whole = interpolation.slerp(np.pad(asked_old, ((0, 0), (0, more))), asked_new @ u @ vt, weight)
    part = interpolation.slerp(
        asked_old, asked_new @ interpolation.orthogonal_bridge(new, old), weight
    )
    np.testing.assert_allclose(part, whole[:, :do], atol=1e-7)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-7, 9.9e-6, 1.01e-5, 1e-3])
def test_slerp_of_almost_equal_directions(angle):
    u, v = np.array([[1.0, 0.0]]), np.array([[math.cos(angle), math.sin(angle)]])
    got = interpolation.slerp(u, v, 0.3)
    # Cosines cannot resolve angles below 1e-8; such angles are within the bound.
    np.testing.assert_allclose(got, [[math.cos(0.3 * angle), math.sin(0.3 * angle)]], atol=1e-10)


def test_slerp_of_opposite_and_of_zero_rows():
    u = np.array([[0.6, 0.8]])
    for weight in (0, 0.5, 1):
        np.testing.assert_allclose(interpolation.slerp(u, -u, weight), u, atol=1e-12)
        assert np.isfinite(interpolation.slerp(0 * u, u, weight)).all()
        assert np.isfinite(interpolation.slerp(u, 0 * u, weight)).all()
        assert np.isfinite(interpolation.nlerp(u, -u, weight)).all()
    # Without a bridged query, the old query's ranking stays.
    np.testing.assert_allclose(unit(interpolation.slerp(u, 0 * u, 0.5)[0]), u[0])
    # Lengths above 1 have no effect.
    v = np.array([[1.0, 0.0]])
    np.testing.assert_allclose(
        interpolation.slerp(5 * u, 7 * v, 0.4), interpolation.slerp(u, v, 0.4)
    )
    np.testing.assert_allclose(interpolation.midpoint(u, v)[0], unit(u[0] + v[0]))


@given(seeds)
@few
def test_mixing_queries_ranks_like_mixing_scores(seed):
    rng = np.random.default_rng(seed)
    old, bridged = unit_rows(rng.normal(size=(6, 4))), unit_rows(rng.normal(size=(6, 4)))
    gallery, weight = unit_rows(rng.normal(size=(30, 4))), rng.random(6)
    mixed = interpolation.nlerp(old, bridged, weight) @ gallery.T
    summed = interpolation.summed_scores(old @ gallery.T, bridged @ gallery.T, weight)
    # They are equal up to one positive factor per query.
    np.testing.assert_allclose(unit_rows(mixed), unit_rows(summed), atol=1e-9)
    for one in (0.25, 0.0):
        np.testing.assert_allclose(
            interpolation.summed_scores(old @ gallery.T, bridged @ gallery.T, one),
            (1 - one) * old @ gallery.T + one * bridged @ gallery.T,
        )


def test_weights_of_single_queries():
    u, v = np.eye(2), np.array([[1.0, 0.0], [0.0, -2.0]])
    got = interpolation.per_query_weight(u, v, -1.5, 3)
    np.testing.assert_allclose(got, [1 / (1 + math.exp(-1.5)), 1 / (1 + math.exp(4.5))])


def test_the_choice_of_a_weight():
    table = {0.0: 0.4, 0.1: 0.6, 0.2: 0.6, 0.3: 0.5}

    def quality(weight):
        return np.full(10, table[weight])

    found = interpolation.choose_weight(quality, (0.3, 0.2, 0.1))
    assert (found.weight, found.candidates.tolist()) == (0.1, [0, 0.1, 0.2, 0.3])
    assert math.isclose(found.gain, 0.2)
    worse = interpolation.choose_weight(lambda w: np.full(10, 0.4 - w / 10))
    assert (worse.weight, worse.gain) == (0, 0)

    def one_lucky_query(weight):
        return np.eye(10)[0] * (weight > 0)

    assert interpolation.choose_weight(one_lucky_query).weight == 0.1
    assert interpolation.choose_weight(one_lucky_query, caution=1.645).weight == 0
    with pytest.raises(UserError, match="between 0 and 1"):
        interpolation.choose_weight(quality, (1.1,))
    with pytest.raises(UserError, match="one number per support query"):
        interpolation.choose_weight(lambda w: np.zeros(0))


@pytest.mark.parametrize("weight", [-0.1, 1.1, np.nan])
def test_a_weight_out_of_range_is_refused(weight):
    with pytest.raises(UserError, match="between 0 and 1"):
        interpolation.slerp(np.eye(2), np.eye(2), weight)
    with pytest.raises(UserError, match="bridge the new ones first"):
        interpolation.slerp(np.eye(2), np.eye(3), 0.5)
