"""Template pooling, TAR at FAR and identification against slow loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from fct_jax.errors import UserError
from fct_jax.evaluate.protocols.verification import (
    FARS,
    identification,
    identification_per_probe,
    pair_scores,
    pool_templates,
    tar_at_far,
    tpir_at_fpir,
)

seeds = st.integers(0, 10**6)


def slow_pool(embeddings, templates, media, weights, normalize):
    if normalize:
        embeddings = [e / np.linalg.norm(e) for e in embeddings]
    embeddings = [w * e for w, e in zip(weights, embeddings, strict=True)]
    ids = sorted(set(templates))
    vectors = []
    for template in ids:
        means = []
        for medium in sorted({m for t, m in zip(templates, media, strict=True) if t == template}):
            rows = [
                e
                for e, t, m in zip(embeddings, templates, media, strict=True)
                if (t, m) == (template, medium)
            ]
            means.append(np.mean(rows, axis=0))
        mean = np.mean(means, axis=0)
        vectors.append(mean / np.linalg.norm(mean))
    return ids, np.array(vectors)


def slow_tar(scores, same, far):
    """Return the best true accept rate of all thresholds with an allowed false accept rate."""
    best = 0.0
    for threshold in [*scores, np.inf]:
        accepted = scores >= threshold
        if accepted[~same].sum() <= far * (~same).sum() + 1e-9:
            best = max(best, accepted[same].mean())
    return best


@settings(deadline=None, max_examples=40)
@given(
    seeds, st.integers(1, 40), st.integers(1, 6), st.integers(1, 6), st.booleans(), st.booleans()
)
def test_pooling_equals_slow_loop(seed, images, templates, media, weighted, normalize):
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(images, 5)).astype(np.float32)
    template = rng.integers(0, templates, images) * 7 + 3
    medium = rng.integers(0, media, images) - 2
    weights = rng.uniform(0.1, 1, images) if weighted else np.ones(images)
    options = {"weights": weights if weighted else None, "normalize": normalize}
    ids, vectors = pool_templates(embeddings, template, medium, **options)
    given_ids = template.tolist(), medium.tolist()
    slow_ids, slow_vectors = slow_pool(embeddings, *given_ids, weights, normalize)
    assert ids.tolist() == slow_ids
    np.testing.assert_allclose(vectors, slow_vectors, atol=2e-6)
    assert vectors.dtype == np.float32


def test_a_long_video_weighs_as_much_as_a_photograph():
    embeddings = [[1, 0]] * 9 + [[0, 1]]
    _, vectors = pool_templates(embeddings, [1] * 10, [5] * 9 + [6])
    np.testing.assert_allclose(vectors, [[0.5**0.5] * 2], atol=1e-6)


@settings(deadline=None, max_examples=80)
@given(seeds, st.integers(2, 60), st.booleans())
def test_tar_equals_slow_loop(seed, pairs, ties):
    rng = np.random.default_rng(seed)
    same = rng.random(pairs) < 0.5
    same[:2] = True, False
    scores = rng.normal(size=pairs) + same
    if ties:
        scores = np.round(scores)
    fars = (0.0, 1e-3, 0.1, 0.3, 1.0)
    report = tar_at_far(scores, same, fars)
    assert list(report) == ["tar@far=0", "tar@far=0.001", "tar@far=0.1", "tar@far=0.3", "tar@far=1"]
    found = list(report.values())
    np.testing.assert_allclose(found, [slow_tar(scores, same, far) for far in fars], atol=1e-12)
    assert found == sorted(found) and found[-1] == 1.0


def test_tar_by_hand():
    same = np.array([True] * 4 + [False] * 10)
    scores = [0.9, 0.8, 0.5, 0.1, 0.8, 0.6, *np.linspace(0, 0.05, 8)]
    # One of ten impostors may pass: that at 0.8, not that at 0.6; so 0.9 and 0.8 pass.
    assert tar_at_far(scores, same, [0.1]) == {"tar@far=0.1": 0.5}
    # No impostor may pass: 0.8 is rejected together with the impostor of the same score.
    assert tar_at_far(scores, same)["tar@far=1e-06"] == 0.25
    assert list(tar_at_far(scores, same)) == [f"tar@far={far:g}" for far in FARS]


@settings(deadline=None, max_examples=60)
@given(seeds, st.integers(1, 6), st.integers(1, 12), st.integers(1, 5), st.booleans())
def test_identification_equals_slow_loop(seed, probes, templates, people, ties):
    rng = np.random.default_rng(seed)
    probe, gallery = rng.normal(size=(probes, 4)), rng.normal(size=(templates, 4))
    if ties:
        probe, gallery = np.sign(probe), np.sign(gallery)
    probe_ids, gallery_ids = rng.integers(0, people, probes), rng.integers(0, people, templates)
    ranks, aps = [], []
    for vector, person in zip(probe, probe_ids, strict=True):
        mate = gallery_ids == person
        if not mate.any():
            continue
        score = (gallery.astype(np.float32) @ vector.astype(np.float32)).tolist()
        order = sorted(range(templates), key=lambda g, score=score: (-score[g], g))
        ranks.append(next(rank for rank, g in enumerate(order) if mate[g]))
        aps.append(average_precision_score(mate, score))
    if not ranks:
        with pytest.raises(UserError, match="no probe"):
            identification(probe, probe_ids, gallery, gallery_ids)
        return
    report = identification(probe, probe_ids, gallery, gallery_ids, ks=(1, 3))
    assert report["top@1"] == np.mean([rank < 1 for rank in ranks])
    assert report["top@3"] == np.mean([rank < 3 for rank in ranks])
    assert report["map"] == pytest.approx(np.mean(aps), abs=1e-9)
    assert report["mated"] == len(ranks) / probes


def slow_tpir(probe, probe_ids, gallery, gallery_ids, fpir):
    """Return the rate by its definition, at the best threshold among all scores and infinity."""
    searches, best = [], 0.0
    for vector, person in zip(probe, probe_ids, strict=True):
        mates, others = [], []
        for other, name in zip(gallery, gallery_ids, strict=True):
            (mates if name == person else others).append(float(vector @ other))
        searches.append((mates, others))
    mated = [(mates, others) for mates, others in searches if mates]
    for threshold in {np.inf, *(s for pair in searches for side in pair for s in side)}:
        returned = sum(max(others, default=-np.inf) >= threshold for _, others in searches)
        if returned > fpir * len(searches) + 1e-9:
            continue
        hits = [max(mates) >= threshold for mates, _ in mated]
        hits = [
            h and f
            for h, f in zip(
                hits, first_is_a_mate(probe, probe_ids, gallery, gallery_ids), strict=True
            )
        ]
        best = max(best, np.mean(hits))
    return best


def first_is_a_mate(probe, probe_ids, gallery, gallery_ids):
    """Return for each probe with mates whether a mate is ranked first."""
    return [
        gallery_ids[int(np.argmax(gallery @ vector))] == person
        for vector, person in zip(probe, probe_ids, strict=True)
        if person in gallery_ids
    ]


@settings(deadline=None, max_examples=60)
@given(seeds, st.integers(1, 7), st.integers(1, 9), st.integers(1, 5), st.booleans())
def test_tpir_equals_slow_loop(seed, probes, templates, people, ties):
    rng = np.random.default_rng(seed)
    probe, gallery = rng.normal(size=(2, 12, 4)).astype(np.float32)
    probe, gallery = probe[:probes], gallery[:templates]
    if ties:
        probe, gallery = np.sign(probe), np.sign(gallery)
    probe_ids, gallery_ids = rng.integers(0, people, probes), rng.integers(0, people, templates)
    gallery_ids[0] = probe_ids[0]
    found = identification_per_probe(probe, probe_ids, gallery, gallery_ids)
    fpirs = (0.0, 0.1, 0.25, 0.5, 1.0)
    report = tpir_at_fpir(found, fpirs)
    assert list(report)[1] == "tpir@fpir=0.1"
    expected = [slow_tpir(probe, probe_ids, gallery, gallery_ids, fpir) for fpir in fpirs]
    np.testing.assert_allclose(list(report.values()), expected, atol=1e-12)
    whole = identification(probe, probe_ids, gallery, gallery_ids)
    assert report["tpir@fpir=1"] == whole["top@1"] >= whole["tpir@fpir=0.1"]
    with pytest.raises(UserError, match=r"between 0 and 1, not -1"):
        tpir_at_fpir(found, [-1])


def test_from_images_to_rates():
    rng = np.random.default_rng(0)
    people = rng.normal(size=(20, 16))
    template = np.repeat(np.arange(40), 5)
    embeddings = people[template // 2] + 0.3 * rng.normal(size=(200, 16))
    ids, vectors = pool_templates(embeddings, template, rng.integers(0, 3, 200))
    first, second = (side.ravel() for side in np.meshgrid(ids, ids))
    keep = first < second
    first, second = first[keep], second[keep]
    scores = pair_scores(ids, vectors, first, second)
    np.testing.assert_allclose(scores, (vectors @ vectors.T)[first, second], atol=1e-6)
    rates = tar_at_far(scores, first // 2 == second // 2)
    assert rates["tar@far=0.1"] == 1.0 and rates["tar@far=1e-06"] > 0.8
    report = identification(vectors[::2], ids[::2] // 2, vectors[1::2], ids[1::2] // 2)
    assert report["top@1"] > 0.9
    np.testing.assert_allclose(pair_scores(ids, vectors, first, second, block=7), scores, atol=1e-6)
    assert identification(
        vectors[::2], ids[::2] // 2, vectors[1::2], ids[1::2] // 2, block=7
    ) == pytest.approx(report)


def test_wrong_input():
    with pytest.raises(UserError, match="at least 1"):
        pool_templates(np.zeros((0, 3)), [], [])
    with pytest.raises(UserError, match="as many"):
        pool_templates(np.zeros((2, 3)), [1, 2], [1])
    with pytest.raises(UserError, match="NaN"):
        pool_templates([[np.nan]], [1], [1])
    for weights in ([-1.0], [np.nan], [1.0, 1.0]):
        with pytest.raises(UserError, match="1 embeddings need as many weights, all 0 or more"):
            pool_templates([[1.0]], [1], [1], weights=weights)
    with pytest.raises(UserError, match=r"no embedding: 1 template \(9\)"):
        pair_scores([1, 4], np.eye(2), [1, 4], [9, 1])
    with pytest.raises(UserError, match="0 of different people"):
        tar_at_far([0.5, 0.6], [True, True])
    with pytest.raises(UserError, match="NaN"):
        tar_at_far([0.5, np.nan], [True, False])
    with pytest.raises(UserError, match=r"between 0 and 1, not 2"):
        tar_at_far([0.5, 0.6], [True, False], [2])
    with pytest.raises(UserError, match="person id"):
        identification(np.eye(2), [1], np.eye(2), [1, 2])
    with pytest.raises(UserError, match="alike"):
        identification(np.eye(2), [1, 2], np.eye(3), [1, 2, 3])
