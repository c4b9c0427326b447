"""Market-1501 measures and k-reciprocal re-ranking against the golden arrays and slow loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fct_jax.errors import UserError
from fct_jax.evaluate.protocols.reid import k_reciprocal_rerank, market1501


def normalised(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def squared_distances(a, b):
    return ((a[:, None].astype(np.float64) - b[None]) ** 2).sum(-1)


def slow_market(distances, q_ids, g_ids, q_cams, g_cams, max_rank=50):
    length = min(max_rank, len(g_ids))
    curves, aps = [], []
    for q in range(len(q_ids)):
        hits, ap, rank, curve = 0, 0.0, 0, np.zeros(length)
        for g in sorted(range(len(g_ids)), key=lambda g, q=q: (distances[q][g], g)):
            if g_ids[g] == q_ids[q] and g_cams[g] == q_cams[q]:
                continue
            rank += 1
            if g_ids[g] == q_ids[q]:
                hits += 1
                ap += hits / rank
                if hits == 1:
                    curve[rank - 1 :] = 1
        if hits:
            curves.append(curve)
            aps.append(ap / hits)
    return (np.mean(curves, axis=0), np.mean(aps)) if aps else None


def slow_rerank(query, gallery, k1, k2, weight):
    """Re-rank by the definition, with sets and in float64."""
    everything = normalised(np.concatenate([query, gallery]).astype(np.float64))
    total, queries = len(everything), len(query)
    distance = squared_distances(everything, everything)
    distance /= np.maximum(distance.max(axis=1, keepdims=True), 1e-12)
    ranked = [
        sorted(range(total), key=lambda j, i=i: (j != i, distance[i, j], j)) for i in range(total)
    ]

    def reciprocal(i, k):
        return {j for j in ranked[i][: k + 1] if i in ranked[j][: k + 1]}

    encoding = np.zeros((total, total))
    for i in range(total):
        wide = reciprocal(i, k1)
        expanded = set(wide)
        for j in wide:
            near = reciprocal(j, int(np.around(k1 / 2)))
            if 3 * len(near & wide) > 2 * len(near):
                expanded |= near
        for j in expanded:
            encoding[i, j] = np.exp(-distance[i, j])
    encoding /= encoding.sum(axis=1, keepdims=True)
    encoding = np.stack([encoding[ranked[i][:k2]].mean(axis=0) for i in range(total)])
    result = np.empty((queries, len(gallery)))
    for i in range(queries):
        for j in range(len(gallery)):
            a, b = encoding[i], encoding[queries + j]
            jaccard = 1 - np.minimum(a, b).sum() / np.maximum(a, b).sum()
            result[i, j] = weight * distance[i, queries + j] + (1 - weight) * jaccard
    return result


def ids_and_cameras(arrays):
    return [arrays[f"market/{name}"] for name in ("q_pids", "g_pids", "q_camids", "g_camids")]


def test_golden_market(golden_advbct):
    arrays = golden_advbct.arrays("retrieval_metrics")
    golden = golden_advbct.json("retrieval_metrics")["market"]
    query = normalised(arrays["market/query_feat"])
    old = arrays["market/gallery_feat_old"]
    distances = {
        "self": arrays["market/distmat"],
        "cross_old_gallery_unnormalised": squared_distances(query, old),
        "cross_old_gallery_normalised": squared_distances(query, normalised(old)),
    }
    recomputed = squared_distances(query, normalised(arrays["market/gallery_feat"]))
    np.testing.assert_allclose(recomputed, distances["self"], rtol=1e-4, atol=4e-6)
    for case, distance in distances.items():
        report = market1501(distance, *ids_and_cameras(arrays))
        assert report["cmc"].shape == (golden["max_rank"],)
        np.testing.assert_allclose(report["cmc"], golden[case]["cmc"], atol=1e-6)
        assert report["map"] == pytest.approx(golden[case]["mAP"], abs=1e-9)
    angles = market1501(arrays["market/cosine_arccos_dist"], *ids_and_cameras(arrays))
    assert angles["map"] == pytest.approx(golden["mAP_cosine_distance_same_ranking"], abs=1e-9)


def test_golden_small_gallery(golden_advbct):
    arrays = golden_advbct.arrays("retrieval_metrics")
    golden = golden_advbct.json("retrieval_metrics")["market_small"]
    distance = arrays["market/small_distmat"]
    queries, gallery = distance.shape
    report = market1501(
        distance,
        arrays["market/small_q_pids"],
        arrays["market/small_g_pids"],
        np.full(queries, golden["q_camid_all"]),
        np.full(gallery, golden["g_camid_all"]),
    )
    assert report["cmc"].shape == (20,)
    np.testing.assert_allclose(report["cmc"], golden["cmc"], atol=1e-6)
    assert report["map"] == pytest.approx(golden["mAP"], abs=1e-9)


def golden_rerank_cases(arrays):
    for key in arrays:
        if key.startswith("rerank/final_dist_k1_"):
            k1, _, k2, _, weight = key.removeprefix("rerank/final_dist_k1_").split("_")
            yield key, int(k1), int(k2), float(weight)


def test_golden_rerank(golden_advbct):
    arrays = golden_advbct.arrays("retrieval_metrics")
    golden = golden_advbct.json("retrieval_metrics")
    query = arrays["rerank/query_feat_normalised"]
    gallery = arrays["rerank/gallery_feat_normalised"]
    cases = list(golden_rerank_cases(arrays))
    assert len(cases) == 4
    for key, k1, k2, weight in cases:
        found = k_reciprocal_rerank(query, gallery, k1, k2, weight)
        np.testing.assert_allclose(found, arrays[key], atol=2e-3, err_msg=key)
        wanted = golden["rerank_dtype"].get(f"{k1}_{k2}_{weight}", "float32")
        assert found.dtype == wanted
        # Without half precision the result equals the definition's.
        exact = k_reciprocal_rerank(query, gallery, k1, k2, weight, dtype=np.float32)
        slow = slow_rerank(query, gallery, k1, k2, weight)
        np.testing.assert_allclose(exact, slow, atol=2e-6, err_msg=key)
    report = market1501(
        k_reciprocal_rerank(query, gallery),
        arrays["rerank/q_pids"],
        arrays["rerank/g_pids"],
        np.zeros(len(query)),
        np.ones(len(gallery)),
    )
    wanted = golden["rerank_k1_20_eval"]
    np.testing.assert_allclose(report["cmc"], wanted["cmc"], atol=1e-6)
    assert report["map"] == pytest.approx(wanted["mAP"], abs=1e-9)


@settings(deadline=None, max_examples=80)
@given(
    st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 30), st.integers(1, 5), st.booleans()
)
def test_market_equals_slow_loop(seed, queries, gallery, people, ties):
    rng = np.random.default_rng(seed)
    distances = rng.random((queries, gallery)).astype(np.float32)
    if ties:
        distances = np.round(distances * 3)
    arguments = (
        rng.integers(0, people, queries),
        rng.integers(0, people, gallery),
        rng.integers(0, 2, queries),
        rng.integers(0, 2, gallery),
    )
    slow = slow_market(distances.tolist(), *arguments, max_rank=7)
    if slow is None:
        with pytest.raises(UserError, match="no query has a match"):
            market1501(distances, *arguments, max_rank=7)
        return
    report = market1501(distances, *arguments, max_rank=7)
    np.testing.assert_allclose(report["cmc"], slow[0], atol=1e-12)
    assert report["map"] == pytest.approx(slow[1], abs=1e-12)


@settings(deadline=None, max_examples=20)
@given(
    st.integers(0, 10**6),
    st.integers(1, 4),
    st.integers(1, 14),
    st.integers(1, 30),
    st.integers(1, 8),
    st.booleans(),
)
def test_rerank_equals_slow_loop(seed, queries, gallery, k1, k2, duplicates):
    rng = np.random.default_rng(seed)
    # Values are only signs: cosines are multiples of 1/4 and their float32 ties are exact.
    vectors = rng.normal(size=(queries + gallery, 6)).astype(np.float32)
    if duplicates:
        vectors = rng.choice([-1.0, 1.0], (queries + gallery, 4)).astype(np.float32)
    query, gallery = vectors[:queries], vectors[queries:]
    found = k_reciprocal_rerank(query, gallery, k1, k2, 0.3, dtype=np.float32)
    np.testing.assert_allclose(found, slow_rerank(query, gallery, k1, k2, 0.3), atol=1e-5)


def test_rerank_works_in_blocks():
    rng = np.random.default_rng(3)
    query, gallery = rng.normal(size=(9, 5)), rng.normal(size=(31, 5))
    whole = k_reciprocal_rerank(query, gallery)
    in_blocks = k_reciprocal_rerank(query, gallery, block=7, pairs=11)
    np.testing.assert_allclose(in_blocks, whole, atol=1e-3)
    ids = rng.integers(0, 4, 40)
    cameras = rng.integers(0, 3, 40)
    arguments = whole, ids[:9], ids[9:], cameras[:9], cameras[9:]
    assert market1501(*arguments, block=7)["map"] == market1501(*arguments)["map"]


def test_rerank_scale_does_not_matter():
    rng = np.random.default_rng(1)
    query, gallery = rng.normal(size=(3, 8)), rng.normal(size=(20, 8))
    scaled = k_reciprocal_rerank(query * 4, gallery * 0.5)
    assert np.array_equal(k_reciprocal_rerank(query, gallery), scaled)
    alike = k_reciprocal_rerank(np.ones((2, 3)), np.ones((5, 3)))
    assert np.isfinite(alike).all()


def test_wrong_input():
    with pytest.raises(UserError, match=r"\(2, 3\), not \(2, 2\)"):
        market1501(np.zeros((2, 2)), [0, 1], [0, 1, 2], [0, 0], [1, 1, 1])
    with pytest.raises(UserError, match="an identity and a camera"):
        market1501(np.zeros((2, 2)), [0, 1], [0, 1], [0], [1, 1])
    with pytest.raises(UserError, match="NaN"):
        market1501([[np.nan]], [0], [0], [0], [1])
    with pytest.raises(UserError, match="no query has a match"):
        market1501(np.zeros((0, 0)), [], [], [], [])
    with pytest.raises(UserError, match="no query has a match"):
        market1501(np.zeros((2, 0)), [0, 1], [], [0, 0], [])
    for arguments in [
        (np.zeros((1, 2)), np.zeros((1, 3))),
        (np.zeros((0, 2)), np.zeros((1, 2))),
        (np.full((1, 2), np.inf), np.zeros((1, 2))),
        (np.ones((1, 2)), np.ones((1, 2)), 0),
        (np.ones((1, 2)), np.ones((1, 2)), 2, 1, 1.5),
    ]:
        with pytest.raises(UserError):
            k_reciprocal_rerank(*arguments)
