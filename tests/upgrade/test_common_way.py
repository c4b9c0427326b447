"""The ways of the common space: B(new) searches untouched, translated and new items alike."""

import numpy as np
import pytest

from fct_jax.errors import UserError
from fct_jax.evaluate.distances import unit_rows
from fct_jax.evaluate.orders import Items, find_order
from fct_jax.upgrade import assess, fit
from fct_jax.upgrade.maps.backward import Backward
from fct_jax.upgrade.maps.common_space import closed_form_turn
from fct_jax.upgrade.maps.functions import Common
from fct_jax.upgrade.maps.kmeans import kmeans
from fct_jax.upgrade.maps.loading import load_map
from fct_jax.upgrade.maps.map import Map
from fct_jax.upgrade.ways.serving import search

N, QUERIES = 120, 30


def vectors(do, dn, seed=0):
    """Return unit old and new vectors of N items and some queries near the first ones."""
    rng, models = np.random.default_rng(seed), np.random.default_rng(9)
    latent = rng.normal(size=(N, 6))
    latent = np.concatenate([latent, latent[:QUERIES] + 0.3 * rng.normal(size=(QUERIES, 6))])
    sides = (
        latent @ models.normal(size=(6, d)) + 0.5 * rng.normal(size=(len(latent), d))
        for d in (do, dn)
    )
    return [unit_rows(side).astype(np.float32) for side in sides]


def relaxed(dim):
    """Return an affine backward map that is no rotation."""
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    return Backward(turn + 0.1 * rng.normal(size=(dim, dim)), 0.2 * rng.normal(size=dim))


def cosines(a, b):
    """Return cosines of each pair of rows by a loop."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.array([[x @ y / np.sqrt((x @ x) * (y @ y)) for y in b] for x in a])


def common_map(do, dn, backward=None):
    """Return a map whose common space has this backward map, with vectors it was not fitted on."""
    old, new = vectors(do, dn, seed=5)
    plain = fit(old, new, method="ridge", metric="cosine")
    backward = backward or relaxed(dn)
    function = Common(
        **plain.function.arrays(), backward=backward.weight, backward_bias=backward.bias
    )
    return Map({**plain.description, "method": "common_relaxed"}, function, plain.uncertainty)


@pytest.mark.parametrize(("do", "dn"), [(8, 8), (6, 9), (9, 6)])
@pytest.mark.parametrize("kind", ["closed form", "relaxed"])
def test_any_mixture_of_three_kinds_of_items_is_one_ranking(kind, do, dn):
    old, new = vectors(do, dn)
    old, query, new = old[:N], new[N:], new[:N]
    backward = closed_form_turn(new, old) if kind == "closed form" else relaxed(dn)
    translated = unit_rows(new + 0.2 * np.flip(new)).astype(np.float32)
    moved = query @ backward.weight + backward.bias
    width = len(backward.bias)
    cut = np.pad(moved[:, :do], ((0, 0), (0, max(0, do - width))))
    expected = np.hstack(
        [
            cosines(cut, old[:40]),
            cosines(moved, translated[40:80] @ backward.weight + backward.bias),
            cosines(moved, new[80:] @ backward.weight + backward.bias),
        ]
    )
    done = np.arange(80) >= 40  # the last 40 items of each search are re-embedded
    given = {"backward": backward, "metric": "cosine"}
    first, last = np.r_[:40, 80:N], np.r_[40:80, 80:N]
    scores = np.full((QUERIES, N), np.nan)
    for name, rows in (("common", first), ("common_translated", last)):
        found, place = search(
            name, None, query, old[rows], new[rows], done, 80, translated=translated[rows], **given
        )
        np.put_along_axis(scores, rows[place], found, axis=1)
    np.testing.assert_allclose(scores, expected, atol=1e-6)


@pytest.mark.parametrize("rotates", [False, True])
def test_every_share_of_an_assessment_is_a_plain_simulation(rotates):
    old, new = vectors(7, 9)
    backward = closed_form_turn(new[:N], old[:N]) if rotates else relaxed(9)
    mapping = common_map(7, 9, backward)
    made = assess(
        mapping, old[:N], new[:N], query_old=old[N:], query_new=new[N:], judged=np.arange(QUERIES),
        ways=("common", "common_translated"), orders=("random", "class_mean"), shares=(0.5,),
        depth=N, resamples=20,
    )  # fmt: skip
    translated, _ = mapping.transform(old[:N])
    moved = [part @ backward.weight + backward.bias for part in (new[N:], new[:N], translated)]
    after = cosines(moved[0], moved[1])
    before = {
        "common": cosines(moved[0][:, :7], old[:N]),
        "common_translated": cosines(moved[0], moved[2]),
    }
    known = Items(N, 0, "cosine", transformed=translated)
    points = [p for p in made.points if p.way in before]
    # A rotation makes the second way the same as "translated", so it is left out.
    assert len(points) == (1 if rotates else 2) * 2 * 3
    if rotates:
        assert any("common_translated; with a rotation it is" in note for note in made.notes)
    for point in points:
        migrated = np.zeros(N, bool)
        migrated[find_order(point.order).rank(known)[: int(point.share * N)]] = True
        scores = np.where(migrated, after, before[point.way])
        own = scores[np.arange(QUERIES), np.arange(QUERIES)]
        ranks = 1 + (scores > own[:, None]).sum(axis=1)
        assert point.values["mrr"] == pytest.approx(np.mean(1 / ranks), abs=1e-6), point


def test_class_mean_with_cells_is_its_formula():
    rng = np.random.default_rng(2)
    moved = rng.normal(size=(300, 5)).astype(np.float32)
    found = find_order("class_mean").rank(Items(300, 3, transformed=moved))
    rows = np.sort(np.random.default_rng(3).permutation(300)[: 4 * 64])  # 300 // 64 cells
    centres = kmeans(moved[rows], 4, seed=3).centres
    cell = [int(np.argmin([np.sum((x - c) ** 2) for c in centres])) for x in moved]
    far = []
    for x, c in zip(moved, cell, strict=True):
        mean = np.mean([y for y, d in zip(moved, cell, strict=True) if d == c], axis=0)
        far.append(float(np.linalg.norm(x - mean)))
    assert found.tolist() == sorted(range(300), key=lambda i: -far[i])


def test_a_map_keeps_its_common_space(tmp_path):
    made = common_map(7, 9)
    made.save(tmp_path / "map")
    again = load_map(tmp_path / "map")
    assert again.fingerprint == made.fingerprint and not again.backward.rotates
    _, new = vectors(7, 9)
    np.testing.assert_allclose(again.backward.moved(new), made.backward.moved(new), atol=1e-6)
    assert common_map(7, 9, Backward(np.eye(9), np.zeros(9))).backward.rotates
    old, new = vectors(7, 9)
    assert fit(old, new, method="ridge").backward is None


@pytest.mark.slow
@pytest.mark.parametrize("method", ["common", "common_relaxed"])
@pytest.mark.parametrize("labelled", [False, True])
def test_trained_spaces_are_assessed_by_their_own_map(method, labelled):
    old, new = vectors(7, 9)
    labels = np.arange(len(old)) % 4 if labelled else None
    made = fit(old, new, method=method, labels=labels, epochs=3, metric="cosine")
    assert made.method == method and made.backward.rotates == (method == "common")
    found = assess(
        made, *vectors(7, 9, seed=4), resamples=20, shares=(), metric="cosine",
        ways=("common", "translated"),
    )  # fmt: skip
    assert {p.way for p in found.points} >= {"common", "translated"}


def test_mistakes_are_one_line():
    old, new = vectors(7, 9)
    done = np.ones(N, bool)
    given = None, new[N:], old[:N], new[:N], done, 5
    for name, options, message in (
        ("common", {}, "common search needs backward="),
        ("common", {"backward": relaxed(8)}, r"takes new vectors \(N, 8\), not \(30, 9\)"),
        ("common_translated", {"backward": relaxed(9)}, "common_translated search needs transl"),
    ):
        with pytest.raises(UserError, match=message):
            search(name, *given, metric="cosine", **options)
    with pytest.raises(UserError, match="common search needs query_new="):
        search("common", None, None, *given[2:], metric="cosine", backward=relaxed(9))
    with pytest.raises(UserError, match="a common space is compared by cosine"):
        assess(
            common_map(7, 9), old[:N] * 2, new[:N] * 2, query_old=old[N:], query_new=new[N:],
            judged=np.arange(QUERIES), ways=("common",), metric="l2",
        )  # fmt: skip
