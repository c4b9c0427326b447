"""Nothing is NaN: empty selections, zero and identical vectors, extreme numbers, wrong shapes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fct_jax import losses
from fct_jax.errors import UserError
from fct_jax.storage.class_statistics import ClassStatistics, class_statistics

DIM, OLD, NEW = 4, 3, 5
RNG = np.random.default_rng(0)
FEAT = RNG.standard_normal((6, DIM)).astype(np.float32)
OLD_FEAT = RNG.standard_normal((6, DIM)).astype(np.float32)
W_OLD = RNG.standard_normal((OLD, DIM)).astype(np.float32)
W_NEW = RNG.standard_normal((NEW, DIM)).astype(np.float32)
ELASTIC = np.zeros(NEW, np.float32)
TRAIN = np.repeat(W_OLD, 5, axis=0) + 0.1 * RNG.standard_normal((15, DIM)).astype(np.float32)
RADII = class_statistics(TRAIN, np.repeat(np.arange(OLD), 5), OLD)
ANGLES = class_statistics(TRAIN, np.repeat(np.arange(OLD), 5), OLD, "angle")
SELECTING = {
    "bct": lambda f, y: losses.bct(f, y, W_OLD),
    "bct_ract": lambda f, y: losses.bct_ract(f, y, W_OLD, f @ W_NEW.T),
    "unibct": lambda f, y: losses.unibct(f, y, RADII.center),
    "lce": lambda f, y: sum(losses.lce(f, y, ANGLES, W_NEW)),
    "boundary": lambda f, y: losses.advbct_boundary(f, y, RADII),
    "elastic": lambda f, y: losses.advbct_boundary(f, y, RADII, ELASTIC),
    "point": lambda f, y: losses.advbct_point(f, OLD_FEAT[: len(f)], y, RADII),
}
PAIRS = {
    name: lambda f, y, name=name: getattr(losses, name)(f, OLD_FEAT[: len(f)], y)
    for name in ("hot_refresh", "contrastive", "triplet", "triplet_ract")
} | {"l2": lambda f, y: losses.l2(f, OLD_FEAT[: len(f)])}


@functools.cache
def compiled(name):
    return jax.jit(jax.value_and_grad((SELECTING | PAIRS)[name]))


@pytest.mark.parametrize("label", [OLD, NEW - 1, NEW + 100, -1])
@pytest.mark.parametrize("name", SELECTING)
def test_no_old_class_in_the_batch(name, label):
    value, grad = compiled(name)(FEAT, np.full(6, label))
    assert value == 0
    assert not np.asarray(grad).any()


@pytest.mark.parametrize("feat", [np.zeros_like(FEAT), OLD_FEAT, np.tile(FEAT[0], (6, 1))])
@pytest.mark.parametrize("scale", [1.0, 1e-15, 1e15])
@pytest.mark.parametrize("name", [*SELECTING, *PAIRS])
def test_zero_identical_tiny_and_huge_vectors(name, feat, scale):
    if name in ("bct", "bct_ract"):
        scale = min(scale, 1e6)  # the loss is linear in the embedding, as published
    value, grad = compiled(name)(np.float32(scale) * feat, np.array([0, 1, 1, 2, 4, 9]))
    assert np.isfinite(value)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("name", [*SELECTING, *PAIRS])
def test_batch_of_one(name):
    value, grad = compiled(name)(FEAT[:1], np.array([1]))
    assert np.isfinite(value)
    assert np.isfinite(grad).all()


def test_embedding_on_the_centre():
    """An embedding in the centre's direction gives no violation, and no NaN from arccos or √0."""
    stats = ClassStatistics(W_OLD, np.zeros(OLD), np.full(OLD, 2))
    unit = W_OLD / np.linalg.norm(W_OLD, axis=1, keepdims=True)
    on_centre = ClassStatistics(unit, np.zeros(OLD), np.full(OLD, 2))
    labels = np.arange(OLD)
    for scale in (1.0, 3.0):
        for function in (
            lambda f: sum(losses.lce(f, labels, stats, W_OLD)),
            lambda f: losses.advbct_boundary(f, labels, on_centre),
            lambda f: losses.unibct(f, labels, W_OLD),
        ):
            value, grad = jax.jit(jax.value_and_grad(function))(scale * W_OLD)
            assert np.isfinite(value)
            assert np.isfinite(grad).all()


def test_unseen_and_single_member_classes_do_not_count():
    kept = np.array([0, 1, 2])
    stats = RADII.replace(num_kept=kept)
    far = -10 * W_OLD
    _, share = losses.advbct_boundary(far, np.arange(OLD), stats, with_share=True)
    assert share == pytest.approx(1 / 3)
    _, share = losses.lce(
        far, np.arange(OLD), ANGLES.replace(num_kept=kept), W_NEW, with_share=True
    )
    assert share == pytest.approx(1 / 3)
    _, share = losses.advbct_point(far, W_OLD, np.arange(OLD), stats, with_share=True)
    assert share == pytest.approx(2 / 3)


def test_statistics_get_no_gradient():
    labels = np.arange(OLD)
    for function, stats in (
        (lambda center: sum(losses.lce(FEAT[:3], labels, center, W_NEW)), ANGLES),
        (lambda center: losses.advbct_boundary(FEAT[:3], labels, center), RADII),
    ):
        grad = jax.grad(lambda c, f=function, s=stats: f(s.replace(center=c)))(stats.center)
        assert not np.asarray(grad).any()


def test_transformed_centres_do_get_a_gradient():
    labels = np.arange(OLD)

    def loss(center):
        return sum(losses.lce(FEAT[:3], labels, ANGLES, W_NEW, transformed_center=center))

    value, grad = jax.value_and_grad(loss)(ANGLES.center)
    np.testing.assert_allclose(value, sum(losses.lce(FEAT[:3], labels, ANGLES, W_NEW)), rtol=1e-6)
    assert np.asarray(grad).any(axis=1).all()


def test_wrong_statistics_and_names():
    labels = np.zeros(6, int)
    with pytest.raises(UserError, match='"angle"'):
        losses.lce(FEAT, labels, RADII, W_NEW)
    with pytest.raises(UserError, match='"euclidean"'):
        losses.advbct_boundary(FEAT, labels, ANGLES)
    with pytest.raises(UserError, match="unknown radius"):
        losses.advbct_boundary(FEAT, labels, RADII, radius="median")
    with pytest.raises(UserError, match="smallest_radius"):
        losses.advbct_boundary(FEAT, labels, RADII.replace(smallest_radius=None), radius="min")
    with pytest.raises(UserError, match="2 elastic weights for 3 old classes"):
        losses.advbct_boundary(FEAT, labels, RADII, ELASTIC[:2])
    with pytest.raises(UserError, match="unknown base loss 'arcfac'; did you mean 'arcface'"):
        losses.base_logits("arcfac", FEAT, W_NEW, labels)
    with pytest.raises(UserError, match="unknown alignment"):
        losses.alignment(FEAT, FEAT, "l2")
    with pytest.raises(UserError, match="same shape"):
        losses.alignment(FEAT, FEAT[:, :2])
    with pytest.raises(UserError, match="differ"):
        losses.lwf(FEAT, FEAT[:, :2])
    with pytest.raises(UserError, match="unknown focal distillation"):
        losses.focal_distillation(FEAT, FEAT, labels, kind="l1")


@pytest.mark.parametrize("shape", [(6, 4), (6, 1), (1,), ()])
def test_log_variance_is_one_number_per_sample(shape):
    weighted = jax.jit(losses.uncertainty_weighted)
    with pytest.raises(UserError, match="one number per sample"):
        weighted(np.ones(6), np.ones(shape))


@settings(deadline=None, max_examples=50)
@given(st.floats(-(2.0**100), 2.0**100, width=32), st.floats(0, 2.0**20, width=32))
def test_uncertainty_is_finite_for_any_log_variance(log_variance, loss):
    step = jax.value_and_grad(losses.uncertainty_weighted, (0, 1))
    value, grads = step(np.array([loss, loss], np.float32), np.full(2, log_variance, np.float32))
    assert np.isfinite(value)
    assert all(np.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("s", [-20.0, -19.9, -3.0, 0.0, 19.9, 20.0])
def test_uncertainty_is_exact_inside_the_clamp(s):
    value, grad = jax.value_and_grad(losses.uncertainty_weighted, 1)(
        jnp.array([1.5]), jnp.array([s])
    )
    np.testing.assert_allclose(value, 0.5 * np.exp(-s) * 1.5 + 0.5 * s, rtol=1e-5)
    np.testing.assert_allclose(grad, [-0.5 * np.exp(-s) * 1.5 + 0.5], rtol=1e-5)


def test_gradient_outside_the_clamp_leads_back():
    grad = jax.grad(losses.uncertainty_weighted, 1)(jnp.ones(2), jnp.array([-200.0, 200.0]))
    assert grad[0] < 0 < grad[1]


@pytest.mark.parametrize("label", [-1, DIM, 100])
def test_label_without_a_logit_is_loud(label):
    assert np.isnan(losses.label_smoothed_cross_entropy(FEAT[:1], np.array([label]))[0])


def test_half_precision_embeddings_give_float32_losses():
    labels = np.array([0, 1, 1, 2, 4, 9])
    half = jax.ShapeDtypeStruct(FEAT.shape, jnp.bfloat16)
    for function in (SELECTING | PAIRS).values():
        found = jax.eval_shape(lambda feat, function=function: function(feat, labels), half)
        assert found.dtype == jnp.float32
