"""Backfilling orders and curves against slow oracles and edge cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from retrieval_oracle import curve_of_distances, exact_distances, float_distances

from fct_jax.errors import UserError
from fct_jax.evaluate import distances as distances_module
from fct_jax.evaluate import ranking
from fct_jax.evaluate.backfill import backfill_curve, backfill_curves
from fct_jax.evaluate.metrics import retrieval_metrics
from fct_jax.evaluate.orders import backfill_order

METRICS = ("l2", "cosine")


@st.composite
def galleries(draw):
    """Draw small integer vectors of n items by two models, with ties within and across models."""
    n, dims = draw(st.integers(1, 30)), draw(st.integers(1, 4))
    spread, classes = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    new, transformed = rng.integers(-spread, spread + 1, (2, n, dims))
    labels = rng.permutation(n) if classes == 12 else rng.integers(0, classes, n)
    return new, transformed, labels, [rng.permutation(n) for _ in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS)
@settings(deadline=None, max_examples=40)
@given(sets=galleries(), steps=st.sampled_from([0, 1, 3, 20]), ks=st.sampled_from([(1, 5), (50,)]))
def test_curves_with_ties(metric, sets, steps, ks):
    new, transformed, labels, orders = sets
    to_new = exact_distances(new, np.concatenate([new, transformed]), metric)
    to_new, to_old = np.split(to_new, 2, axis=1)
    ours = backfill_curves(
        new * 0.25,
        transformed * 0.25,
        labels,
        dict(enumerate(orders)),
        steps=steps,
        metric=metric,
        ks=ks,
    )
    for o, order in enumerate(orders):
        plain = curve_of_distances(to_new, to_old, labels, order, steps, ks)
        assert list(ours[o].values) == list(plain)
        for name, values in plain.items():
            np.testing.assert_allclose(ours[o].values[name], values, rtol=0, atol=1e-9)
        assert ours[o].fraction.shape == (steps + 2,)


@pytest.mark.slow
@pytest.mark.parametrize("exact_pairs", [0, 2**25])  # float32 and float64
@pytest.mark.parametrize("metric", METRICS)
def test_real_vectors_in_blocks(metric, exact_pairs, monkeypatch):
    monkeypatch.setattr(distances_module, "EXACT_PAIRS", exact_pairs)
    monkeypatch.setattr(ranking, "BLOCK_ROWS", 16)
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 7, 90)
    new = rng.normal(size=(90, 10)).astype(np.float32) + labels[:, None]
    transformed = new + rng.normal(size=new.shape).astype(np.float32)
    transformed[:20] = new[20:40]  # equal vectors across the two models
    transformed[60:70] = transformed[50:60]
    order = rng.permutation(90)
    steps = []
    ours = backfill_curves(
        new, transformed, labels, {"a": order}, steps=6, metric=metric, progress=steps.append
    )["a"]
    plain = curve_of_distances(
        float_distances(new, new, metric),
        float_distances(new, transformed, metric),
        labels,
        order,
        6,
    )
    for name, values in plain.items():
        np.testing.assert_allclose(ours.values[name], values, rtol=0, atol=1e-6)
        assert ours.auc(name) == pytest.approx(values.mean())
    np.testing.assert_allclose(ours.fraction, np.arange(8) * 90 // 7 / 90)
    assert sum(steps) == 90 and len(steps) > 2


def test_ends_are_plain_evaluations():
    rng = np.random.default_rng(2)
    new, transformed = rng.normal(size=(2, 40, 6)).astype(np.float32)
    labels = rng.integers(0, 5, 40)
    curve = backfill_curve(new, transformed, labels, rng.permutation(40))
    first = {name: values[0] for name, values in curve.values.items()}
    last = {name: values[-1] for name, values in curve.values.items()}
    assert first == pytest.approx(retrieval_metrics(new, transformed, labels))
    assert last == pytest.approx(retrieval_metrics(new, new, labels))


def test_extreme_numbers():
    """Neither overflow nor vanishing differences break the search for thresholds."""
    rng = np.random.default_rng(0)
    values = np.array([0.0, 5e-324, 1e-310, 1e-160, 1.0, 1e150, 1e300])
    new, transformed = values[rng.integers(0, 7, (2, 40, 3))]
    labels = rng.integers(0, 3, 40)
    for metric in METRICS:
        curve = backfill_curve(new, transformed, labels, np.arange(40), metric=metric)
        assert all(np.isfinite(v).all() for v in curve.values.values())


def test_classes_without_a_second_member():
    vectors = np.random.default_rng(0).normal(size=(6, 3))
    curve = backfill_curve(vectors, vectors, np.arange(6), np.arange(6))
    assert np.isnan(curve.values["map"]).all() and np.isnan(curve.auc("map"))
    assert np.isnan(curve.values["cmc@1"]).all() and np.isnan(curve.values["cmc@5"]).all()


def test_random_order_is_seeded():
    order = backfill_order("random", n=50, seed=3)
    assert sorted(order) == list(range(50))
    np.testing.assert_array_equal(order, backfill_order("random", n=50, seed=3))
    assert (order != backfill_order("random", n=50, seed=4)).any()
    assert backfill_order("random", uncertainty=np.zeros(7)).shape == (7,)


def test_descending_orders_are_stable():
    np.testing.assert_array_equal(
        backfill_order("uncertainty", uncertainty=[1, 3, 1, -np.inf, 3]), [1, 4, 0, 2, 3]
    )
    new, transformed = [[1.0, 0], [2, 0], [0, 1]], [[2.0, 0], [0, 2], [0, 3]]
    assert backfill_order("distance", new=new, transformed=transformed).tolist() == [1, 2, 0]
    by_angle = backfill_order("distance", new=new, transformed=transformed, metric="cosine")
    assert by_angle.tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "uncertanty"}, "did you mean 'uncertainty'"),
        ({"kind": "random"}, "needs the number of items"),
        ({"kind": "random", "n": 0}, "at least one item"),
        ({"kind": "uncertainty", "n": 3}, "needs uncertainty="),
        ({"kind": "distance", "new": np.ones((2, 2))}, "needs transformed="),
        ({"kind": "uncertainty", "uncertainty": [1.0, np.nan]}, "NaN, first in item 1"),
        ({"kind": "uncertainty", "uncertainty": np.ones((4, 2))}, "shape"),
        ({"kind": "uncertainty", "uncertainty": [1.0, 2.0], "n": 3}, "differ"),
        ({"kind": "distance", "new": np.ones((2, 2)), "transformed": np.ones((2, 3))}, "dimen"),
        ({"kind": "random", "n": 3, "metric": "l1"}, "unknown metric 'l1'"),
    ],
)
def test_order_errors(arguments, message):
    with pytest.raises(UserError, match=message):
        backfill_order(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": [0, 1, 1]}, "permutation"),
        ({"order": [0, 1]}, "permutation"),
        ({"order": [0.0, 1.0, 2.0]}, "permutation"),
        ({"order": [0, 1, -1]}, "permutation"),
        ({"steps": -1}, "steps must be"),
        ({"labels": [0, 1]}, "labels must have shape"),
        ({"transformed": np.ones((2, 2))}, "3 rows but transformed has 2"),
        ({"transformed": np.ones((3, 4))}, "dimensions"),
        ({"new": np.full((3, 2), np.inf)}, "new holds NaN or infinity"),
        ({"metric": "euclid"}, "known: cosine, l2"),
    ],
)
def test_curve_errors(change, message):
    arguments = {
        "new": np.ones((3, 2)),
        "transformed": np.ones((3, 2)),
        "labels": [0, 0, 1],
        "order": [2, 0, 1],
    } | change
    with pytest.raises(UserError, match=message):
        backfill_curve(**arguments)


def test_unknown_auc():
    curve = backfill_curve(np.ones((3, 2)), np.ones((3, 2)), [0, 0, 1], [0, 1, 2])
    with pytest.raises(UserError, match="did you mean 'cmc@1'"):
        curve.auc("cmc1")


@pytest.mark.parametrize("metric", METRICS)
def test_separate_queries_against_every_mixed_gallery(metric):
    """Each point of the curve is a plain evaluation of the partly re-embedded gallery."""
    rng = np.random.default_rng(3)
    new, transformed = rng.standard_normal((2, 40, 3)).astype(np.float32)
    query = rng.standard_normal((9, 3)).astype(np.float32)
    labels, query_labels = rng.integers(0, 5, 40), rng.integers(0, 6, 9)
    order = rng.permutation(40)
    curves = backfill_curves(
        new, transformed, labels, {"o": order}, steps=5, metric=metric,
        query=query, query_labels=query_labels,
    )  # fmt: skip
    for i, cut in enumerate(np.arange(7) * 40 // 6):
        gallery = transformed.copy()
        gallery[order[:cut]] = new[order[:cut]]
        right = retrieval_metrics(query, gallery, query_labels, labels, metric=metric)
        for name, value in right.items():
            assert curves["o"].values[name][i] == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("tied", [True, False])
def test_few_huge_classes(metric, tied):
    """Many positives share few keys, or have a key each."""
    rng = np.random.default_rng(0)
    spread = 2 if tied else 10**6
    new, moved = rng.integers(-spread, spread + 1, (2, 90, 3))
    labels, order = np.arange(90) % 2, rng.permutation(90)
    curve = backfill_curve(new, moved, labels, order, metric=metric, steps=4)
    # Distances to both together, so that ranks among them can be compared.
    distance = exact_distances(new, np.concatenate([new, moved]), metric)
    expected = curve_of_distances(distance[:, :90], distance[:, 90:], labels, order, 4)
    for name, values in curve.values.items():
        np.testing.assert_allclose(values, expected[name], rtol=0, atol=1e-12)
