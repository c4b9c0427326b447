"""Whole training trajectories of the original code: transformations by Adam, ResNet-18 by SGD.

The golden values are float32 results of one machine, and rounding grows from step to step: Adam
divides by the size of a gradient; batch norms over 8 values and ReLUs that flip amplify even more.
The difference between two float32 trajectories therefore depends on the processors, and no
tolerance for it can be derived. So our trajectories are computed in float64, where rounding stays
below 1e-9 on any machine. Their tolerance is the golden arrays' *own* rounding, which the golden
files state as the difference of each array from the original's run in float64. Float32 itself is
compared with float64 for single steps.
"""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from double import ROUNDING, double_precision, widened
from rule_weights import rule_weights

from fct_jax import losses
from fct_jax.models import build, torch_import
from fct_jax.train.optimizer import build_optimizer, decayed


def config(golden):
    """Return our equivalent of the original's configuration, at a constant rate."""
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


def golden_rounding(golden_fct, name):
    """Return the largest possible difference of the golden array from the original's float64 run.

    The file has three digits of the largest difference; the stored array is rounded once more.
    """
    difference, size = golden_fct.json("float32_vs_float64")["files"]["optim"][name]
    return 1.01 * difference + ROUNDING * size


def within(ours, expected, limit, name):
    np.testing.assert_allclose(ours, expected, rtol=0, atol=limit, err_msg=name)


def transformation_step(model, objective, classifier, optimizer):
    """Return one compiled training step, and the function of the loss alone."""

    def loss(params, stats, batch, train):
        (embedding, log_variance), updated = model.apply(
            {"params": params, "batch_stats": stats},
            batch["old"],
            batch["side"],
            train=train,
            mutable=["batch_stats"] if train else [],
        )
        value = objective(embedding, log_variance, batch["new"], batch["targets"], classifier)
        return value, updated.get("batch_stats", stats)

    @functools.partial(jax.jit, static_argnames="train")
    def step(params, stats, state, batch, train):
        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params, stats, batch, train)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), stats, state, value

    return step, loss


def transformation_run(golden_fct, run):
    """Return our float64 step and loss, the optimizer, initial variables and golden batches."""
    arrays, info = golden_fct.arrays("optim"), golden_fct.json("optim")["transformation"]
    dims = info["dims"]
    model = build(run, embedding_dim=dims["new"], inner_dim=dims["inner"])
    objective = fastfill_loss if run == "fastfill" else fct_loss
    optimizer = build_optimizer(config(info["adam"]), 1, info["steps"])
    batches = under(arrays, "batches/")
    classifier = batches.pop("classifier")
    steps = [{key: batches[key][count] for key in batches} for count in range(info["steps"])]
    variables = torch_import.transformation(under(arrays, f"{run}/init/"))
    steps, variables, classifier = widened((steps, variables, classifier))
    step, loss = transformation_step(model, objective, classifier, optimizer)
    return step, loss, optimizer, variables, steps


@pytest.mark.slow
@pytest.mark.parametrize("run", ["fastfill", "fct"])
def test_transformation(golden_fct, run):
    arrays, info = golden_fct.arrays("optim"), golden_fct.json("optim")["transformation"]
    with double_precision():
        step, loss, optimizer, variables, batches = transformation_run(golden_fct, run)
        params, stats = variables["params"], variables["batch_stats"]
        state = optimizer.init(params)
        limit = golden_rounding(golden_fct, f"{run}/loss")
        for count, batch in enumerate(batches):
            train = count < info["eval_mode_from_step"]
            params, stats, state, value = step(params, stats, state, batch, train)
            within(value, arrays[f"{run}/loss"][count], limit, f"loss {count}")
            if after := under(arrays, f"{run}/after{count + 1}/"):
                tracked = {int(v) for k, v in after.items() if k.endswith("num_batches_tracked")}
                assert tracked == {min(count + 1, info["eval_mode_from_step"])}
                ours = torch_import.transformation_to_torch(
                    {"params": params, "batch_stats": stats}
                )
                for name, expected in after.items():
                    if not name.endswith("num_batches_tracked"):  # Flax keeps no counter
                        name = f"{run}/after{count + 1}/{name}"
                        limits = golden_rounding(golden_fct, name)
                        # `ours` is rounded to float32 for PyTorch.
                        limits += ROUNDING * np.abs(expected).max()
                        within(ours[name.split("/")[-1]], expected, limits, name)
        value, _ = loss(params, stats, batches[0], False)
    last = f"{run}/validate_loss_after6"
    within(value, arrays[last], golden_rounding(golden_fct, last), last)


LONGEST_SUM = 512 * 3 * 3  # terms of an inner product in the last stage of ResNet-18


def decayed_as_published(params):
    """Return the original's "no decay on BN", which goes by name and misses the shortcuts'."""

    def keep(path, spared):
        return spared or any(getattr(key, "key", "") == "downsample_bn" for key in path)

    return jax.tree_util.tree_map_with_path(keep, decayed(params))


def rule_variables(names, num_classes, dim):
    """Return the rule's weights, with this run's sizes of the last block and classifier."""
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
def resnet18_gradients(precision, **kwargs):
    """Return one compiled function for all runs of a precision, which differ only in updates."""
    del precision  # Only a key of the cache: the precision in which the function is first called.
    model = build("resnet18", **kwargs)

    def loss(params, stats, images, targets, smoothing):
        (logits, _), updated = model.apply(
            {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
        )
        value = jnp.mean(losses.label_smoothed_cross_entropy(logits, targets, smoothing))
        return value, (updated["batch_stats"], logits)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def resnet18_run(golden_fct, run):
    """Return the golden settings, our equivalent optimizer, and the initial weights."""
    info = golden_fct.json("optim")["resnet18"]
    kwargs, golden = info["kwargs"], info["sgd_runs"][run]
    names = golden_fct.json("resnet_ResNet18")["state_dict"]
    variables = rule_variables(names, kwargs["num_classes"], kwargs["embedding_dim"])
    settings = config(golden)
    settings.decay_batch_norm = True
    if not golden["no_bn_decay"]:
        return golden, build_optimizer(settings, 1, 3), variables
    # The published variant: the same optimizer, decayed through its own mask.
    settings.weight_decay = 0.0
    optimizer = optax.chain(
        optax.add_decayed_weights(golden["weight_decay"], decayed_as_published),
        build_optimizer(settings, 1, 3),
    )
    return golden, optimizer, variables


@pytest.mark.slow
@pytest.mark.parametrize("run", ["wd_ref", "wd_ref_nobn", "wd_big", "wd_big_nobn", "lr001"])
def test_resnet18(golden_fct, run):
    arrays, info = golden_fct.arrays("optim"), golden_fct.json("optim")["resnet18"]
    expected = under(arrays, f"sgd/{run}/")
    # Per step: the largest difference of the golden run from those in float64 and with noise.
    sensitivity = under(info["observed_sensitivity_per_step"], f"sgd/{run}/")

    def limit(name, count):
        size = np.abs(expected[name]).max()
        per_step = sensitivity[name][count] + ROUNDING * size
        return min(golden_rounding(golden_fct, f"sgd/{run}/{name}"), per_step)

    with double_precision():
        golden, optimizer, variables = resnet18_run(golden_fct, run)
        gradients = resnet18_gradients("float64", **info["kwargs"])
        variables = widened(variables)
        params, stats = variables["params"], variables["batch_stats"]
        state = optimizer.init(params)
        update = jax.jit(optimizer.update)
        for count in range(3):
            images, targets = arrays["sgd/images"][count], arrays["sgd/targets"][count]
            (value, (stats, logits)), grads = gradients(
                params, stats, widened(images), targets, golden["label_smoothing"]
            )
            updates, state = update(grads, state, params)
            params = optax.apply_updates(params, updates)
            assert {leaf.dtype for leaf in jax.tree.leaves((logits, params))} == {np.dtype("f8")}
            within(value, expected["loss"][count], limit("loss", count), f"loss {count}")
            check_accuracy(logits, targets, expected, count)
            for name, weight in tracked_weights(params).items():
                within(weight, expected[name][count], limit(name, count), f"{name} {count}")
    checked = {"loss", "top1", "top5", *tracked_weights(params)}
    for name, layer in (("bn1", stats["bn1"]), ("layer4.1.bn2", stats["layer4_1"]["bn2"])):
        for ours, theirs in (("mean", "running_mean"), ("var", "running_var")):
            name_of = f"{name}.{theirs}"
            limits = golden_rounding(golden_fct, f"sgd/{run}/{name_of}")
            within(layer[ours], expected[name_of], limits, name_of)
            checked.add(name_of)
    assert set(expected) == checked


@pytest.mark.slow
def test_resnet18_step_in_float32(golden_fct):
    """Loss, gradients and running statistics of one batch: float32 against float64.

    The limit is derived by backward analysis: the float32 result of an inner product of n terms is
    the exact result for terms that are changed by √n roundings each (Higham and Mary, "A new
    approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 2019; with certainty by
    n). So all weights and pixels are changed at random by that much in float64, which shows how
    much this network amplifies the changes, including flips of ReLUs. A layer rounds in its
    convolution, its normalisation and the sum with the shortcut, forwards and backwards; these 6
    changes are taken to add up.
    """
    arrays, info = golden_fct.arrays("optim"), golden_fct.json("optim")["resnet18"]
    _, _, start = resnet18_run(golden_fct, "wd_ref")
    images, targets = arrays["sgd/images"][0], arrays["sgd/targets"][0]

    def result(found):
        (value, (stats, _)), grads = found
        return jax.tree.map(np.asarray, {"loss": value, "stats": stats, "grads": grads})

    gradients = resnet18_gradients("float32", **info["kwargs"])
    ours = result(gradients(start["params"], start["batch_stats"], images, targets, 0.1))
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {np.dtype("f4")}
    with double_precision():
        gradients = resnet18_gradients("float64", **info["kwargs"])
        stats, given = widened(start["batch_stats"]), widened((start["params"], images))
        exact = result(gradients(given[0], stats, given[1], targets, 0.1))
        size = ROUNDING * np.sqrt(LONGEST_SUM)
        rng = np.random.default_rng(0)
        changed = []
        for _ in range(3):
            params, pixels = jax.tree.map(
                lambda x: x * (1 + size * rng.standard_normal(x.shape)), given
            )
            changed.append(result(gradients(params, stats, pixels, targets, 0.1)))

    def compare(path, ours, exact, *others):
        gap, *gaps = (np.linalg.norm(other - exact) for other in (ours, *others))
        limit = 6 * max(gaps) + ROUNDING * np.linalg.norm(exact)
        assert gap <= limit < 0.02 * np.linalg.norm(exact), (path, gap, limit)

    jax.tree_util.tree_map_with_path(compare, ours, exact, *changed)


def tracked_weights(params):
    """Return the arrays that the golden file tracks, under its names."""
    norm = params["layer4_1"]["bn2"]
    return {
        "fc_weight": np.asarray(params["classifier"]["kernel"]).T,
        "layer4.1.bn2.weight": norm["scale"],
        "layer4.1.bn2.bias": norm["bias"],
        "layer2.0.downsample.1.weight": params["layer2_0"]["downsample_bn"]["scale"],
    }


def check_accuracy(logits, targets, expected, count):
    """Check top-1 and top-5 accuracy in percent."""
    rank = np.sum(logits > logits[np.arange(len(targets)), targets][:, None], axis=1)
    for name, k in (("top1", 1), ("top5", 5)):
        assert 100 * np.mean(rank < k) == expected[name][count]
