"""The Embedding-Converter's network, and maps between spaces without a single pair."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fct_jax.errors import UserError
from fct_jax.evaluate.distances import unit_rows
from fct_jax.upgrade.maps import converter, unpaired


def turn(rng, dim):
    return np.linalg.qr(rng.normal(size=(dim, dim)))[0]


def curved(seed=0, count=300):
    """Return old vectors, and new ones that no linear map can reach."""
    rng = np.random.default_rng(seed)
    old = rng.normal(size=(count, 4)).astype(np.float32)
    hidden = np.tanh(2 * old @ rng.normal(size=(4, 16)))
    return old, unit_rows(hidden @ rng.normal(size=(16, 3))).astype(np.float32)


@pytest.mark.slow
def test_a_converter_learns_what_a_linear_map_cannot():
    old, new = curved(count=1100)
    settings_ = converter.Settings(steps=600, neighbours=5, batch_size=32)
    found, history = converter.train_converter(old[:1000], new[:1000], settings_)
    mapped = found(old)
    assert mapped.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(mapped, axis=1), 1, atol=1e-6)
    assert history.shape == (6, 3)
    assert np.all(history[-1] < history[0])
    ones = np.ones((len(old), 1))
    both = np.hstack([old, ones])
    linear = unit_rows(both @ np.linalg.lstsq(both[:1000], new[:1000], rcond=None)[0])

    def error(x):
        return np.square(x[1000:] - new[1000:]).sum(axis=1).mean()

    assert error(mapped) < 0.8 * error(linear)


def test_numpy_and_jax_compute_the_same_network():
    old, new = curved(1, 20)
    settings_ = converter.Settings(steps=1)
    found, history = converter.train_converter(old, new, settings_)
    assert [w.shape for w, _ in found.layers] == [(4, 15), (15, 15), (15, 15), (15, 3)]
    assert history.shape == (1, 3)
    x = jnp.asarray(old)
    for i, (weight, bias) in enumerate(found.layers):
        x = x @ weight + bias
        x = jax.nn.selu(x) if i < 3 else x
    np.testing.assert_allclose(found(old), unit_rows(np.asarray(x)), atol=1e-5)
    assert found(old[:0]).shape == (0, 3)
    again, _ = converter.train_converter(old, new, settings_)
    assert np.array_equal(again(old), found(old))


@pytest.mark.slow
def test_the_relational_losses_keep_relations():
    old, new = curved(2)
    off = {}
    for weight in (0.0, 3.0):
        settings_ = converter.Settings(steps=300, neighbours=5, global_weight=weight)
        _, history = converter.train_converter(old, new, settings_)
        off[weight] = history[-1, 1]
    assert off[3.0] < off[0.0]


def test_mistakes_in_a_converter():
    old, new = curved(0, 5)
    with pytest.raises(UserError, match="at least 3 pairs"):
        converter.train_converter(old[:2], new[:2])
    with pytest.raises(UserError, match="must agree"):
        converter.train_converter(old, new[:4])
    with pytest.raises(UserError, match="NaN"):
        converter.train_converter(old * np.nan, new)
    small, _ = converter.train_converter(old[:3], new[:3], converter.Settings(steps=2))
    assert np.isfinite(small(old)).all()


@given(st.integers(0, 10_000), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_matching_two_kernels_finds_what_trying_all_orders_finds(seed, size):
    rng = np.random.default_rng(seed)
    first, second = (k + k.T for k in rng.normal(size=(2, size, size)))
    p, value = unpaired.match_kernels(first, second, restarts=60, seed=seed)
    best = max(
        float(np.sum(first * second[np.ix_(q, q)]))
        for q in map(list, itertools.permutations(range(size)))
    )
    assert sorted(p.tolist()) == list(range(size))
    np.testing.assert_allclose(value, np.sum(first * second[np.ix_(p, p)]))
    np.testing.assert_allclose(value, best, atol=1e-9)


def test_an_exchange_of_items_gains_what_it_says():
    rng = np.random.default_rng(0)
    first, second = (k + k.T for k in rng.normal(size=(2, 9, 9)))
    p = unpaired._two_opt(first, second, rng.permutation(9))

    def value(q):
        return float(np.sum(first * second[np.ix_(q, q)]))

    for r, s in itertools.combinations(range(9), 2):
        q = p.copy()
        q[[r, s]] = q[[s, r]]
        assert value(q) <= value(p) + 1e-9


@given(st.integers(0, 10_000), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_partners_are_the_loop(seed, matched):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(6, 3)), rng.normal(size=(8, 3))
    anchors = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))

    def cosine(x, y):
        return x @ y / np.linalg.norm(x) / np.linalg.norm(y)

    profiles = [
        [np.array([cosine(row, c) for c in side]) for row in rows]
        for rows, side in zip((a, b), anchors, strict=True)
    ]
    wanted = []
    for profile in profiles[0]:
        order = sorted(range(8), key=lambda j: -cosine(profile, profiles[1][j]))
        wanted.append(b[order[:matched]].mean(axis=0))
    got = unpaired.relative_partners(a, b, *anchors, matched)
    # Float32 could swap similarities that differ by less than 1e-6; none is swapped here.
    np.testing.assert_allclose(got, wanted, atol=1e-9)


SMALL = unpaired.Settings(
    repetitions=25,
    rows=1200,
    clusters=12,
    restarts=20,
    matched=15,
    refinements=40,
    refinement_rows=300,
    centres=60,
)


def content(rng, count, dim, middles):
    """Return points of uneven clusters without symmetry."""
    share = np.arange(1, len(middles) + 1) / np.arange(1, len(middles) + 1).sum()
    which = rng.choice(len(middles), count, p=share)
    return middles[which] + 0.2 * rng.normal(size=(count, dim))


@pytest.mark.slow
@pytest.mark.parametrize(("do", "dn"), [(10, 10), (10, 12)])
def test_spaces_of_the_same_content_are_matched_without_pairs(do, dn):
    rng = np.random.default_rng(1)
    middles = rng.normal(size=(12, 10))
    rotation = turn(rng, dn)
    x, y = content(rng, 2000, 10, middles), content(rng, 2000, 10, middles)

    def in_the_new_space(z):
        return np.pad(z, ((0, 0), (0, dn - 10))) @ rotation + 2.0

    found = unpaired.fit_unpaired(x, in_the_new_space(y), seeds=3, settings=SMALL)
    np.testing.assert_allclose(found.weight @ found.weight.T, np.eye(do), atol=1e-9)
    held = content(rng, 60, 10, middles)
    assert unpaired.share_found(found, held, in_the_new_space(held)) > 0.9
    assert found.self_consistency.shape == (3,)
    assert found.agreement.shape == (3, 3)
    np.testing.assert_allclose(np.diagonal(found.agreement), 1)


def test_a_user_is_told_whether_the_seeds_agree():
    def of(*lowest):
        agreement = np.eye(3)
        agreement[[0, 0, 1], [1, 2, 2]] = agreement[[1, 2, 2], [0, 0, 1]] = lowest
        return unpaired.UnpairedMap(np.eye(2), np.zeros(2), np.zeros(2), agreement, np.ones(3))

    assert of(0.99, 0.95, 0.92).lowest_agreement == 0.92
    assert "cannot be checked without 50 to 100 pairs" in of(0.99, 0.95, 0.92).text
    assert "do not use this map" in of(0.99, 0.95, 0.4).text


@pytest.mark.slow
def test_spaces_that_have_nothing_in_common_are_told_by_the_seeds():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 800, 12))  # isotropic: every rotation fits equally well
    found = unpaired.fit_unpaired(x, y, seeds=3, settings=SMALL)
    assert found.lowest_agreement < unpaired.AGREED
    assert "do not use this map" in found.text


def test_one_seed_cannot_agree_and_few_rows_are_refused():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(80, 4))
    found = unpaired.fit_unpaired(x, x, seeds=1, settings=SMALL)
    assert np.isnan(found.lowest_agreement)
    assert "do not agree" in found.text
    with pytest.raises(UserError, match="at least 30 vectors on each side"):
        unpaired.fit_unpaired(x[:29], x, settings=SMALL)
    with pytest.raises(UserError, match="seeds must be"):
        unpaired.fit_unpaired(x, x, seeds=0, settings=SMALL)
