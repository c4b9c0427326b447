"""Compatibility losses against arrays of the original code: values and gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses_golden import base_loss, close, statistics

from fct_jax import losses

BATCHES = ("mixed", "allold")


def cases(arrays, feat_old, labels):
    """Return {case: function of (feat, w_new, eb_weight)}."""
    num_old = arrays["w_old"].shape[0]
    angles = statistics(arrays, num_old, "angle")
    radii = statistics(arrays, num_old, "euclidean")
    w_old = arrays["w_old"]
    known = {
        "bct": lambda f, w, e: losses.bct(f, labels, w_old),
        "lce_boundary": lambda f, w, e: losses.lce(f, labels, angles, w)[0],
        "lce_alignment": lambda f, w, e: losses.lce(f, labels, angles, w)[1],
        "lce": lambda f, w, e: sum(losses.lce(f, labels, angles, w)),
        "uni_bct": lambda f, w, e: losses.unibct(f, labels, arrays["full_old_centers"]),
        "bct_limit": lambda f, w, e: losses.advbct_boundary(f, labels, radii, radius="min"),
        "bct_limit_no_s2c_limit_part": lambda f, w, e: losses.advbct_point(
            f, feat_old, labels, radii
        ),
        "bct_limit_no_s2c": lambda f, w, e: (
            losses.advbct_point(f, feat_old, labels, radii)
            + losses.hot_refresh(f, feat_old, labels)
        ),
        "l2": lambda f, w, e: losses.l2(f, feat_old),
    }
    for kind in losses.BASE_LOSSES:
        known[f"base_{kind}"] = lambda f, w, e, kind=kind: base_loss(kind, f, w, labels)
    for kind in ("softmax", "arcface"):
        known[f"bct_ract_{kind}"] = lambda f, w, e, kind=kind: losses.bct_ract(
            f, labels, w_old, losses.base_logits(kind, f, w, labels)
        )
    for threshold in (0.5, 1.0):
        known[f"bct_limit_elastic_t{threshold}"] = lambda f, w, e, t=threshold: (
            losses.advbct_boundary(f, labels, radii, e, t)
        )
    return known


PAIR_CASE = re.compile(r"(\w+)_topk(-?\d+)_(gather|nogather)(?:_temp([\d.]+))?")


def pair_case(name, feat_old, labels):
    """Return a loss over pairs by a name such as ``hot_refresh_topk10_gather_temp0.1``."""
    kind, top_k, gather, temperature = PAIR_CASE.fullmatch(name).groups()
    function = {"contra": losses.contrastive}.get(kind) or getattr(losses, kind)
    options = {"top_k": max(int(top_k), 0)}
    if temperature:
        options["temperature"] = float(temperature)
    if kind in ("hot_refresh", "triplet_ract"):
        options["gather_gradient"] = gather == "nogather"
    return lambda f, w, e: function(f, feat_old, labels, **options)


@pytest.mark.parametrize("batch", BATCHES)
def test_compatibility_losses(golden_advbct, batch):
    arrays = golden_advbct.arrays("compat_losses")
    feat, feat_old, labels = (arrays[f"{batch}/{n}"] for n in ("feat", "feat_old", "labels"))
    known = cases(arrays, feat_old, labels)
    keys = [key.split("/") for key in arrays if key.startswith(f"{batch}/") and key.count("/") == 2]
    names = sorted({case for _, case, _ in keys})
    assert len(names) > 25
    functions = {n: known.get(n) or pair_case(n, feat_old, labels) for n in names}

    @jax.jit  # all in one program, which compiles faster than one by one
    def steps(*inputs):
        return {n: jax.value_and_grad(f, (0, 1, 2))(*inputs) for n, f in functions.items()}

    results = steps(feat, arrays["w_new"], arrays["eb_weight"])
    for name, (value, grads) in results.items():
        found = dict(zip(("grad_feat", "grad_w_new", "grad_eb_weight"), grads, strict=True))
        found["loss"] = value
        for part in (part for _, case, part in keys if case == name):
            if part in found:
                close(found[part], arrays[f"{batch}/{name}/{part}"])
            else:
                check_other(arrays, batch, name, part, feat, feat_old, labels)


def check_other(arrays, batch, name, part, feat, feat_old, labels):
    """Check counts and the elastic part of the radius through the shares that the losses return."""
    expected = arrays[f"{batch}/{name}/{part}"]
    num_old = arrays["w_old"].shape[0]
    radii = statistics(arrays, num_old, "euclidean")
    elastic = name.removeprefix("bct_limit_elastic_t")
    if part == "is_python_number":
        assert expected == 0  # these batches select something everywhere
    elif part == "valid_count":
        angles = statistics(arrays, num_old, "angle")
        _, share = losses.lce(feat, labels, angles, arrays["w_new"], with_share=True)
        assert round(float(share) * len(labels)) == expected
    elif part == "violators":
        if name == "bct_limit":
            _, share = losses.advbct_boundary(feat, labels, radii, radius="min", with_share=True)
        elif name.startswith("bct_limit_no_s2c"):
            _, share = losses.advbct_point(feat, feat_old, labels, radii, with_share=True)
        else:
            _, share = losses.advbct_boundary(
                feat, labels, radii, arrays["eb_weight"], float(elastic), with_share=True
            )
        assert round(float(share) * len(labels)) == expected
    elif part == "radius_eb":
        moved = np.zeros(len(expected))
        for label in labels:
            if label < num_old and radii.num_kept[label]:
                before, weight = radii.radius[label], arrays["eb_weight"][label]
                moved[label] = abs(losses.elastic_radius(before, weight, float(elastic)) - before)
        close(moved, expected)
    else:
        pytest.fail(f"nothing checks {batch}/{name}/{part}")


def test_two_processes(golden_advbct):
    """The losses of two ranks, at half weight each, add up to the loss of the whole batch."""
    arrays = golden_advbct.arrays("compat_losses")
    feat, feat_old, labels = (arrays[f"tworank/{n}"] for n in ("feat", "feat_old", "labels"))
    functions = {
        "hot_refresh": lambda f: losses.hot_refresh(f, feat_old, labels),
        "contra": lambda f: losses.contrastive(f, feat_old, labels),
        "triplet": lambda f: losses.triplet(f, feat_old, labels),
        "triplet_ract": lambda f: losses.triplet_ract(f, feat_old, labels),
        "l2": lambda f: losses.l2(f, feat_old),
    }
    stored = {key.split("/")[1] for key in arrays if re.fullmatch(r"tworank/.*/.*", key)}
    assert stored == set(functions)
    step = jax.jit(lambda f: {n: jax.value_and_grad(loss)(f) for n, loss in functions.items()})
    for name, (value, grad) in step(feat).items():
        prefix = f"tworank/{name}/rank"
        close(value, (arrays[f"{prefix}0_loss"] + arrays[f"{prefix}1_loss"]) / 2)
        ranks = np.concatenate([arrays[f"{prefix}{rank}_grad_feat"] for rank in (0, 1)])
        close(grad, ranks / 2)


def test_no_batch_is_forgotten(golden_advbct):
    batches = {key.split("/")[0] for key in golden_advbct.arrays("compat_losses") if "/" in key}
    assert batches == {*BATCHES, "tworank"}


@pytest.mark.parametrize("head", ["arcface", "cosface"])
def test_margins(golden_advbct, head):
    arrays = golden_advbct.arrays("margin")
    feat, weight, labels = arrays["feat"], arrays["weight"], arrays["labels"]
    function = jax.jit(getattr(losses, head))
    close(losses.cosine_logits(feat, weight), arrays["cosine"])
    names = {key.split("/")[0] for key in arrays if key.startswith(head) and "/" in key}
    assert len(names) == 2
    for name in names:
        scale, margin = map(float, re.fullmatch(rf"{head}_s(.*)_m(.*)", name).groups())
        close(function(arrays["cosine"], labels, scale, margin), arrays[f"{name}/logits"])
        ignored = function(arrays["cosine"], arrays["labels_ignore"], scale, margin)
        close(ignored, arrays[f"{name}/logits_ignore"])

        def loss(cosine, scale=scale, margin=margin):
            return jnp.mean(losses.cross_entropy(function(cosine, labels, scale, margin), labels))

        def of_feat(feat, weight, loss=loss):
            return loss(losses.cosine_logits(feat, weight))

        close(jax.jit(jax.grad(loss))(arrays["cosine"]), arrays[f"{name}/grad_cosine"])
        value, grads = jax.jit(jax.value_and_grad(of_feat, (0, 1)))(feat, weight)
        close(value, arrays[f"{name}/loss"])
        close(grads[0], arrays[f"{name}/grad_feat"])
        close(grads[1], arrays[f"{name}/grad_weight"])

    edge = arrays["edge_cosine"]
    expected = arrays[f"edge_{head}_s30_m0.3_logits"]
    actual = function(edge, arrays["edge_labels"], 30.0, 0.3)
    defined = np.isfinite(expected)
    close(np.asarray(actual)[defined], expected[defined])
    assert np.isfinite(actual).all()
    total = jax.jit(jax.grad(lambda c: function(c, arrays["edge_labels"], 30.0, 0.3).sum()))
    gradient = total(edge)
    assert np.isfinite(gradient).all()


def test_plain_softmax(golden_advbct):
    arrays = golden_advbct.arrays("margin")
    feat, weight, labels = arrays["feat"], arrays["weight"], arrays["labels"]
    close(losses.base_logits("softmax", feat, weight, labels), arrays["softmax/logits"])
    step = jax.jit(jax.value_and_grad(lambda f, w: base_loss("softmax", f, w, labels), (0, 1)))
    value, grads = step(feat, weight)
    close(value, arrays["softmax/loss"])
    close(grads[0], arrays["softmax/grad_feat"])
    close(grads[1], arrays["softmax/grad_weight"])
