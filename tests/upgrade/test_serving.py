"""Searching half-migrated galleries, against loops over all items."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fct_jax.errors import UserError
from fct_jax.evaluate.nearest import best
from fct_jax.upgrade.ways import scores as spaces
from fct_jax.upgrade.ways.calibration import Calibration, Weights, calibrate
from fct_jax.upgrade.ways.serving import search


def world(n=60, queries=9, do=4, dn=6, seed=0):
    """Return gallery and queries by both models, and a sample for the calibration."""
    rng = np.random.default_rng(seed)
    sizes = {"old": (n, do), "new": (n, dn), "query_old": (queries, do), "query_new": (queries, dn)}
    made = {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    sample = rng.normal(size=(80, do)) * 2 + 1, rng.normal(size=(80, dn)) * 5
    return made, tuple(part.astype(np.float32) for part in sample), rng


def raw_score(query, item, metric):
    query, item = query.astype(np.float64), item.astype(np.float64)
    if metric == "cosine":
        return query @ item / np.linalg.norm(query) / np.linalg.norm(item)
    return -((query - item) ** 2).sum() / 2


def slow_search(way, w, sample, metric, migrated, k, weights, typical):
    """Score every item for every query by the definition, in float64."""

    def tail(scores, which):
        largest = np.sort(scores)[-10:]
        return largest.mean(), np.sqrt(largest.std() * typical[which])

    def standard(score, tail):
        return (score - tail[0]) / tail[1]

    found = []
    for q_old, q_new in zip(w["query_old"], w["query_new"], strict=True):
        old = [raw_score(q_old, item, metric) for item in sample[0]]
        new = [raw_score(q_new, item, metric) for item in sample[1]]
        t_old, t_new = tail(old, 0), tail(new, 1)
        mixed = [
            weights.fused_old * standard(a, t_old) + weights.fused_new * standard(b, t_new)
            for a, b in zip(old, new, strict=True)
        ]
        t_mixed = tail(mixed, 2)
        scores = []
        for row, done in enumerate(migrated):
            z_old = standard(raw_score(q_old, w["old"][row], metric), t_old)
            z_new = standard(raw_score(q_new, w["new"][row], metric), t_new)
            mixed = standard(weights.fused_old * z_old + weights.fused_new * z_new, t_mixed)
            if not done:
                scores.append(z_old)
            elif way == "dual":
                scores.append(weights.dual_new * z_new + weights.dual_shift)
            else:
                scores.append(weights.fused_scale * mixed + weights.fused_shift)
        order = np.argsort(-np.array(scores), kind="stable")[:k]
        found.append((order, np.array(scores)[order]))
    return found


@settings(deadline=None, max_examples=12)
@given(
    way=st.sampled_from(["dual", "fused"]),
    metric=st.sampled_from(["l2", "cosine"]),
    share=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    seed=st.integers(0, 100),
)
def test_search_is_the_definition(way, metric, share, seed):
    w, sample, rng = world(seed=seed)
    weights = Weights(1.2, -0.3, 0.7, 1.4, 0.9, 0.2)
    made = calibrate(*sample, query_old=w["query_old"], query_new=w["query_new"], metric=metric)
    made = dataclasses.replace(made, weights=weights)
    migrated = rng.random(60) < share
    scores, rows = search(
        way, w["query_old"], w["query_new"], w["old"], w["new"], migrated, 12, made
    )
    expected = slow_search(way, w, sample, metric, migrated, 12, weights, made.spread)
    for i, (order, wanted) in enumerate(expected):
        np.testing.assert_allclose(scores[i], wanted, atol=2e-4)
        # Ranks may differ if scores are nearly equal.
        assert np.mean(rows[i] == order) > 0.9


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_translated_search_is_the_definition(metric):
    w, _, rng = world()
    translated = rng.normal(size=(60, 6)).astype(np.float32)
    migrated = rng.random(60) < 0.5
    _, rows = search(
        "translated",
        None,
        w["query_new"],
        None,
        w["new"],
        migrated,
        60,
        translated=translated,
        metric=metric,
    )
    stored = np.where(migrated[:, None], w["new"], translated)
    for i, query in enumerate(w["query_new"]):
        order = np.argsort([-raw_score(query, item, metric) for item in stored], kind="stable")
        np.testing.assert_array_equal(rows[i], order)


def test_a_query_that_is_in_the_reference_is_not_its_own_neighbour(text):
    """If items serve as queries, each is calibrated on the other items."""
    old, new = (text[name][:200].astype(np.float32) for name in ("old", "new"))
    for metric in ("l2", "cosine"):
        with_it = calibrate(old, new, metric=metric)
        for row in (0, 57):
            item = np.flatnonzero(
                (
                    with_it.reference_old[:, :256] == with_it.old.items(old[row : row + 1])[:, :256]
                ).all(axis=1)
            )
            without = dataclasses.replace(
                with_it,
                reference_old=np.delete(with_it.reference_old, item, axis=0),
                reference_new=np.delete(with_it.reference_new, item, axis=0),
            )
            asked = old[row : row + 1], new[row : row + 1]
            for one, other in zip(
                with_it.standardised(*asked), without.standardised(*asked), strict=True
            ):
                np.testing.assert_allclose(one.mean, other.mean, rtol=1e-5, atol=1e-5)
                np.testing.assert_allclose(one.spread, other.spread, rtol=1e-4)


def test_ends_are_the_two_models_alone(text):
    made = calibrate(text["old"][::2], text["new"][::2])
    queries = text["query_old"], text["query_new"]
    for way, state, (query, gallery) in (
        ("dual", False, (text["query_old"], text["old"])),
        ("fused", False, (text["query_old"], text["old"])),
        ("dual", True, (text["query_new"], text["new"])),
    ):
        migrated = np.full(500, state)
        _, rows = search(way, *queries, text["old"], text["new"], migrated, 5, made)
        near = query.astype(np.float32) @ gallery.astype(np.float32).T
        assert np.mean(rows == np.argsort(-near, axis=1)[:, :5]) > 0.99  # except for equal scores


def test_blocks_own_rows_and_small_galleries(monkeypatch):
    w, sample, rng = world()
    made = calibrate(*sample)
    migrated = rng.random(60) < 0.5
    arguments = ("fused", w["query_old"], w["query_new"], w["old"], w["new"], migrated)
    whole = search(*arguments, 70, made)
    assert whole[1].shape == (9, 70)
    assert (whole[1][:, 60:] == -1).all() and np.isneginf(whole[0][:, 60:]).all()
    for line in whole[1][:, :60]:
        np.testing.assert_array_equal(np.sort(line), np.arange(60))
    own = whole[1][:, 0]
    _, rows = search(*arguments, 20, made, own=own)
    np.testing.assert_array_equal(rows, whole[1][:, 1:21])
    monkeypatch.setattr(spaces, "BLOCK", 7)
    parts = search(*arguments, 20, made)
    np.testing.assert_array_equal(parts[1], whole[1][:, :20])
    np.testing.assert_allclose(parts[0], whole[0][:, :20], rtol=1e-5)


def test_equal_scores_go_by_row():
    scores = np.array([[1.0, 2.0, 2.0, 1.0]], np.float32)
    _, rows = best(scores, np.array([[7, 9, 3, 1]]), 3)
    np.testing.assert_array_equal(rows, [[3, 9, 1]])


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_damping_takes_off_an_items_mean_score_with_its_five_nearest(metric):
    """It agrees with the definition, item by item; an item is not its own neighbour."""
    w, (sample, _), _ = world()
    gallery = np.concatenate([w["old"][:20], sample[:10]])
    plain = spaces.Space.of(sample, metric)
    damped = plain.damped(0.5, sample[:30])

    def nearness(one, other):
        return raw_score(one, other, metric)

    crowded = []
    for number, item in enumerate(gallery):
        others = [c for i, c in enumerate(sample[:30]) if i != number - 20]
        crowded.append(np.mean(sorted(nearness(item, c) for c in others)[-5:]))
    expected = np.array([[nearness(q, g) for g in gallery] for q in w["query_old"]])
    expected = expected - 0.5 * np.array(crowded)
    scores = damped.queries(w["query_old"]) @ damped.items(gallery).T
    # Offsets that are the same for all items of a query do not count.
    expected, scores = (s - s.mean(axis=1, keepdims=True) for s in (expected, scores))
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert plain.damped(0.0, sample).crowd is None


def test_scales_of_the_spaces_do_not_matter(text):
    """Scaling the new space by a hundred and shifting it changes no results, except for cosine."""
    rows = []
    for factor, shift in ((1.0, 0.0), (100.0, 5.0)):
        new, asked = (
            factor * text[name].astype(np.float32) + shift for name in ("new", "query_new")
        )
        made = calibrate(text["old"][::2], new[::2])
        migrated = np.arange(500) % 3 == 0
        found = search("fused", text["query_old"], asked, text["old"], new, migrated, 10, made)
        rows.append(found[1])
    assert np.mean(rows[0] == rows[1]) > 0.98


def test_an_ordinary_index_gives_the_same():
    """Two inner-product indexes, independent of the query, and a shift for each suffice."""
    w, sample, rng = world()
    made = calibrate(*sample)
    migrated = rng.random(60) < 0.5
    affine = made.affine(w["query_old"], w["query_new"])
    asked = made.old.queries(w["query_old"]), made.new.queries(w["query_new"])
    stored = made.old.items(w["old"]), made.new.items(w["new"])
    left = asked[0] * affine.keep[:, None] @ stored[0].T + affine.keep_shift[:, None]
    both = np.hstack([asked[0] * affine.fused_old[:, None], asked[1] * affine.fused_new[:, None]])
    done = both @ np.hstack(stored).T + affine.fused_shift[:, None]
    scores = np.where(migrated, done, left)
    _, rows = search(
        "fused", w["query_old"], w["query_new"], w["old"], w["new"], migrated, 10, made
    )
    np.testing.assert_array_equal(rows, np.argsort(-scores, axis=1)[:, :10])


def test_a_calibration_is_saved_and_read_again(text, tmp_path):
    weights = Weights(dual_new=1.5, damping=0.25)
    made = calibrate(
        text["old"][:200], text["new"][:200], metric="cosine", old_metric="l2", weights=weights
    )
    made.save(tmp_path / "c")
    again = Calibration.load(tmp_path / "c")
    assert (again.spread, again.weights) == (made.spread, made.weights)
    for name in ("old", "new"):
        one, other = (getattr(c, name).items(text[name][:9]) for c in (made, again))
        np.testing.assert_array_equal(one, other)
    one, other = (c.affine(text["query_old"], text["query_new"]) for c in (made, again))
    for a, b in zip(vars(one).values(), vars(other).values(), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(UserError, match="no calibration in"):
        Calibration.load(tmp_path)


def test_mistakes_are_one_line(text):
    old, new = text["old"], text["new"]
    with pytest.raises(UserError, match="unknown way of serving 'fusd'; did you mean 'fused'"):
        search("fusd", None, None, old, new, np.zeros(500, bool), 5)
    asked, migrated = (text["query_old"], text["query_new"]), np.zeros(500, bool)
    made = calibrate(old, new)
    for arguments, message in (
        (("dual", *asked, old, new, migrated, 5), "dual search needs a calibration"),
        (("dual", None, asked[1], old, new, migrated, 5, made), "dual search needs query_old="),
        (("dual", *asked, old, None, migrated, 5, made), "dual search needs new="),
        (("translated", *asked, old, new, migrated, 5), "translated search needs translated="),
        (("dual", *asked[::-1], old, new, migrated, 5, made), "are old and new swapped"),
        (("dual", *asked, new, old, migrated, 5, made), "are old and new swapped"),
        (("dual", *asked, old, new, 5, migrated, made), r"migrated must be \(N,\) of True"),
        (("dual", *asked, old, new, migrated.astype(int), 5, made), "it is int64"),
        (("dual", *asked, old[:9], new, migrated, 5, made), "old has 9 rows, but migrated"),
        (
            ("dual", asked[0][:9], asked[1], old, new, migrated, 5, made),
            "the numbers of queries must be equal",
        ),
        (("dual", asked[0][0], asked[1], old, new, migrated, 5, made), "must have shape"),
        (("dual", *asked, old, new, migrated, 0, made), "k must be a whole number of at least 1"),
        (("fused", *asked, old, new, migrated, 5, text), "calibration must be a Calibration"),
    ):
        with pytest.raises(UserError, match=message) as error:
            search(*arguments)
        assert "\n" not in str(error.value)
    with pytest.raises(
        UserError, match="at least 20 items embedded by both models; there are 500 old and 30 new"
    ):
        calibrate(old, new[:30])


def test_a_way_of_ones_own(text, tmp_path, monkeypatch):
    """A way takes the newcomer's path of CONTRIBUTING.md: one file, named as module:name."""
    (tmp_path / "my_ways.py").write_text(
        "from fct_jax.upgrade.ways import Mix, Way\n\n"
        'STAY = Way("stay", "keep the old index", ("old",), ("old",),'
        ' lambda asked: Mix({"old": 1.0}))\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    migrated = np.arange(500) % 2 == 0
    _, rows = search(
        "my_ways:STAY", text["query_old"], None, text["old"], None, migrated, 5, metric="cosine"
    )
    near = text["query_old"].astype(np.float32) @ text["old"].astype(np.float32).T
    assert np.mean(rows == np.argsort(-near, axis=1)[:, :5]) > 0.99
    with pytest.raises(
        UserError, match="must be a fct_jax.upgrade.ways.Way, but it is of type function"
    ):
        search("json:loads", None, None, None, None, migrated, 5)


def test_unit_vectors_are_compared_by_cosine_and_that_is_said(text, capsys):
    made = calibrate(text["old"], 3 * text["new"].astype(np.float32))
    assert (made.old.metric, made.new.metric) == ("cosine", "l2")
    said = " ".join(capsys.readouterr().err.split())
    assert "old vectors are compared by cosine (the vectors have unit length)" in said
    assert "new ones by l2 (the vectors differ from unit length)" in said
    calibrate(text["old"], text["new"], metric="l2")
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match="unknown metric 'l3'"):
        calibrate(text["old"], text["new"], metric="l3")
