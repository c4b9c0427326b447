"""Exact search block by block, and metrics of ranked ids, against plain oracles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from retrieval_oracle import float_distances

from fct_jax.errors import UserError
from fct_jax.evaluate.metrics import grouped, retrieval_metrics
from fct_jax.evaluate.search import knn, ranked_metrics, ranked_results

METRICS = ("l2", "cosine")


def clouds(rng, queries, gallery, dims):
    query, items = rng.normal(size=(queries, dims)), rng.normal(size=(gallery, dims))
    return query.astype(np.float32), items.astype(np.float32)


@pytest.mark.parametrize("block", [7, 64, 10_000])
@pytest.mark.parametrize("metric", METRICS)
def test_same_as_sorting_everything(metric, block):
    query, gallery = clouds(np.random.default_rng(0), 25, 130, 9)
    plain = float_distances(query, gallery, metric)
    done = []
    distance, ids = knn(query, gallery, 12, metric=metric, block=block, progress=done.append)
    order = np.argsort(plain, axis=1)[:, :12]
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_allclose(distance, np.take_along_axis(plain, order, axis=1), atol=1e-6)
    assert distance.dtype == np.float32 and ids.dtype == np.int64
    assert sum(done) == 130


@pytest.mark.parametrize("metric", METRICS)
def test_gallery_on_disk(metric, tmp_path):
    query, gallery = clouds(np.random.default_rng(1), 30, 200, 8)
    np.save(tmp_path / "vectors.npy", gallery)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    for ours, plain in zip(
        knn(query, mapped, 5, metric=metric, block=32),
        knn(query, gallery, 5, metric=metric),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, plain)


@pytest.mark.parametrize("block", [3, 100])
def test_own_item_and_small_gallery(block):
    vectors = np.arange(4, dtype=np.float32)[:, None] ** 2
    distance, ids = knn(vectors, vectors, 6, exclude_self=True, block=block)
    assert ids.tolist() == [
        [1, 2, 3, -1, -1, -1],
        [0, 2, 3, -1, -1, -1],
        [1, 0, 3, -1, -1, -1],
        [2, 1, 0, -1, -1, -1],
    ]
    assert distance[0].tolist() == [1, 4, 9, np.inf, np.inf, np.inf]
    one = knn(vectors[:1], vectors[:1], 2, exclude_self=True)
    assert one[1].tolist() == [[-1, -1]]


@pytest.mark.parametrize("metric", METRICS)
def test_equal_vectors_are_equally_far_in_row_order(metric):
    rng = np.random.default_rng(2)
    query, gallery = clouds(rng, 40, 10, 37)
    gallery = np.tile(gallery, (9, 1))
    distance, ids = knn(query, gallery, 90, metric=metric, block=41)
    np.testing.assert_array_equal(distance.reshape(40, 10, 9), distance[:, ::9, None] + np.zeros(9))
    steps = ids.reshape(40, 10, 9) - ids[:, ::9, None]
    assert (steps == np.arange(0, 90, 10)).all()
    # Every item has nine equals, including itself; it must still be left out.
    _, ids = knn(gallery, gallery, 3, metric=metric, exclude_self=True)
    assert not (ids == np.arange(90)[:, None]).any() and (ids >= 0).all()


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    gallery=st.integers(1, 30),
    k=st.integers(1, 35),
    at=st.integers(1, 35),
    same=st.booleans(),
)
def test_ranked_metrics(seed, gallery, k, at, same):
    rng = np.random.default_rng(seed)
    queries = gallery if same else int(rng.integers(1, 12))
    gallery_labels = rng.integers(0, 4, gallery)
    query_labels = gallery_labels if same else rng.integers(0, 6, queries)
    ids = np.full((queries, 40), -1)
    for i, row in enumerate(ids):
        found = [j for j in rng.permutation(gallery) if not (same and j == i)]
        row[: len(found)] = found
    hits, aps = [], []
    for i, row in enumerate(ids):
        good = [bool(j >= 0 and gallery_labels[j] == query_labels[i]) for j in row]
        hits.append(any(good[:k]))
        if any(good):
            total = sum(sum(good[: r + 1]) / (r + 1) for r in range(at) if good[r])
            aps.append(total / min(sum(good), at))
    ours = ranked_metrics(ids, query_labels, gallery_labels, ks=(k,), map_at=at, exclude_self=same)
    plain = {f"cmc@{k}": np.mean(hits) if aps else np.nan}
    plain[f"map@{at}"] = np.mean(aps) if aps else np.nan
    assert ours == pytest.approx(plain, nan_ok=True)


@pytest.mark.parametrize("metric", METRICS)
def test_whole_ranking_agrees_with_retrieval_metrics(metric):
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 6, 80)
    query, gallery = clouds(rng, 80, 80, 7)
    _, ids = knn(query, gallery, 80, metric=metric, exclude_self=True, block=30)
    ours = ranked_metrics(ids, labels, labels, map_at=80, exclude_self=True)
    plain = retrieval_metrics(query, gallery, labels, metric=metric)
    assert ours["cmc@1"] == plain["cmc@1"] and ours["cmc@5"] == plain["cmc@5"]
    assert ours["map@80"] == pytest.approx(plain["map"])
    results = ranked_results(ids, labels, labels, map_at=80, exclude_self=True)
    assert grouped(results, labels)[3]["map"] == pytest.approx(np.mean(results.ap[labels == 3]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k must be"),
        ({"block": 0}, "block must be"),
        ({"metric": "ip"}, "unknown metric"),
        ({"gallery": np.zeros((0, 3))}, "gallery is empty"),
        ({"gallery": np.zeros((4, 2))}, "dimensions"),
        ({"gallery": np.full((4, 3), np.nan)}, "gallery rows from 0 holds NaN"),
        ({"exclude_self": True}, "5 rows but gallery has 4"),
    ],
)
def test_search_errors(change, message):
    arguments = {"query": np.ones((5, 3)), "gallery": np.ones((4, 3)), "k": 2} | change
    with pytest.raises(UserError, match=message):
        knn(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"map_at": 4}, "ids hold 3 results per query, but 5"),
        ({"map_at": 0}, "map_at must be"),
        ({"ids": np.full((2, 3), 9)}, "rows of the gallery"),
        ({"ids": np.zeros((2, 3))}, "ids must be integers"),
        ({"query_labels": [0]}, "query_labels must have shape"),
        ({"exclude_self": True}, "query_labels has 2 rows"),
    ],
)
def test_ranked_errors(change, message):
    arguments = {
        "ids": np.array([[0, 1, 2], [3, 4, 5]]),
        "query_labels": [0, 1],
        "gallery_labels": [0, 1] * 4,
        "map_at": 3,
    } | change
    with pytest.raises(UserError, match=message):
        ranked_metrics(**arguments)
