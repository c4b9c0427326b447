"""Closed forms and their uncertainty against plain solutions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_pairs import pairs, pairs_of

from fct_jax import upgrade
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade.maps import linear as closed_form
from fct_jax.upgrade.maps.methods import METHODS, Method, fit_method
from fct_jax.upgrade.maps.uncertainty import log_squared_error


def sums_of(x, y, folds=4):
    fold = np.arange(len(x)) % folds
    return *closed_form.fold_sums(x, y, fold, folds), fold


@pytest.mark.parametrize(("do", "dn"), [(7, 5), (5, 7), (6, 6)])
def test_procrustes_is_that_of_padded_square_matrices(do, dn):
    x, y = pairs(do=do, dn=dn)
    found = closed_form.procrustes_folds(*sums_of(x, y)[:2])[0]
    size = max(do, dn)
    a = np.pad(x - x.mean(0), ((0, 0), (0, size - do))).astype(np.float64)
    b = np.pad(y - y.mean(0), ((0, 0), (0, size - dn))).astype(np.float64)
    u, _, vt = np.linalg.svd(a.T @ b)
    square = u @ vt
    np.testing.assert_allclose(square @ square.T, np.eye(size), atol=1e-9)
    np.testing.assert_allclose(found.weight, square[:do, :dn], atol=1e-6)
    mapped = (a @ square)[:, :dn]
    scale = (mapped * b[:, :dn]).sum() / (mapped**2).sum()
    np.testing.assert_allclose(found(x), scale * mapped + y.mean(0), atol=1e-4)


def test_procrustes_finds_a_rotation_again():
    rng = np.random.default_rng(1)
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    x = rng.normal(size=(200, 6)) + 5
    found = closed_form.procrustes_folds(*sums_of(x, x @ rotation)[:2])[0]
    np.testing.assert_allclose(found.weight, rotation, atol=1e-9)
    assert found.scale == pytest.approx(1)
    np.testing.assert_allclose(found.bias, 0, atol=1e-8)


def slow_ridge(x, y, penalty):
    """Solve least squares with rows appended for the penalty, as in textbooks."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    a, b = (x - mean_x).astype(np.float64), (y - mean_y).astype(np.float64)
    unit = (a * a).sum() / a.shape[1]
    a = np.vstack([a, np.sqrt(penalty * unit) * np.eye(a.shape[1])])
    b = np.vstack([b, np.zeros((x.shape[1], y.shape[1]))])
    weight = np.linalg.lstsq(a, b, rcond=None)[0]
    return weight, mean_y - mean_x @ weight


@settings(deadline=None, max_examples=15)
@given(do=st.integers(1, 9), dn=st.integers(1, 9), n=st.integers(30, 80), seed=st.integers(0, 1000))
def test_ridge_and_its_cross_validation_are_the_slow_ones(do, dn, n, seed):
    x, y = pairs(n, do, dn, noise=2.0, seed=seed)
    x, y = x.astype(np.float64), y.astype(np.float64)
    sums, centre, fold = sums_of(x, y)
    penalties = np.array([1e-4, 1e-2, 1.0, 100.0])
    found, others = closed_form.ridge(sums, centre, penalties)
    errors = np.zeros(len(penalties))
    for i, penalty in enumerate(penalties):
        for f in range(4):
            weight, bias = slow_ridge(x[fold != f], y[fold != f], penalty)
            errors[i] += ((y[fold == f] - x[fold == f] @ weight - bias) ** 2).sum()
    assert found.penalty == penalties[np.argmin(errors)]
    assert found.error == pytest.approx(errors.min() / ((y - y.mean(0)) ** 2).sum())
    weight, bias = slow_ridge(x, y, found.penalty)
    np.testing.assert_allclose(found.weight, weight, atol=1e-8)
    np.testing.assert_allclose(found.bias, bias, atol=1e-8)
    weight, bias = slow_ridge(x[fold != 1], y[fold != 1], found.penalty)
    np.testing.assert_allclose(others[1](x), x @ weight + bias, atol=1e-8)


def test_a_large_common_part_costs_no_digits():
    x, y = pairs(n=20_000, noise=0.0)
    far = (x.astype(np.float64) + 3e4).astype(np.float32)  # float32 can still resolve it
    exact = far.astype(np.float64) - 3e4
    y = (exact @ np.linalg.lstsq(x, y - 3, rcond=None)[0]).astype(np.float64)
    found, _ = closed_form.ridge(*sums_of(far, y)[:2])
    assert np.abs(found(far.astype(np.float64)) - y).max() < 1e-4 * np.abs(y).max()


def test_sums_do_not_depend_on_the_blocks(monkeypatch):
    x, y = pairs()
    whole, _ = closed_form.ridge(*sums_of(x, y)[:2])
    monkeypatch.setattr(closed_form, "ROWS", 17)
    parts, _ = closed_form.ridge(*sums_of(x, y)[:2])
    np.testing.assert_allclose(parts.weight, whole.weight, atol=1e-9)
    np.testing.assert_allclose(parts.bias, whole.bias, atol=1e-9)


def test_uncertainty_tells_bad_vectors_from_good_ones():
    """One half of the vectors is mapped at random, the other exactly."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 8)).astype(np.float32)
    y = x @ rng.normal(size=(8, 6)).astype(np.float32)
    y[x[:, 0] > 0] += 2 * rng.normal(size=((x[:, 0] > 0).sum(), 6)).astype(np.float32)
    inside = pairs_of(EmbeddingSet.of(x[:1500]), EmbeddingSet.of(y[:1500]))
    made = fit_method("ridge", METHODS["ridge"], inside)
    mapped, log_variance = made.transform(x[1500:])
    true = log_squared_error(mapped, y[1500:])
    assert np.corrcoef(log_variance, true)[0, 1] > 0.7
    assert abs(log_variance.mean() - true.mean()) < 0.3  # errors are those of left-out pairs
    assert made.has_uncertainty and log_variance.dtype == np.float32


def test_a_closed_form_is_one_function(text):
    """As in CONTRIBUTING.md, least squares without shrinkage becomes a user's own method."""

    def plain(sums, centre):
        return closed_form.ridge(sums, centre, penalties=np.array([0.0]))

    from fct_jax.upgrade.maps.methods import closed_form as of_sums

    method = Method("least squares", fit_folds=of_sums(plain))
    x, y = pairs(n=300)
    found = upgrade.fit(x, y, method=method)
    assert found.method == "own" and found.description["penalty"] == 0
    weight = np.linalg.lstsq(*(a - a.mean(0) for a in (x, y)), rcond=None)[0]
    np.testing.assert_allclose(found.weights["weight"], weight, atol=0.05)
