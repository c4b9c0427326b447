"""k-means, the common space in closed form and trained, and Procrustes maps of cells."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fct_jax.errors import UserError
from fct_jax.upgrade.maps import common_space, common_space_training, local
from fct_jax.upgrade.maps.kmeans import kmeans, nearest_centre

seeds = st.integers(0, 10_000)
few = settings(max_examples=25, deadline=None)


def turn(rng, dim):
    return np.linalg.qr(rng.normal(size=(dim, dim)))[0]


@given(seeds, st.integers(1, 12), st.integers(1, 40), st.sampled_from([np.float32, np.float64]))
@few
def test_kmeans_ends_where_nothing_moves(seed, count, rows, dtype):
    x = np.random.default_rng(seed).normal(size=(rows, 3)).astype(dtype)
    found = kmeans(x, count, seed=seed)
    assert len(found.centres) == min(count, rows)
    assert found.sizes.sum() == rows
    assert found.sizes.min() > 0
    for cell, centre in enumerate(found.centres):
        members = x[found.assigned == cell].astype(np.float64)
        np.testing.assert_allclose(centre, members.mean(axis=0), atol=1e-5)
    far = np.linalg.norm(x[:, None].astype(np.float64) - found.centres, axis=2)
    own = far[np.arange(rows), found.assigned]
    # float32 distances err by a few times 1e-7, relative to squared lengths of about 10.
    assert np.all(own**2 <= far.min(axis=1) ** 2 + 1e-4)
    assert np.array_equal(kmeans(x, count, seed=seed).assigned, found.assigned)


def test_kmeans_finds_clear_clusters_and_keeps_digits_far_from_zero():
    rng = np.random.default_rng(0)
    middles = np.array([[0.0, 0], [10, 0], [0, 10]])
    labels = np.repeat(np.arange(3), 30)
    x = (middles[labels] + rng.normal(size=(90, 2)) * 0.1 + 1e4).astype(np.float32)
    assigned = kmeans(x, 3, seed=1).assigned
    assert all(len(set(assigned[labels == c])) == 1 for c in range(3))
    assert len(set(assigned)) == 3


def test_kmeans_of_few_different_vectors_and_of_a_start():
    same = np.ones((5, 2))
    assert len(kmeans(same, 3).centres) == 1
    two = np.array([[0.0, 0], [0, 0], [1, 1]])
    assert sorted(kmeans(two, 3).centres[:, 0].tolist()) == [0, 1]
    # The third centre starts without any vectors, and takes the furthest one.
    x = np.array([[0.0], [1.0], [10.0], [14.0]])
    found = kmeans(x, 3, start=np.array([[0.0], [10.0], [500.0]]))
    assert found.sizes.min() == 1
    assert nearest_centre(x, found.centres)[0].tolist() == found.assigned.tolist()
    for wrong in ({"count": 0}, {"count": 2, "start": np.zeros((3, 1))}):
        with pytest.raises(UserError):
            kmeans(x, **wrong)
    with pytest.raises(UserError, match="NaN"):
        kmeans(np.array([[np.nan]]), 1)


@given(seeds, st.integers(1, 4), st.integers(1, 4), st.booleans())
@few
def test_the_backward_map_is_orthogonal_and_beats_any_other(seed, do, dn, proper):
    rng = np.random.default_rng(seed)
    new, old = rng.normal(size=(12, dn)), rng.normal(size=(12, do))
    for tail in common_space.TAILS:
        found = common_space.closed_form_backward(new, old, proper=proper, tail=tail)
        np.testing.assert_allclose(found @ found.T, np.eye(dn), atol=1e-12)
        if proper:
            assert np.linalg.det(found) > 0
        if tail == "zero" or dn <= do:  # a global minimum
            error = common_space.alignment_error(new @ found, old, tail)
            for _ in range(20):
                other = turn(rng, dn)
                if proper and np.linalg.det(other) < 0:
                    other[:, 0] *= -1
                assert error <= common_space.alignment_error(new @ other, old, tail) + 1e-9


@pytest.mark.slow
@given(seeds)
@few
def test_a_free_tail_never_fits_worse_and_finds_an_exact_map(seed):
    rng = np.random.default_rng(seed)
    new = rng.normal(size=(30, 5))
    old = rng.normal(size=(30, 2))
    free, zero = (
        common_space.alignment_error(
            new @ common_space.closed_form_backward(new, old, tail=tail), old
        )
        for tail in ("free", "zero")
    )
    assert free <= zero + 1e-9
    exact = (new @ turn(rng, 5))[:, :2]
    found = common_space.closed_form_backward(new, exact, tolerance=0, iterations=3000)
    assert common_space.alignment_error(new @ found, exact) < 1e-6 * np.sum(exact**2)


def test_closed_form_space_of_a_true_rotation_is_exact_for_all_three_kinds_of_item():
    rng = np.random.default_rng(0)
    new = rng.normal(size=(200, 6))
    old = new @ turn(rng, 6)
    space = common_space.fit_closed_form(old, new, penalty=0)
    np.testing.assert_allclose(space.moved(new), old, atol=1e-10)
    np.testing.assert_allclose(space.translated(old), old, atol=1e-10)


@pytest.mark.parametrize(("do", "dn"), [(4, 7), (7, 4)])
def test_unequal_sizes_are_compared_on_what_both_have(do, dn):
    rng = np.random.default_rng(1)
    new, old = rng.normal(size=(50, dn)), rng.normal(size=(50, do))
    space = common_space.fit_closed_form(old, new)
    moved, translated = space.moved(new), space.translated(old)
    assert moved.shape == translated.shape == (50, dn)
    a, b = common_space.comparable(moved, old)
    assert a.shape == b.shape == (50, 4)
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1)
    # New vectors keep their mutual distances.
    np.testing.assert_allclose(moved @ moved.T, new @ new.T, atol=1e-10)


def test_forward_maps_of_fewer_pairs_than_dimensions():
    rng = np.random.default_rng(2)
    old, target = rng.normal(size=(4, 10)), rng.normal(size=(4, 3))
    exact = common_space.fit_forward(old, target, penalty=0)
    np.testing.assert_allclose(exact(old), target, atol=1e-9)
    for penalty in (None, 0.1):
        assert np.isfinite(common_space.fit_forward(old, target, penalty=penalty)(old)).all()
    shrunk = common_space.fit_forward(old, target, penalty=1e9)
    np.testing.assert_allclose(shrunk(old), np.tile(target.mean(axis=0), (4, 1)), atol=1e-6)
    with pytest.raises(UserError, match="at least 2 pairs"):
        common_space.fit_forward(old[:1], target[:1])
    with pytest.raises(UserError, match="at least 0"):
        common_space.fit_forward(old, target, penalty=-1)
    with pytest.raises(UserError, match="must agree"):
        common_space.fit_forward(old, target[:3])
    with pytest.raises(UserError, match="unknown tail"):
        common_space.closed_form_backward(target, old, tail="fre")
    with pytest.raises(UserError, match="3 parameters"):
        common_space.skew_symmetric(np.zeros(4), 3)


def worlds(seed=0, count=240, do=5, dn=5):
    """Return clustered old and new vectors, related by a rotation and a little noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 6
    new = rng.normal(size=(6, dn))[labels] + 0.3 * rng.normal(size=(count, dn))
    old = (new @ turn(rng, dn))[:, :do] + 0.1 * rng.normal(size=(count, min(do, dn)))
    return old.astype(np.float32), new.astype(np.float32), labels


@pytest.mark.slow
def test_strict_training_from_the_identity_reaches_the_best_rotation():
    old, new, _ = worlds()
    best = common_space.closed_form_backward(new, old)
    if np.linalg.det(best) < 0:  # out of reach of exp(skew)
        old = old * np.array([-1, 1, 1, 1, 1], np.float32)
        best = common_space.closed_form_backward(new, old)
    settings_ = common_space_training.Settings(
        factors=(0, 1, 0), start="identity", epochs=150, batch_size=240, learning_rate=0.03
    )
    space, history = common_space_training.train_common_space(old, new, settings=settings_)
    np.testing.assert_allclose(space.backward @ space.backward.T, np.eye(5), atol=1e-12)
    reached = common_space.alignment_error(new @ space.backward, old)
    wanted = common_space.alignment_error(new @ best, old)
    start = common_space.alignment_error(new, old)
    assert wanted - 1e-6 <= reached < wanted + 0.01 * (start - wanted)
    assert history.shape == (150, len(common_space_training.PARTS))


@pytest.mark.slow
@pytest.mark.parametrize(("do", "dn"), [(5, 5), (3, 5), (5, 3)])
@pytest.mark.parametrize("kind", common_space_training.KINDS)
@pytest.mark.parametrize("labelled", [True, False])
def test_training_lowers_its_own_loss(do, dn, kind, labelled):
    old, new, labels = worlds(do=min(do, dn), dn=dn)
    if do > dn:
        old = np.concatenate([old, old[:, : do - dn] ** 2], axis=1)
    settings_ = common_space_training.Settings(kind=kind, epochs=15, batch_size=80, limit=0.5)
    space, history = common_space_training.train_common_space(
        old, new, labels if labelled else None, settings_
    )
    total = history[:, :3].sum(axis=1) + history[:, 3]
    assert total[-1] < total[0]
    assert space.backward.shape == (dn, dn)
    assert space.forward.shape == (do, dn)
    off = np.linalg.norm(space.backward @ space.backward.T - np.eye(dn))
    if kind == "strict":
        assert off < 1e-10
        assert not space.backward_bias.any()
    again, _ = common_space_training.train_common_space(
        old, new, labels if labelled else None, settings_
    )
    for first, second in zip(dataclasses.astuple(space), dataclasses.astuple(again), strict=True):
        assert np.array_equal(first, second)


@pytest.mark.slow
def test_a_limit_holds_a_relaxed_map_near_orthogonal():
    old, new, labels = worlds()
    off = {}
    for limit in (0.2, 100.0):
        settings_ = common_space_training.Settings(
            kind="relaxed", limit=limit, steepness=20, epochs=60, batch_size=120, learning_rate=0.02
        )
        space, _ = common_space_training.train_common_space(old, new, labels, settings_)
        off[limit] = np.linalg.norm(space.backward @ space.backward.T - np.eye(5))
    assert off[0.2] < off[100.0] / 2


def test_mistakes_in_training_a_common_space():
    old, new, labels = worlds(count=12)
    train = common_space_training.train_common_space
    make = common_space_training.Settings
    with pytest.raises(UserError, match="did you mean 'strict'"):
        train(old, new, settings=make(kind="strickt"))
    with pytest.raises(UserError, match="unknown start"):
        train(old, new, settings=make(start="zero"))
    with pytest.raises(UserError, match="at least 2"):
        train(old, new[:5])
    with pytest.raises(UserError, match="labels must have shape"):
        train(old, new, labels[:5])


def slow_procrustes(x, y, scale):
    """Return the best map by the closed form of the definition, without the code's short cuts."""
    mx, my = x.mean(axis=0), y.mean(axis=0)
    u, s, vt = np.linalg.svd((x - mx).T @ (y - my))
    size = min(x.shape[1], y.shape[1])
    rotation = u[:, :size] @ vt[:size]
    turned = (x - mx) @ rotation
    factor = {
        "least squares": s.sum() / (turned**2).sum(),
        "norm ratio": np.sqrt(((y - my) ** 2).sum() / (turned**2).sum()),
        "none": 1.0,
    }[scale]
    return lambda v: (v - mx) @ rotation * factor + my


@given(seeds, st.integers(1, 4), st.integers(1, 4), st.sampled_from(sorted(local.SCALES)))
@few
def test_procrustes_is_its_definition(seed, do, dn, scale):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(15, do)) + 3, rng.normal(size=(15, dn)) - 2
    found = local.procrustes(x, y, scale=scale)
    np.testing.assert_allclose(found(x), slow_procrustes(x, y, scale)(x), atol=1e-9)


def test_procrustes_of_one_pair_and_of_equal_vectors():
    one = local.procrustes(np.ones((1, 3)), np.full((1, 3), 5.0))
    np.testing.assert_allclose(one(np.ones((1, 3))), np.full((1, 3), 5.0))
    assert one.scale == 1
    with pytest.raises(UserError, match="unknown scale"):
        local.procrustes(np.ones((1, 3)), np.ones((1, 3)), scale="norms")


def slow_local(found, x):
    """Map every row on its own, by the formula of the gating."""
    mapped = []
    for row in x:
        far = ((row - found.centres) ** 2).sum(axis=1)
        if found.bandwidth is None:
            mapped.append(found.cells[int(np.argmin(far))](row[None])[0])
            continue
        weight = np.exp(-(far - far.min()) / (2 * found.bandwidth**2))
        weight /= weight.sum()
        mapped.append(
            sum(w * cell(row[None])[0] for w, cell in zip(weight, found.cells, strict=True))
        )
    return np.array(mapped)


@given(seeds, st.sampled_from(local.GATINGS), st.integers(1, 6), st.floats(0, 4))
@few
def test_a_local_map_is_the_loop_over_rows(seed, gating, cells, enough):
    rng = np.random.default_rng(seed)
    old, new = rng.normal(size=(60, 3)), rng.normal(size=(60, 4))
    found = local.fit_local(old, new, cells=cells, gating=gating, enough=enough, seed=seed)
    x = rng.normal(size=(9, 3))
    # Cells with less than a millionth of the weight are left out.
    np.testing.assert_allclose(found(x), slow_local(found, x), atol=1e-4)
    np.testing.assert_allclose(found.shares(x).sum(axis=1), 1)
    assert found(x[:0]).shape == (0, 4)


def bent(rng, count):
    """Return old vectors in two clouds, and new ones, each cloud with its own rotation."""
    side = rng.integers(0, 2, count)
    old = rng.normal(size=(count, 4)) + 20 * side[:, None]
    turns = np.array([turn(rng, 4), turn(rng, 4)])
    return old, np.einsum("nd,nde->ne", old, turns[side]) * 1.5


def test_cells_fit_what_no_single_rotation_can():
    old, new = bent(np.random.default_rng(0), 400)
    whole = local.procrustes(old, new)
    for gating in local.GATINGS:
        found = local.fit_local(old, new, cells=2, gating=gating)
        errors = [np.abs(f(old) - new).max() for f in (whole, found)]
        assert errors[1] < 1e-6 < errors[0]


def test_the_number_of_cells_follows_the_pairs_and_small_cells_follow_the_whole():
    rng = np.random.default_rng(1)
    old, new = bent(rng, 400)
    assert len(local.fit_local(old, new, pairs_per_dim=4).cells) == 400 // 16
    few_pairs = local.fit_local(old[:3], new[:3])
    assert len(few_pairs.cells) == 1
    tiny = local.fit_local(old[:40], new[:40], cells=20)
    for cell, size in zip(tiny.cells, tiny.sizes, strict=True):
        assert (cell is tiny.whole) == (size < local.FEWEST)
    # With noise, a cell that is shrunk towards the whole translates unseen items better than one
    # that is not: its own few pairs do not determine most of its rotation.
    dim = 12
    wide = rng.normal(size=(2060, dim))
    target = wide @ turn(rng, dim) + 0.5 * rng.normal(size=(2060, dim))
    errors = [
        np.square(
            local.fit_local(wide[:60], target[:60], cells=6, enough=enough)(wide[60:]) - target[60:]
        ).mean()
        for enough in (0, 4)
    ]
    assert errors[1] < errors[0]


def test_mistakes_in_a_local_map():
    x = np.ones((3, 2))
    with pytest.raises(UserError, match="unknown gating 'sft'; did you mean 'soft'"):
        local.fit_local(x, x, gating="sft")
    with pytest.raises(UserError, match="at least 1 cell"):
        local.fit_local(x, x, cells=0)
    with pytest.raises(UserError, match="must agree"):
        local.fit_local(x, x[:2])
    assert np.isfinite(local.fit_local(x, x, gating="soft")(x)).all()
