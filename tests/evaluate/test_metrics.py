"""CMC and mAP against slow oracles and edge cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from retrieval_oracle import exact_distances, float_distances, metrics_of_distances

from fct_jax.errors import UserError
from fct_jax.evaluate import distances as distances_module
from fct_jax.evaluate.distances import Keys, distances, unit_rows
from fct_jax.evaluate.metrics import (
    grouped,
    per_query_results,
    retrieval_metrics,
)

METRICS = ("l2", "cosine")


@st.composite
def vector_sets(draw):
    """Draw two sets of small integer vectors, full of duplicates, ties and zero vectors."""
    dims = draw(st.integers(1, 4))
    sizes = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    seed = draw(st.integers(0, 2**32 - 1))
    spread, classes = draw(st.integers(1, 3)), draw(st.integers(1, 8))
    rng = np.random.default_rng(seed)
    sets = [rng.integers(-spread, spread + 1, (size, dims)) for size in sizes]
    labels = [rng.integers(0, classes, size) for size in sizes]
    return *sets, *labels


# 0 pairs selects float32, in which unit vectors of integers cannot keep their ties.
@pytest.mark.parametrize(("metric", "exact_pairs"), [("l2", 0), ("l2", 2**25), ("cosine", 2**25)])
@settings(deadline=None, max_examples=40)
@given(sets=vector_sets(), ks=st.sampled_from([(1, 5), (3,), (2, 40)]))
def test_ties_and_sizes(metric, exact_pairs, sets, ks):
    query, gallery, query_labels, gallery_labels = sets
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distances_module, "EXACT_PAIRS", exact_pairs)
        ours = retrieval_metrics(
            query * 0.25, gallery * 0.25, query_labels, gallery_labels, metric=metric, ks=ks
        )
        n = min(len(query), len(gallery))
        query_n, gallery_n, labels_n = query[:n], gallery[:n], query_labels[:n]
        loo = retrieval_metrics(query_n * 0.5, gallery_n * 0.5, labels_n, metric=metric, ks=ks)
    distance = exact_distances(query, gallery, metric)
    plain = metrics_of_distances(distance, query_labels, gallery_labels, False, ks)
    assert ours == pytest.approx(plain, abs=1e-9, nan_ok=True)
    plain = metrics_of_distances(distance[:n, :n], labels_n, labels_n, True, ks)
    assert loo == pytest.approx(plain, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("exact_pairs", [0, 2**25])
@pytest.mark.parametrize("metric", METRICS)
def test_real_vectors(metric, exact_pairs, monkeypatch):
    monkeypatch.setattr(distances_module, "EXACT_PAIRS", exact_pairs)
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 9, 150)
    gallery = rng.normal(size=(150, 11)).astype(np.float32) + labels[:, None] % 3
    gallery[40:80] = gallery[:40]
    query = gallery + 0.5 * rng.normal(size=gallery.shape).astype(np.float32)
    plain = metrics_of_distances(float_distances(query, gallery, metric), labels, labels, True)
    ours = retrieval_metrics(query, gallery, labels, metric=metric)
    assert ours == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize("exact_pairs", [0, 2**25])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_offset_and_scale_do_not_matter(offset, exact_pairs, monkeypatch):
    """A common offset does not change distances; float32 products must not lose them."""
    monkeypatch.setattr(distances_module, "EXACT_PAIRS", exact_pairs)
    rng = np.random.default_rng(5)
    labels = np.arange(60) % 6
    vectors = rng.integers(-8, 9, (60, 5)) / 8
    expected = retrieval_metrics(vectors, vectors, labels)
    for scale in (1.0, 2.0**60, 2.0**-60):
        moved = ((vectors + offset) * scale).astype(np.float32)
        assert retrieval_metrics(moved, moved, labels) == expected


def test_cosines_near_one_keep_their_digits(monkeypatch):
    """A common direction leaves little difference between cosines; float32 must still see it."""
    rng = np.random.default_rng(6)
    labels = rng.integers(0, 20, 400)
    vectors = 1000 + rng.normal(size=(20, 8))[labels] + 2 * rng.normal(size=(400, 8))
    exact = retrieval_metrics(vectors, vectors, labels, metric="cosine")
    monkeypatch.setattr(distances_module, "EXACT_PAIRS", 0)
    assert retrieval_metrics(vectors, vectors, labels, metric="cosine") == pytest.approx(
        exact, abs=1e-6
    )


@pytest.mark.parametrize("kind", ["l2", "dot"])
@pytest.mark.parametrize("exact_pairs", [0, 2**25])
def test_equal_vectors_have_equal_keys(kind, exact_pairs, monkeypatch):
    monkeypatch.setattr(distances_module, "EXACT_PAIRS", exact_pairs)
    rng = np.random.default_rng(0)
    gallery = np.tile(rng.normal(size=(1, 37)), (103, 1)).astype(np.float32)
    gallery[50] = 0.0
    gallery[70] = -0.0
    keys = Keys(rng.normal(size=(5, 37)), gallery, kind)
    # As if the matrix product rounded every column differently.
    keys.columns = keys.columns * (1 + 1e-6 * rng.normal(size=103)).astype(keys.dtype)
    block = keys.fill(0, 5, np.empty(keys.shape, keys.dtype))
    zero = np.isin(np.arange(103), (50, 70))
    for row in block:
        assert len(set(row[~zero].tolist())) == 1
        assert len(set(row[zero].tolist())) == 1


def test_per_class_and_per_group():
    rng = np.random.default_rng(1)
    labels = np.array([0] * 6 + [1] * 5 + [2])
    query, gallery = rng.normal(size=(2, 12, 4))
    results = per_query_results(query, gallery, labels)
    assert np.isnan(results.ap[-1]) and not results.hit[5][-1]
    classes = grouped(results, labels)
    assert list(classes) == [0, 1, 2]
    assert classes[0]["map"] == pytest.approx(np.mean(results.ap[:6]))
    assert classes[1]["cmc@1"] == pytest.approx(np.mean(results.hit[1][6:11]))
    assert np.isnan(classes[2]["map"]) and np.isnan(classes[2]["cmc@5"])
    everyone = grouped(results, np.array(["all"] * 12))
    assert everyone["all"] == pytest.approx(retrieval_metrics(query, gallery, labels))
    with pytest.raises(UserError, match="groups"):
        grouped(results, labels[:-1])


def test_own_item_never_counts():
    vectors = np.eye(4, dtype=np.float32)
    assert retrieval_metrics(vectors, vectors, [0, 0, 1, 1]) == {
        "cmc@1": 0.5,  # all others are equally far: the lower row comes first
        "cmc@5": 1.0,
        "map": pytest.approx(1 / 3),
    }
    alone = retrieval_metrics(vectors[:1], vectors[:1], [0])
    assert all(np.isnan(value) for value in alone.values())  # nothing to judge by
    assert retrieval_metrics(vectors[:1], vectors[:1], [0], [0])["map"] == 1
    strings = retrieval_metrics(vectors, vectors[:1], ["a", "b", "zz", "a"], ["a"])
    assert strings == {"cmc@1": 0.5, "cmc@5": 0.5, "map": 1.0}


def test_zero_vector_is_at_cosine_distance_one():
    assert distances([[0.0, 0.0]], [[3.0, 4.0]], "cosine") == 1
    np.testing.assert_allclose(unit_rows([[3e30, 4e30]]), [[0.6, 0.8]])
    np.testing.assert_allclose(unit_rows([[3e-13, 4e-13]]), [[0.3, 0.4]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": np.full((3, 2), np.nan)}, "query holds NaN"),
        ({"gallery": np.array([[0, 1], [np.inf, 1], [0, 0.0]])}, "first in row 1"),
        ({"gallery": np.zeros((3, 5))}, "query has 2 dimensions but gallery has 5"),
        ({"gallery": np.zeros((4, 2))}, "query has 3 rows but gallery has 4"),
        ({"query": np.zeros((0, 2))}, "query is empty"),
        ({"query": np.zeros(3)}, r"shape \(N, D\)"),
        ({"query": np.array([["a", "b"]] * 3)}, "numbers"),
        ({"query_labels": [0, 1]}, "query_labels must have shape"),
        ({"query_labels": [0, 1, np.nan]}, "query_labels hold NaN"),
        ({"gallery_labels": [0, 1]}, "gallery_labels must have shape"),
        ({"metric": "cosin"}, "did you mean 'cosine'"),
        ({"ks": (0,)}, "ks must be"),
        ({"ks": ()}, "ks must be"),
    ],
)
def test_user_errors(change, message):
    arguments = {
        "query": np.ones((3, 2)),
        "gallery": np.ones((3, 2)),
        "query_labels": [0, 1, 0],
    } | change
    with pytest.raises(UserError, match=message):
        retrieval_metrics(**arguments)
