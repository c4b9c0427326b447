"""Each row of the table of ways, in assess, plan, apply, status and search; or one clear line."""

import dataclasses
import functools

import numpy as np
import pytest
import tiny_galleries as tiny

from fct_jax.errors import UserError
from fct_jax.evaluate.distances import unit_rows
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade import Upgrade, assess, fit
from fct_jax.upgrade.maps.common_space import closed_form_turn
from fct_jax.upgrade.maps.functions import Common
from fct_jax.upgrade.maps.map import Map
from fct_jax.upgrade.ways import WAYS
from fct_jax.upgrade.ways.calibration import calibrate
from fct_jax.upgrade.ways.serving import search

COUNT = 160


@functools.cache
def the_map():
    """Return a map that was fitted on other items."""
    _, old, new = tiny.vectors(200, seed=5, noise=0.5)
    return fit(unit_rows(old), unit_rows(new), method="ridge", metric="cosine")


@functools.cache
def the_relaxed_map():
    """Return the same map with a common space whose backward map is no rotation."""
    plain = the_map()
    dim = plain.dim_out
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(dim, dim)))[0]
    function = Common(**plain.function.arrays(), backward=turn + 0.05, backward_bias=turn[0] / 9)
    return Map(plain.description, function, plain.uncertainty, plain.known, plain.fitted)


@pytest.fixture(scope="module")
def made():
    ids, old, new = tiny.vectors(COUNT, noise=0.5)
    return ids, *(unit_rows(part).astype(np.float32) for part in (old, new))


@pytest.fixture(scope="module")
def assessment(made):
    _, old, new = made
    rng = np.random.default_rng(1)
    asked = [
        unit_rows(part[:60] + 0.1 * rng.standard_normal((60, part.shape[1]))) for part in (old, new)
    ]
    return assess(
        the_relaxed_map(), old, new, query_old=asked[0], query_new=asked[1], judged=np.arange(60),
        shares=(0.5,), resamples=50,
    )  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
def test_every_way_is_assessed(assessment, name):
    shares = {point.share for point in assessment.points if point.way == name}
    assert shares == ({0.0, 0.5, 1.0} if WAYS[name].done is not None else {0.0})


@pytest.mark.parametrize("name", WAYS)
def test_every_way_is_searched(made, name):
    _, old, new = made
    migrated = np.arange(COUNT) % 2 == 0
    turn = closed_form_turn(new, old)
    if WAYS[name].needs_backward:
        old = turn.asked(new, old.shape[1])  # an old model that the common space explains
    scores, rows = search(
        name, old[:9], new[:9], old, new, migrated, 5, calibrate(old, new, metric="cosine"),
        translated=new, metric="cosine", query_bridged=old[:9], backward=turn,
    )  # fmt: skip
    assert rows.shape == (9, 5) and (np.diff(scores, axis=1) <= 0).all() and (rows >= 0).all()
    # Each query is an item, and every way finds it.
    assert (rows == np.arange(9)[:, None]).any(axis=1).all()


def write_probe(folder, made, both=True, count=80):
    """Write all items, and queries near the first ones with the item that each seeks."""
    ids, old, new = made
    rng = np.random.default_rng(4)
    near = [
        unit_rows(part[:count] + 0.3 * rng.standard_normal((count, part.shape[1])))
        for part in (old, new)
    ]
    EmbeddingSet.of(new, ids, meta={"metric": "cosine"}).write(folder / "new")
    EmbeddingSet.of(near[1].astype(np.float32)).write(folder / "query")
    if both:
        EmbeddingSet.of(near[0].astype(np.float32)).write(folder / "query_old")
    np.save(folder / "relevant.npy", ids[:count])


@pytest.mark.parametrize("name", WAYS)
def test_every_way_is_planned_applied_and_measured(made, tmp_path, name):
    ids, old, new = made
    EmbeddingSet.of(old, ids, meta={"metric": "cosine"}).write(tmp_path / "old")
    write_probe(tmp_path / "probe", made)
    upgrade, mapping = Upgrade(tmp_path / "work"), the_relaxed_map()
    wanted = {"map": mapping, "gallery": tmp_path / "old", "probe": tmp_path / "probe"}
    if not WAYS[name].reembeds:
        with pytest.raises(UserError, match=f"serve={name} re-embeds nothing") as raised:
            upgrade.plan(**wanted, serve=name)
        assert "\n" not in str(raised.value)
        return
    plan = upgrade.plan(**wanted, serve=name)
    quality = plan.description["forecast"]["quality"]
    assert plan.description["serve"] == name and len(plan) == COUNT
    assert all(0 < q < 1 for q in quality) and len(set(quality)) > 1  # new vectors have an effect
    place = {item: row for row, item in enumerate(ids.tolist())}
    upgrade.apply(mapping, reembed=lambda some: new[[place[i] for i in np.asarray(some).tolist()]])
    status = upgrade.status(probe=tmp_path / "probe")
    assert status.way == name and status.measured == pytest.approx(quality[-1], abs=1e-6)


def test_a_way_without_old_queries_in_the_probe_is_one_line(made, tmp_path):
    ids, old, _ = made
    EmbeddingSet.of(old, ids, meta={"metric": "cosine"}).write(tmp_path / "old")
    write_probe(tmp_path / "probe", made, both=False)
    for name in ("fused", "union_cascade"):
        with pytest.raises(UserError, match=f"serve={name} queries both models"):
            Upgrade(tmp_path / name).plan(
                the_map(), tmp_path / "old", probe=tmp_path / "probe",
                serve=name,
            )  # fmt: skip


def test_a_row_says_what_it_is():
    for name, way in WAYS.items():
        assert way.name == name and way.text and way.cost
        assert way.reembeds or not way.orders
        for variant in way.all_variants():
            assert dataclasses.replace(variant, settings=way.settings) == way


def test_a_name_among_the_settings_decides_which_others_there_are():
    blend, cascade = WAYS["blend"], WAYS["cascade"]
    assert blend.having(weight=0.3).settings == {"kind": "slerp", "weight": 0.3}
    summed = blend.having(kind="sum")
    assert summed.settings == {"kind": "sum", "weight": 0.5}
    assert summed.having(weight=0.25).settings == {"kind": "sum", "weight": 0.25}
    each = blend.having(kind="per-query", bias=1.0, slope=2.0)
    assert each.settings == {"kind": "per-query", "bias": 1.0, "slope": 2.0}
    assert set(blend.having(kind="per-query").settings) == {"kind", "bias", "slope"}
    assert cascade.having(score="new").settings == {"depth": 100, "score": "new"}
    assert cascade.having(depth=7).settings == {"depth": 7, "score": "sum"}
    with pytest.raises(UserError, match="blend has no kind with all of weight, bias"):
        blend.having(weight=0.5, bias=1.0)


@pytest.mark.parametrize("name", [name for name in WAYS if WAYS[name].reranked is not None])
def test_a_depth_beyond_the_gallery_is_the_whole_gallery(made, name):
    _, old, new = made
    found = [
        search(
            name, old[:9], new[:9], old, new, np.ones(COUNT, bool), 5,
            calibrate(old, new, metric="cosine"), translated=new, metric="cosine",
            settings={"depth": depth, "score": "new"},
        )
        for depth in (COUNT, 100 * COUNT)
    ]  # fmt: skip
    np.testing.assert_array_equal(found[0][1], found[1][1])
    # All candidates have their new vectors: the result is the new model's own ranking.
    assert (found[0][1] == np.argsort(-new[:9] @ new.T, axis=1, kind="stable")[:, :5]).all()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("blend", {"weight": 1.5}, "between 0 and 1, not 1.5"),
        ("blend", {"kind": "sum", "weight": -0.1}, "between 0 and 1, not -0.1"),
        ("blend", {"kind": "slurp"}, "unknown kind of blend 'slurp'; did you mean 'slerp'"),
        ("cascade", {"depth": 0}, "depth must be at least 1, not 0"),
        ("cascade", {"score": "sun"}, "unknown score of a cascade 'sun'; did you mean 'sum'"),
        ("fused", {"depth": 5}, "unknown setting of fused 'depth'"),
    ],
)
def test_settings_out_of_range_are_one_line(made, name, settings, message):
    _, old, new = made
    with pytest.raises(UserError, match=message):
        search(
            name, old[:9], new[:9], old, new, np.ones(COUNT, bool), 5,
            calibrate(old, new, metric="cosine"), query_bridged=old[:9], settings=settings,
        )  # fmt: skip
