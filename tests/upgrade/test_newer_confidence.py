"""Confidence in a translation and class-mean distances, against loops over items."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fct_jax.errors import UserError
from fct_jax.upgrade import confidence
from fct_jax.upgrade.confidence import (
    cell_mean_distance,
    class_mean_distance,
    nearest_distances,
    translation_confidence,
)

seeds = st.integers(0, 10_000)
few = settings(max_examples=25, deadline=None)


@given(seeds, st.sampled_from(confidence.SPREADS), st.integers(2, 50))
@few
def test_confidence_is_the_loop(seed, spread, count):
    rng = np.random.default_rng(seed)
    vectors, training = rng.normal(size=(9, 3)), rng.normal(size=(count, 3))
    between = [np.linalg.norm(training[i] - training[j]) for i in range(count) for j in range(i)]
    wanted = []
    for x in vectors:
        near = sorted(np.linalg.norm(x - t) for t in training)
        sigma = {"mean": np.mean, "std": np.std}.get(spread, lambda _, n=near: np.median(n[:32]))
        width = sigma(between)
        wanted.append(math.exp(-near[0] / width) if width > 0 else 0.0)
    np.testing.assert_allclose(
        translation_confidence(vectors, training, spread=spread), wanted, atol=1e-9
    )


def test_order_and_sample_of_pairs():
    rng = np.random.default_rng(0)
    vectors, training = rng.normal(size=(40, 4)), rng.normal(size=(300, 4))
    first = translation_confidence(vectors, training)  # samples 5,000 of 44,850 pairs
    assert np.array_equal(first, translation_confidence(vectors, training))
    exact = np.mean(
        [np.linalg.norm(training[i] - training[j]) for i in range(300) for j in range(i)]
    )
    delta = nearest_distances(vectors, training, 1)[:, 0]
    # A distance's standard deviation is below 1, that of the mean of 5,000 below 0.015.
    np.testing.assert_allclose(-delta / np.log(first), exact, atol=6 * 0.015)
    assert np.array_equal(np.argsort(first), np.argsort(-delta))


def test_blocks_and_memory_maps_make_no_difference(tmp_path):
    rng = np.random.default_rng(1)
    vectors, training = rng.normal(size=(50, 4)).astype(np.float32), rng.normal(size=(20, 4))
    labels = rng.integers(0, 6, 50)
    np.save(tmp_path / "v.npy", vectors)
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")

    def everything(x, **options):
        return (
            translation_confidence(x, training, **options),
            translation_confidence(x, training, spread="local", **options),
            class_mean_distance(x, labels, **options),
            cell_mean_distance(x, 4, **options),
        )

    wanted = everything(vectors)
    for got, expected in zip(everything(mapped, block=7), wanted, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-12)


def test_edges_of_confidence():
    x = np.array([[1.0, 0], [3.0, 0]])
    same = np.array([[1.0, 0]] * 3)
    assert translation_confidence(x, same).tolist() == [1, 0]
    assert translation_confidence(x, same[:1], spread="local").tolist() == [1, math.exp(-1)]
    for wrong, message in (
        ({"training_vectors": same[:1]}, "at least 2"),
        ({"training_vectors": same[:, :1]}, "dimensions"),
        ({"training_vectors": same, "spread": "sdt"}, "did you mean 'std'"),
        ({"training_vectors": same * np.nan}, "NaN"),
    ):
        with pytest.raises(UserError, match=message):
            translation_confidence(x, **wrong)


@given(seeds, st.sampled_from(["l2", "cosine"]), st.booleans())
@few
def test_class_mean_distance_is_the_loop(seed, metric, text):
    rng = np.random.default_rng(seed)
    x, labels = rng.normal(size=(30, 3)), rng.integers(-3, 5, 30)
    names = np.array([f"class {label}" for label in labels]) if text else labels
    wanted = []
    for row, label in zip(x, labels, strict=True):
        mean = x[labels == label].mean(axis=0)
        if metric == "l2":
            wanted.append(np.linalg.norm(row - mean))
        else:
            wanted.append(1 - row @ mean / np.linalg.norm(row) / np.linalg.norm(mean))
    np.testing.assert_allclose(class_mean_distance(x, names, metric=metric), wanted, atol=1e-12)


def test_cells_stand_for_classes():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 20)
    x = 50 * np.eye(3)[labels] + rng.normal(size=(60, 3))
    wanted = class_mean_distance(x, labels)
    np.testing.assert_allclose(cell_mean_distance(x, 3), wanted, atol=1e-9)
    np.testing.assert_allclose(cell_mean_distance(x, 1), class_mean_distance(x, np.zeros(60)))
    # With more cells than different vectors, each vector is its own mean.
    np.testing.assert_allclose(cell_mean_distance(x[:5], 50), 0, atol=1e-9)
    # Cells from a sample also find the clear clusters.
    np.testing.assert_allclose(cell_mean_distance(x, 3, sample=30), wanted, atol=1e-9)


def test_zero_rows_and_mistakes():
    assert class_mean_distance(np.zeros((2, 2)), np.zeros(2), metric="cosine").tolist() == [1, 1]
    for wrong in (
        lambda: class_mean_distance(np.zeros((0, 2)), []),
        lambda: class_mean_distance(np.ones((3, 2)), [0, 1]),
        lambda: class_mean_distance(np.full((1, 2), np.nan), [0]),
        lambda: class_mean_distance(np.ones((1, 2)), [0], metric="dot"),
        lambda: cell_mean_distance(np.ones((3, 2)), 0),
        lambda: cell_mean_distance(np.ones((0, 2)), 1),
    ):
        with pytest.raises(UserError):
            wrong()
