"""Re-identification losses and heads against arrays of the original code and plain loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from losses_golden import close

from fct_jax.losses import cosface, cosine_logits, cross_entropy, label_smoothed_cross_entropy, reid
from fct_jax.losses.numerics import normalize

TRIPLETS = {
    "triplet_m0.3": {"margin": 0.3},
    "triplet_soft": {"margin": None},
    "triplet_m0.3_hard0.1": {"margin": 0.3, "hard_factor": 0.1},
    "triplet_m0.3_normfeat": {"margin": 0.3},
    "triplet_soft_normfeat": {"margin": None},
}


def arcface(scale, margin, easy=False, smoothing=0.0):
    return lambda c, y: reid.arcface_monotonic(c, y, scale, margin, easy, smoothing)


HEADS = {
    "arcface_class_s30_m0.5": arcface(30.0, 0.5),
    "arcface_ml_s30_m0.3": arcface(30.0, 0.3),
    "arcface_ml_easy": arcface(30.0, 0.3, easy=True),
    "arcface_ml_ls0.1": arcface(30.0, 0.3, smoothing=0.1),
    "cosface_ml_s30_m0.3": lambda c, y: cosface(c, y, 30.0, 0.3),
    "amsoftmax_s30_m0.3": lambda c, y: cosface(c, y, 30.0, 0.3),
    "circle_s256_m0.25": reid.circle,
    "circle_s30_m0.25": lambda c, y: reid.circle(c, y, scale=30.0),
}


def mean_ce(scores, labels):
    return jnp.mean(cross_entropy(scores, labels))


@pytest.mark.parametrize("name", TRIPLETS)
def test_triplet(golden_advbct, name):
    arrays, options = golden_advbct.arrays("reid"), TRIPLETS[name]
    labels = arrays["labels"]
    prepare = normalize if "normfeat" in name else jnp.asarray
    factor = options.get("hard_factor", 0.0)
    positive, negative, _ = reid.hardest_distances(prepare(arrays["feat"]), labels)
    close(positive * (1 + factor), arrays[f"{name}/dist_ap"])
    close(negative * (1 - factor), arrays[f"{name}/dist_an"])
    value, grad = jax.value_and_grad(
        lambda f: reid.batch_hard_triplet(prepare(f), labels, **options)
    )(arrays["feat"])
    close(value, arrays[f"{name}/loss"])
    close(grad, arrays[f"{name}/grad_feat"])


def test_distances_and_choice(golden_advbct):
    arrays = golden_advbct.arrays("reid")
    feat, labels = arrays["feat"], arrays["labels"]
    off = ~np.eye(len(feat), dtype=bool)
    distances = np.sqrt(((feat[:, None] - feat[None]) ** 2).sum(-1))
    close(distances[off], arrays["dist_mat"][off])
    close((1 - cosine_logits(feat, feat)) / 2, arrays["half_cosine_dist_mat"])
    positive, negative, _ = reid.hardest_distances(feat, labels)
    rows = np.arange(len(feat))
    same = labels[:, None] == labels[None]
    # The published indices count within the positives and negatives of each row.
    for chosen, mask, key in (
        (positive, same, "hard_pos_index"),
        (negative, ~same, "hard_neg_index"),
    ):
        columns = arrays[key]
        assert mask[rows, columns].all()
        close(chosen, distances[rows, columns])


def test_center_loss(golden_advbct):
    arrays = golden_advbct.arrays("reid")
    step = jax.value_and_grad(lambda f, c: reid.center_loss(f, arrays["labels"], c), (0, 1))
    value, (grad_feat, grad_centers) = step(arrays["feat"], arrays["center/centers"])
    close(value, arrays["center/loss"])
    close(grad_feat, arrays["center/grad_feat"])
    close(grad_centers, arrays["center/grad_centers"])


def test_identity_losses(golden_advbct):
    arrays = golden_advbct.arrays("reid")
    labels = arrays["labels"]

    def smoothed(scores):
        return jnp.mean(label_smoothed_cross_entropy(scores, labels, 0.1))

    for name, function in (
        ("label_smooth_eps0.1", smoothed),
        ("label_smooth_timm_0.1", smoothed),
        ("cross_entropy", lambda scores: mean_ce(scores, labels)),
    ):
        value, grad = jax.value_and_grad(function)(arrays["scores"])
        close(value, arrays[f"{name}/loss"])
        close(grad, arrays[f"{name}/grad_scores"])
    for name, margin in (("make_loss_soft", None), ("make_loss_margin0.3", 0.3)):
        step = jax.value_and_grad(
            lambda scores, feat, margin=margin: (
                mean_ce(scores, labels) + reid.batch_hard_triplet(feat, labels, margin)
            ),
            (0, 1),
        )
        value, (grad_scores, grad_feat) = step(arrays["scores"], arrays["feat"])
        close(value, arrays[f"{name}/loss"])
        close(grad_scores, arrays[f"{name}/grad_scores"])
        close(grad_feat, arrays[f"{name}/grad_feat"])


@pytest.mark.parametrize("name", HEADS)
def test_heads(golden_advbct, name):
    arrays = golden_advbct.arrays("reid")
    labels, head = arrays["labels"], HEADS[name]

    def loss(feat, weight):
        logits = head(cosine_logits(feat, weight), labels)
        return mean_ce(logits, labels), logits

    step = jax.value_and_grad(loss, (0, 1), has_aux=True)
    (value, logits), (grad_feat, grad_weight) = step(arrays["head_feat"], arrays["head_weight"])
    close(logits, arrays[f"{name}/logits"])
    close(value, arrays[f"{name}/ce_loss"])
    close(grad_feat, arrays[f"{name}/grad_feat"])
    close(grad_weight, arrays[f"{name}/grad_weight"])


def test_margin_contrastive(golden_advbct):
    arrays = golden_advbct.arrays("reid")
    name = "contrastive_m0.3_on_normalised"
    unit = normalize(arrays["feat"])
    value, grad = jax.value_and_grad(reid.margin_contrastive)(unit, arrays["labels"], 0.3)
    close(value, arrays[f"{name}/loss"])

    # The stored gradient is that of the unit vectors. If rounding left a vector's product with
    # itself below one, the original also pulls it along itself, which changes no direction.
    def across(gradient):
        return gradient - jnp.sum(gradient * unit, axis=-1, keepdims=True) * unit

    close(across(grad), across(arrays[f"{name}/grad_feat"]))


def test_every_array_is_known(golden_advbct):
    others = {"center", "label_smooth_eps0.1", "label_smooth_timm_0.1", "cross_entropy"}
    others |= {"make_loss_soft", "make_loss_margin0.3", "contrastive_m0.3_on_normalised"}
    arrays = golden_advbct.arrays("reid")
    grouped = {key.split("/")[0] for key in arrays if "/" in key}
    assert grouped == {*TRIPLETS, *HEADS, *others}


TRIPLET_STEP = jax.jit(jax.value_and_grad(reid.batch_hard_triplet), static_argnums=2)


@settings(deadline=None, max_examples=25)
@given(
    labels=st.sampled_from([1, 2, 7]).flatmap(
        lambda n: st.lists(st.integers(0, 3), min_size=n, max_size=n)
    ),
    margin=st.sampled_from([None, 0.3]),
    repeated=st.booleans(),
    seed=st.integers(0, 99),
)
def test_triplet_equals_the_loop(labels, margin, repeated, seed):
    """Cases have uneven identities, single members, only one identity, and identical vectors."""
    feat = np.random.default_rng(seed).standard_normal((len(labels), 3)).astype(np.float32)
    feat = np.zeros_like(feat) if repeated else feat
    values = []
    for i, label in enumerate(labels):
        far = [math.dist(feat[i], feat[j]) for j, other in enumerate(labels) if other == label]
        near = [math.dist(feat[i], feat[j]) for j, other in enumerate(labels) if other != label]
        if near:
            gap = max(far) - min(near)
            values.append(math.log1p(math.exp(gap)) if margin is None else max(gap + margin, 0))
    expected = sum(values) / len(values) if values else 0.0
    value, grad = TRIPLET_STEP(feat, np.array(labels), margin)
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)
    assert np.isfinite(grad).all()


def test_heads_are_finite_at_the_ends():
    cosine = jnp.array([[1.0, -1.0, 1.0000001], [-1.0, 1.0, 0.0], [0.0, 1.0, -1.0000001]])
    labels = np.array([0, 0, 2])
    for head in HEADS.values():
        assert np.isfinite(head(cosine, labels)).all()
        assert np.isfinite(jax.grad(lambda c, head=head: head(c, labels).sum())(cosine)).all()
