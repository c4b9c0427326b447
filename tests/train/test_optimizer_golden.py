"""Whole training trajectories of the original code: transformations by Adam, ResNet-18 by SGD."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from rule_weights import rule_weights

from fct_jax import losses
from fct_jax.models import build, torch_import
from fct_jax.train.optimizer import build_optimizer, decayed


def config(golden):
    """Our configuration for the original's, at a constant rate."""
    return ml_collections.ConfigDict(
        {
            "name": golden["algorithm"],
            "lr": golden["lr"],
            "momentum": golden.get("momentum", 0.0),
            "nesterov": golden.get("nesterov", False),
            "weight_decay": golden["weight_decay"],
            "decay_batch_norm": not golden.get("no_bn_decay", False),
            "schedule": {"name": "constant"},
        }
    )


def under(arrays, prefix):
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def fastfill_loss(embedding, log_variance, new, targets, classifier):
    per_sample = losses.alignment(embedding, new)
    per_sample += losses.label_smoothed_cross_entropy(embedding @ classifier.T, targets)
    return losses.uncertainty_weighted(per_sample, log_variance)


def fct_loss(embedding, log_variance, new, targets, classifier):
    return jnp.mean(losses.alignment(embedding, new))


@pytest.mark.parametrize("run", ["fastfill", "fct"])
def test_transformation(golden_fct, run):
    arrays, info = golden_fct.arrays("optim"), golden_fct.json("optim")["transformation"]
    dims = info["dims"]
    model = build(run, embedding_dim=dims["new"], inner_dim=dims["inner"])
    objective = fastfill_loss if run == "fastfill" else fct_loss
    optimizer = build_optimizer(config(info["adam"]), 1, info["steps"])
    batches = under(arrays, "batches/")

    def loss(params, stats, batch, train):
        (embedding, log_variance), updated = model.apply(
            {"params": params, "batch_stats": stats},
            batch["old"],
            batch["side"],
            train=train,
            mutable=["batch_stats"] if train else [],
        )
        value = objective(
            embedding, log_variance, batch["new"], batch["targets"], batches["classifier"]
        )
        return value, updated.get("batch_stats", stats)

    @functools.partial(jax.jit, static_argnames="train")
    def step(params, stats, state, batch, train):
        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params, stats, batch, train)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), stats, state, value

    variables = torch_import.transformation(under(arrays, f"{run}/init/"))
    params, stats = variables["params"], variables["batch_stats"]
    state = optimizer.init(params)
    for count in range(info["steps"]):
        batch = {key: batches[key][count] for key in ("old", "side", "new", "targets")}
        train = count < info["eval_mode_from_step"]
        params, stats, state, value = step(params, stats, state, batch, train)
        np.testing.assert_allclose(value, arrays[f"{run}/loss"][count], rtol=1e-5)
        if after := under(arrays, f"{run}/after{count + 1}/"):
            expected = torch_import.transformation(after)
            tracked = {int(v) for k, v in after.items() if k.endswith("num_batches_tracked")}
            assert tracked == {min(count + 1, info["eval_mode_from_step"])}
            found = {"params": params, "batch_stats": stats}
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=5e-5), found, expected
            )
    first = {key: batches[key][0] for key in ("old", "side", "new", "targets")}
    value, _ = loss(params, stats, first, False)
    np.testing.assert_allclose(value, arrays[f"{run}/validate_loss_after6"], rtol=1e-5)


def decayed_as_published(params):
    """ "No decay on BN" of the original, which goes by name and misses the shortcuts'."""

    def keep(path, spared):
        return spared or any(getattr(key, "key", "") == "downsample_bn" for key in path)

    return jax.tree_util.tree_map_with_path(keep, decayed(params))


def rule_variables(names, num_classes, dim):
    """The rule's weights, with the last block's and the classifier's sizes of this run."""
    old_dim = next(shape[1] for name, shape in names if name == "fc.weight")
    resized = []
    for name, shape in names:
        if name == "fc.weight":
            shape = [num_classes, dim, *shape[2:]]
        elif name.startswith("layer4.1."):
            shape = [dim if size == old_dim else size for size in shape]
        resized.append((name, shape))
    return torch_import.resnet(rule_weights(resized))


@functools.cache
def resnet18_gradients(**kwargs):
    """One compiled function for all runs: they differ in their updates alone."""
    model = build("resnet18", **kwargs)

    def loss(params, stats, images, targets, smoothing):
        (logits, _), updated = model.apply(
            {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
        )
        value = jnp.mean(losses.label_smoothed_cross_entropy(logits, targets, smoothing))
        return value, (updated["batch_stats"], logits)

    # The golden tolerance is for XLA's usual code: the tests' quick compilation rounds otherwise.
    usual = {"xla_backend_optimization_level": 3}
    return jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=usual)


@pytest.mark.parametrize("run", ["wd_ref", "wd_ref_nobn", "wd_big", "wd_big_nobn", "lr001"])
def test_resnet18(golden_fct, run):
    arrays, info = golden_fct.arrays("optim"), golden_fct.json("optim")["resnet18"]
    kwargs, golden = info["kwargs"], info["sgd_runs"][run]
    names = golden_fct.json("resnet_ResNet18")["state_dict"]
    variables = rule_variables(names, kwargs["num_classes"], kwargs["embedding_dim"])
    settings = config(golden)
    settings.decay_batch_norm = True
    if golden["no_bn_decay"]:
        # The published variant: the same optimizer, decayed through its own mask.
        settings.weight_decay = 0.0
        optimizer = optax.chain(
            optax.add_decayed_weights(golden["weight_decay"], decayed_as_published),
            build_optimizer(settings, 1, 3),
        )
    else:
        optimizer = build_optimizer(settings, 1, 3)

    gradients = resnet18_gradients(**kwargs)

    @jax.jit
    def apply(grads, state, params):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, stats = variables["params"], variables["batch_stats"]
    state = optimizer.init(params)
    expected = under(arrays, f"sgd/{run}/")
    start = tracked_weights(params)
    for count in range(3):
        images, targets = arrays["sgd/images"][count], arrays["sgd/targets"][count]
        (value, (stats, logits)), grads = gradients(
            params, stats, images, targets, golden["label_smoothing"]
        )
        params, state = apply(grads, state, params)
        np.testing.assert_allclose(value, expected["loss"][count], rtol=[1e-5, 1e-3, 1e-2][count])
        check_accuracy(logits, targets, expected, count)
        for name, weight in tracked_weights(params).items():
            update = np.abs(expected[name][count] - start[name]).max()
            # Rounding grows from step to step: 8 values a channel, and ReLUs that flip.
            limit = (2e-6, 1e-3 * update, 1e-2)[count]
            np.testing.assert_allclose(
                weight, expected[name][count], rtol=0, atol=limit, err_msg=f"{name} {count}"
            )
    for name, layer in (("bn1", stats["bn1"]), ("layer4.1.bn2", stats["layer4_1"]["bn2"])):
        for ours, theirs in (("mean", "running_mean"), ("var", "running_var")):
            np.testing.assert_allclose(layer[ours], expected[f"{name}.{theirs}"], atol=1e-2)
    checked = {"loss", "top1", "top5", *start} | {
        f"{bn}.running_{part}" for bn in ("bn1", "layer4.1.bn2") for part in ("mean", "var")
    }
    assert set(expected) == checked


def tracked_weights(params):
    """The arrays that the golden file follows, under its names."""
    norm = params["layer4_1"]["bn2"]
    return {
        "fc_weight": np.asarray(params["classifier"]["kernel"]).T,
        "layer4.1.bn2.weight": norm["scale"],
        "layer4.1.bn2.bias": norm["bias"],
        "layer2.0.downsample.1.weight": params["layer2_0"]["downsample_bn"]["scale"],
    }


def check_accuracy(logits, targets, expected, count):
    """Top-1 and top-5 in percent; from the second step on one of 8 samples may differ."""
    rank = np.sum(logits > logits[np.arange(len(targets)), targets][:, None], axis=1)
    for name, k in (("top1", 1), ("top5", 5)):
        accuracy = 100 * np.mean(rank < k)
        assert abs(accuracy - expected[name][count]) <= (12.5 if count else 0)
