"""The newer losses against plain loops, on batches of all kinds, and at their edges."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fct_jax import losses
from fct_jax.errors import UserError
from fct_jax.losses.class_means import class_mean_alignment, class_mean_cross_entropy
from fct_jax.storage.class_statistics import class_statistics

seeds = st.integers(0, 10_000)
few = settings(max_examples=15, deadline=None)


def unit(x):
    return x / max(math.sqrt(sum(x * x)), 1e-12)


def softmax_loss(logits, target):
    top = max(logits)
    return top + math.log(sum(math.exp(value - top) for value in logits)) - logits[target]


def smoothed_loss(logits, target, smoothing):
    spread = sum(softmax_loss(logits, c) for c in range(len(logits))) / len(logits)
    return (1 - smoothing) * softmax_loss(logits, target) + smoothing * spread


def agree(got, wanted):
    """Assert equality of float64 sums of tens in different orders, up to a few rounding errors."""
    np.testing.assert_allclose(np.asarray(got), wanted, rtol=1e-10, atol=1e-10)


def all_finite(tree):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def batch(seed, count=7, dim=4, classes=3):
    rng = np.random.default_rng(seed)
    return rng, rng.normal(size=(count, dim)), rng.integers(0, classes, count)


@given(seeds, st.floats(0.05, 2))
@few
def test_multi_positive_contrastive_is_the_loop(seed, temperature):
    rng, anchors, labels = batch(seed)
    candidates, theirs = rng.normal(size=(5, 4)), rng.integers(0, 3, 5)
    wanted = []
    for anchor, label in zip(anchors, labels, strict=True):
        logits = [unit(anchor) @ unit(c) / temperature for c in candidates]
        positives = [j for j in range(5) if theirs[j] == label]
        total = sum(softmax_loss(logits, j) for j in positives)
        wanted.append(total / len(positives) if positives else 0.0)
    with jax.enable_x64(True):
        got = losses.multi_positive_contrastive(anchors, candidates, labels, theirs, temperature)
        agree(got, wanted)


def test_an_anchor_without_positives_has_no_gradient():
    anchors = jnp.eye(3)
    labels = jnp.array([0, 1, 2])

    def loss(x):
        return losses.multi_positive_contrastive(x, jnp.eye(3), labels, jnp.array([0, 0, 2]))[1]

    value, slope = jax.jit(jax.value_and_grad(loss))(anchors)
    assert value == 0
    assert not slope.any()


@given(seeds, st.floats(0, 3), st.floats(0.1, 20))
@few
def test_lambda_orthogonality_is_its_formula_for_either_side(seed, limit, steepness):
    weight = np.random.default_rng(seed).normal(size=(4, 4))
    norm = math.sqrt(sum(v * v for v in (weight @ weight.T - np.eye(4)).ravel()))
    with jax.enable_x64(True):
        got = losses.lambda_orthogonality(weight, limit, steepness)
        agree(got, norm / (1 + math.exp(-steepness * (norm - limit))))
        agree(losses.lambda_orthogonality(weight.T, limit, steepness), got)


def test_lambda_orthogonality_refuses_other_shapes():
    with pytest.raises(UserError, match=r"square, not \(2, 3\)"):
        losses.lambda_orthogonality(jnp.ones((2, 3)))


@given(seeds, st.sampled_from([0.0, 0.1]))
@few
def test_class_mean_losses_leave_out_classes_without_a_mean(seed, smoothing):
    rng, embedding, labels = batch(seed, classes=6)  # class 4 has no mean, 5 is beyond the means
    means = rng.normal(size=(5, 4))
    means[4] = 0
    entropy, aligned = [], []
    for f, y in zip(embedding, labels, strict=True):
        known = y < 4
        logits = [unit(f) @ means[c] for c in range(4)]
        entropy.append(smoothed_loss(logits, y, smoothing) if known else 0.0)
        aligned.append(1 - unit(f) @ unit(means[y]) if known else 0.0)
    with jax.enable_x64(True):
        agree(class_mean_cross_entropy(embedding, labels, means, smoothing), entropy)
        agree(class_mean_alignment(embedding, labels, means), aligned)


def test_class_means_are_those_of_class_statistics():
    _, embedding, labels = batch(3, count=20)
    means = class_statistics(embedding.astype(np.float32), labels, 3).center
    for c in range(3):
        members = np.array([unit(f) for f in embedding[labels == c]])
        np.testing.assert_allclose(means[c], members.mean(axis=0), atol=1e-6)


@given(seeds)
@few
def test_oca_is_the_loop(seed):
    rng, z, labels = batch(seed, dim=6)
    means, logits = rng.normal(size=(3, 4)), rng.normal(size=(7, 3))
    wanted = ([], [], [])
    for f, y, new in zip(z[:, :4], labels, logits, strict=True):
        wanted[0].append(smoothed_loss(list(new), y, 0.1))
        wanted[1].append(smoothed_loss([unit(f) @ m for m in means], y, 0.1))
        wanted[2].append(1 - unit(f) @ unit(means[y]))
    with jax.enable_x64(True):
        parts = losses.oca(logits, z, labels, means)
        for part, expected in zip(parts, wanted, strict=True):
            agree(part, expected)
    assert parts._fields == ("classification", "compatibility", "alignment")


@given(seeds)
@few
def test_bt2_is_the_loop(seed):
    rng, new, labels = batch(seed, dim=5)
    teacher, old, compatible = (rng.normal(size=(7, d)) for d in (5, 4, 4))
    means, logits = rng.normal(size=(3, 4)), rng.normal(size=(7, 3))
    wanted = ([], [], [], [])
    for i, y in enumerate(labels):
        wanted[0].append(softmax_loss(list(logits[i]), y))
        wanted[1].append(1 - unit(new[i]) @ unit(teacher[i]))
        wanted[2].append(softmax_loss([unit(compatible[i]) @ m for m in means], y))
        wanted[3].append(1 - unit(compatible[i]) @ unit(old[i]))
    with jax.enable_x64(True):
        parts = losses.bt2(logits, new, teacher, compatible, old, labels, means)
        for part, expected in zip(parts, wanted, strict=True):
            agree(part, expected)


@given(seeds, st.sampled_from([1, 4]))
@few
def test_bt2_embedding_is_an_isometry_and_ends_in_what_is_left(seed, extra):
    rng = np.random.default_rng(seed)
    new, branch = rng.normal(size=(6, 5)), rng.normal(size=(6, 4))
    turns = [np.linalg.qr(rng.normal(size=(d, d)))[0] for d in (5, 4)]
    with jax.enable_x64(True):
        made = losses.bt2_embedding(new, branch, *turns, extra=extra, scale=3.0)
        made = [np.asarray(part) for part in made]
    full, compatible = made
    agree(np.square(full).sum(axis=1), np.full(6, 1 + 9.0))
    assert full.shape == (6, 5 + extra)
    assert np.array_equal(full[:, :4], compatible)
    # Undoing the change of basis gives both parts back.
    z = np.concatenate([compatible @ turns[1], full[:, 4:]], axis=1)
    agree(z[:, :extra], [unit(row[:extra]) for row in branch])
    agree(z[:, extra:] @ turns[0] / 3, [unit(row) for row in new])


def test_bt2_embedding_without_a_rest_and_refusals():
    made = losses.bt2_embedding(jnp.ones((2, 3)), jnp.ones((2, 4)), jnp.eye(3), jnp.eye(4), extra=1)
    assert made.full.shape == (2, 4)
    assert np.array_equal(made.full, made.compatible)
    for extra in (0, 5):
        with pytest.raises(UserError, match="extra must be"):
            losses.bt2_embedding(
                jnp.ones((2, 3)), jnp.ones((2, 4)), jnp.eye(3), jnp.eye(4), extra=extra
            )


@given(seeds, st.floats(0.05, 1), st.integers(0, 12))
@few
def test_credible_mask_is_the_loop(seed, share, count):
    rng = np.random.default_rng(seed)
    old, labels = rng.normal(size=(count, 3)), rng.integers(0, 4, count)
    keep, distance = losses.credible_mask(old, labels, share)
    for c in set(labels.tolist()):
        members = [i for i in range(count) if labels[i] == c]
        mean = sum(unit(old[i]) for i in members) / len(members)
        far = {i: math.sqrt(sum((unit(old[i]) - mean) ** 2)) for i in members}
        np.testing.assert_allclose([distance[i] for i in members], list(far.values()), atol=1e-12)
        kept = sorted(members, key=lambda i: (distance[i], i))
        kept = kept[: math.ceil(share * len(members) - 1e-9)]
        assert sorted(kept) == [i for i in members if keep[i]]
        assert kept  # every class keeps an image


def test_credible_mask_counts_as_meant_and_refuses():
    old = np.random.default_rng(0).normal(size=(10, 2))
    assert losses.credible_mask(old, np.zeros(10), 0.7)[0].sum() == 7  # 0.7 · 10 > 7 in floats
    assert losses.credible_mask(old, np.zeros(10), 1.0)[0].all()
    with pytest.raises(UserError, match="share"):
        losses.credible_mask(old, np.zeros(10), 0)
    with pytest.raises(UserError, match="labels"):
        losses.credible_mask(old, np.zeros(9))


@given(seeds, st.sampled_from([1, 5, 12]), st.floats(0, 1), st.integers(0, 12))
@few
def test_mixing_replaces_the_right_number_of_credible_rows(seed, count, share, credible):
    rng = np.random.default_rng(seed)
    new, old = rng.normal(size=(2, count, 3)).astype(np.float32)
    mask = np.zeros(count, bool)
    mask[rng.permutation(count)[:credible]] = True
    mixed, replaced = losses.mix_old_embeddings(new, old, mask, jax.random.key(seed), share)
    assert replaced.sum() == min(round(share * count), mask.sum())
    assert not np.any(np.asarray(replaced) & ~mask)
    for i in range(count):
        wanted = unit(old[i].astype(float)) if replaced[i] else new[i]
        np.testing.assert_allclose(mixed[i], wanted, atol=1e-6)


def test_mixing_draws_evenly_and_gives_replaced_rows_no_gradient():
    new, old = jnp.ones((10, 2)), jnp.ones((10, 2))
    keys = jax.random.split(jax.random.key(0), 2000)
    draw = jax.jit(
        jax.vmap(lambda key: losses.mix_old_embeddings(new, old, jnp.ones(10, bool), key)[1])
    )
    share = np.asarray(draw(keys)).mean(axis=0)
    # Each row is replaced with chance 0.3; six standard errors of 2,000 draws.
    assert np.all(np.abs(share - 0.3) < 6 * math.sqrt(0.3 * 0.7 / 2000))
    slope = jax.jit(
        jax.grad(lambda x: losses.mix_old_embeddings(x, old, jnp.ones(10, bool), keys[0])[0].sum())
    )(new)
    assert np.array_equal(np.asarray(slope).sum(axis=1) == 0, np.asarray(draw(keys))[0])
    with pytest.raises(UserError, match="new size"):
        losses.mix_old_embeddings(new, old[:, :1], jnp.ones(10, bool), keys[0])


@given(seeds)
@few
def test_hoc_is_the_loop(seed):
    rng, new, labels = batch(seed)
    old = rng.normal(size=(7, 4))
    published, clean = [], []
    for i in range(7):
        near = [10 * unit(old[i]) @ unit(f) for f in new]
        other = [s for s, y in zip(near, labels, strict=True) if y != labels[i]]
        zeros = 7 - len(other)
        published.append(math.log(sum(map(math.exp, other)) + zeros) - near[i])
        clean.append((math.log(sum(map(math.exp, other))) if other else 0.0) - near[i])
    with jax.enable_x64(True):
        agree(losses.hoc(new, old, labels), published)
        agree(losses.hoc(new, old, labels, as_published=False), clean)


def test_hoc_of_one_class_has_finite_gradients():
    @jax.jit
    @jax.grad
    def slope(x):
        return losses.hoc(x, jnp.eye(3), jnp.zeros(3), as_published=False).sum()

    assert all_finite(slope(jnp.eye(3) + 0.1))


@pytest.mark.parametrize("count", [2, 3, 17])
def test_simplex_vertices_are_unit_and_equally_far(count):
    vertices = losses.simplex_vertices(count)
    assert vertices.shape == (count, count - 1)
    wanted = np.full((count, count), -1 / (count - 1))
    np.fill_diagonal(wanted, 1)
    np.testing.assert_allclose(vertices @ vertices.T, wanted, atol=1e-12)
    with pytest.raises(UserError, match="at least 2"):
        losses.simplex_vertices(1)


def test_measures_of_a_single_model():
    assert math.isnan(losses.average_compatibility([[70.0]]))
    assert losses.average_accuracy([[70.0]]) == 70
    with pytest.raises(UserError, match="square"):
        losses.average_accuracy(np.ones((2, 3)))


@given(seeds, st.sampled_from([1, 3, 9]))
@few
def test_embedding_converter_is_the_loop(seed, neighbours):
    rng, mapped, _ = batch(seed)
    target = rng.normal(size=(7, 4))

    def far(x, i, j):
        return 1 - unit(x[i]) @ unit(x[j])

    wanted = ([], [], [])
    for i in range(7):
        others = [j for j in range(7) if j != i]
        near = sorted(others, key=lambda j: (far(target, i, j), j))[:neighbours]
        change = {j: abs(far(mapped, i, j) - far(target, i, j)) for j in others}
        wanted[0].append(sum(abs(mapped[i] - target[i])))
        wanted[1].append(sum(change.values()) / 6)
        wanted[2].append(sum(change[j] for j in near) / len(near))
    with jax.enable_x64(True):
        for part, expected in zip(
            losses.embedding_converter(mapped, target, neighbours), wanted, strict=True
        ):
            agree(part, expected)
        pairs = losses.relation_change(mapped[:3], mapped[3:6], target[:3], target[3:6])
        agree(pairs, [abs(far(mapped, i, i + 3) - far(target, i, i + 3)) for i in range(3)])


@given(seeds, st.sampled_from([1, 3, 9]))
@few
def test_hmoe_losses_are_the_loops(seed, neighbours):
    rng, source, _ = batch(seed)
    mapped, target = rng.normal(size=(2, 7, 3))

    def far(x, i, j):
        return math.sqrt(sum((x[i] - x[j]) ** 2))

    local, regression, share = [], [], []
    axis = np.array([1.0, 2.0, -1.0])
    for i in range(7):
        others = [j for j in range(7) if j != i]
        near = sorted(others, key=lambda j: (far(source, i, j), j))[:neighbours]
        local.append(sum(abs(far(mapped, i, j) - far(target, i, j)) for j in near) / len(near))
        error = mapped[i] - target[i]
        cosine = unit(mapped[i]) @ unit(target[i])
        regression.append(0.5 * (1 - cosine) + sum(error**2) / 3)
        off = error - (error @ unit(axis)) * unit(axis)
        share.append(sum(off**2) / (sum(error**2) + 1e-8))
    with jax.enable_x64(True):
        agree(losses.distance_preservation(source, mapped, target, neighbours), local)
        agree(losses.hmoe_regression(mapped, target), regression)
        agree(losses.off_axis_share(mapped - target, axis), share)
        energy = losses.off_axis_energy(mapped - target, axis, 2.0)
        agree(energy, np.array(share) * (np.square(mapped - target).sum(axis=1) + 1e-8) / 2)


def test_relations_of_one_sample_and_of_zero_rows():
    one = losses.embedding_converter(jnp.ones((1, 3)), jnp.eye(3)[:1])
    assert one.global_relation.tolist() == one.local_relation.tolist() == [0]
    assert losses.distance_preservation(*[jnp.ones((1, 2))] * 3).tolist() == [0]

    def total(x):
        parts = losses.embedding_converter(x, jnp.eye(3))
        kept = losses.distance_preservation(jnp.eye(3), x, jnp.eye(3))
        return sum(part.sum() for part in parts) + kept.sum()

    assert all_finite(jax.jit(jax.value_and_grad(total))(jnp.zeros((3, 3))))


def test_principal_axis_is_where_the_targets_spread():
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(50, 3)) * [0.1, 5.0, 0.1] + 100
    axis = losses.principal_axis(jnp.asarray(targets))
    values, vectors = np.linalg.eigh(np.cov(targets.T))
    np.testing.assert_allclose(abs(axis @ vectors[:, values.argmax()]), 1, atol=1e-5)
    assert axis[1] > 0


def test_losses_run_under_jit_with_zero_vectors():
    zeros, labels = jnp.zeros((4, 6)), jnp.array([0, 1, 2, 9])
    means = jnp.ones((3, 4))

    @jax.jit
    @jax.value_and_grad
    def everything(x):
        parts = [*losses.oca(x[:, :3], x, labels.clip(max=2), means)]
        parts += losses.bt2(x[:, :3], x, x, x[:, :4], x[:, :4], labels.clip(max=2), means)
        parts += [losses.hoc(x, x, labels), losses.multi_positive_contrastive(x, x, labels, labels)]
        made = losses.bt2_embedding(x, x[:, :4], jnp.eye(6), jnp.eye(4), extra=2)
        return sum(part.sum() for part in parts) + made.full.sum()

    assert all_finite(everything(zeros))
