"""SimCLR: the loss against a loop, LARS written out, and runs that serve as side information."""

import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_runs
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image
from safetensors.numpy import load_file

import fct_jax
from configs import cifar100_simclr, digits_simclr, imagenet_simclr
from fct_jax import config as configs
from fct_jax import data, losses
from fct_jax.data import augment
from fct_jax.errors import UserError
from fct_jax.evaluate.command import evaluate
from fct_jax.train.image_batches import preprocessing_of
from fct_jax.train.loop import train
from fct_jax.train.optimizer import adapted, build_optimizer

pytestmark = pytest.mark.usefixtures("flat_model")


def slow_nt_xent(first, second, temperature):
    """Return (loss, accuracy) by loops over vectors."""
    vectors = [v / max(np.linalg.norm(v), 1e-12) for v in [*first, *second]]
    n, total, hits = len(first), 0.0, 0
    for i, v in enumerate(vectors):
        partner = (i + n) % (2 * n)
        others = {j: v @ w / temperature for j, w in enumerate(vectors) if j != i}
        top = max(others.values())
        total += top + math.log(sum(math.exp(s - top) for s in others.values())) - others[partner]
        hits += others[partner] >= top
    return total / (2 * n), hits / (2 * n)


nt_xent = jax.jit(losses.nt_xent, static_argnames="with_accuracy")


@settings(deadline=None, max_examples=15)
@given(
    n=st.sampled_from([1, 2, 5]),
    temperature=st.sampled_from([0.05, 0.1, 0.5, 2.0]),
    length=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 1000),
)
def test_nt_xent_is_the_loop(n, temperature, length, seed):
    first, second = np.random.default_rng(seed).standard_normal((2, n, 4)) * length
    loss, accuracy = nt_xent(first, second, temperature, with_accuracy=True)
    expected = slow_nt_xent(first, second, temperature)
    np.testing.assert_allclose([loss, accuracy], expected, rtol=1e-4, atol=1e-5)
    assert nt_xent(second, first, temperature) == pytest.approx(float(loss), abs=1e-5)


def test_nt_xent_at_the_edges():
    """One image has no negatives; zero vectors have no direction; equal views are not free."""
    run = jax.jit(jax.value_and_grad(losses.nt_xent, argnums=(0, 1)))
    one = jnp.ones((1, 3))
    for loss, gradients in (run(one, -one), run(jnp.zeros((4, 3)), jnp.zeros((4, 3)))):
        assert np.isfinite(loss)
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, jnp.zeros_like(gradient))
    assert nt_xent(one, -one) == 0
    assert nt_xent(jnp.zeros((4, 3)), jnp.zeros((4, 3))) == pytest.approx(math.log(7))
    assert nt_xent(jnp.ones((4, 3)), jnp.ones((4, 3))) == pytest.approx(math.log(7))
    apart = jnp.eye(4)
    assert nt_xent(apart, apart) < 1e-3 < nt_xent(apart, apart[::-1])


def test_nt_xent_default_temperature():
    first, second = jax.random.normal(jax.random.key(0), (2, 6, 4))
    assert nt_xent(first, second) == nt_xent(first, second, 0.1)


def optimizer_config(**changes):
    values = {"name": "lars", "lr": 0.3, "momentum": 0.9, "nesterov": False, "weight_decay": 0.01}
    return ConfigDict(
        values | {"decay_batch_norm": True, "schedule": {"name": "constant"}} | changes
    )


def test_lars_written_out():
    rng = np.random.default_rng(0)
    p = {"kernel": rng.standard_normal((3, 4)), "bias": rng.standard_normal(4), "scale": np.ones(4)}
    grads = [jax.tree.map(lambda x: rng.standard_normal(x.shape), p) for _ in range(4)]
    optimizer = build_optimizer(optimizer_config(), 1, 4)
    params = jax.tree.map(jnp.float32, p)
    state = optimizer.init(params)
    buffers = {name: 0.0 for name in p}
    for grad in grads:
        updates, state = optimizer.update(jax.tree.map(jnp.float32, grad), state, params)
        params = optax.apply_updates(params, updates)
        for name, g in grad.items():
            if name == "kernel":
                g = g + 0.01 * p[name]
                g = g * 0.001 * np.linalg.norm(p[name]) / np.linalg.norm(g)
            buffers[name] = 0.9 * buffers[name] + 0.3 * g
            p[name] = p[name] - buffers[name]
            np.testing.assert_allclose(params[name], p[name], rtol=1e-5, atol=1e-6)


def test_lars_spares_biases_and_normalisations():
    params = {"a": {"kernel": 1.0, "bias": 1.0}, "bn": {"scale": 1.0, "bias": 1.0}}
    assert adapted(params) == {
        "a": {"kernel": True, "bias": False},
        "bn": {"scale": False, "bias": False},
    }


def tiny(**changes):
    config = digits_simclr.get_config()
    config.preprocessing.size = 8
    config.model.name = tiny_runs.MODEL
    config.model.width = 4
    config.model.embedding_dim = 8
    config.head.hidden_dim = 16
    config.head.output_dim = 8
    config.epochs = 2
    config.optimizer.schedule.warmup_epochs = 1
    config.evaluate_every_epochs = 2
    config.log_every_steps = 5
    return tiny_runs.changed(config, changes)


@pytest.fixture(scope="module")
def side(tmp_path_factory):
    """Train a tiny run."""
    run = tmp_path_factory.mktemp("runs") / "side"
    train(tiny(), run)
    return run


def logged(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_it_learns(side):
    steps = [entry for entry in logged(side) if "train/loss" in entry]
    assert steps[-1]["train/loss"] < steps[0]["train/loss"]
    validation = next(entry for entry in logged(side) if "validation/loss" in entry)
    others = 2 * tiny().batch_size - 1  # the views among which each has to find its partner
    assert validation["validation/loss"] < np.log(others)  # the loss of guessing


@pytest.mark.slow
def test_the_backbone_alone_is_exported(side):
    names = load_file(side / "model" / "weights.safetensors")
    assert not any("head" in name or "classifier" in name for name in names)
    model = fct_jax.load_model(side)
    assert model.classifier is None and model.dim == 8
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    assert model.embed(images).shape == (5, 8)


@pytest.mark.slow
def test_side_information_of_a_transformation(side, tmp_path):
    """A SimCLR run leads to a transformation that uses its embeddings, and to the report."""
    config = tiny_runs.transformation(side, side, epochs=2)  # any run will do as old and new
    config.side = str(side)
    train(config, tmp_path / "fct")
    model = fct_jax.load_model(tmp_path / "fct")
    assert model.needs_side and model.description["side_dim"] == 8
    assert model.side_fingerprint == fct_jax.load_model(side).fingerprint
    old = fct_jax.load_model(side).embed(
        np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    )
    one, other = (model.transform(old, given)[0] for given in (old, old[::-1]))
    assert np.abs(one - other).max() > 1e-2 * np.abs(one).max()  # the side embedding is used
    report = tiny_runs.evaluation(side, side, f"FCT={tmp_path / 'fct'}", side=str(side))
    rows = evaluate(report, tmp_path / "report").rows
    assert 0.05 < rows["FCT new/old"]["map"] < rows["new/new"]["map"]
    report.side = ""
    with pytest.raises(UserError, match="trained with side information; give config.side"):
        evaluate(report, tmp_path / "other")
    config.side = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="config.side=.*nowhere does not exist"):
        train(config, tmp_path / "other")
    config.side = str(side)
    config.loss.discriminative_weight = 1.0
    with pytest.raises(UserError, match="is a run whose model has no classifier"):
        train(config, tmp_path / "other")


@pytest.mark.slow
@pytest.mark.parametrize("crop", ["none", "random_resized"])
def test_resumed_run_is_bit_identical(crop, flat_model, tmp_path):
    """It resumes within an epoch; the device draws the views, or the host the crops."""
    config = tiny(
        model__name="flat",
        preprocessing__train_crop=crop,
        checkpoint_every_steps=2,
        keep_checkpoints=9,
        batch_size=150,
    )
    run = tmp_path / "run"
    train(config, run)
    whole = load_file(run / "model" / "weights.safetensors")
    kept = [step for step in (run / "checkpoints").iterdir() if step.name.isdigit()]
    assert {"2", "4"} < {step.name for step in kept}  # three steps per epoch
    for step in kept:
        if int(step.name) > 4:
            shutil.rmtree(step)
    shutil.rmtree(run / "model")
    train(config, run)
    again = load_file(run / "model" / "weights.safetensors")
    assert whole.keys() == again.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)


def pictures(root, count=4, size=20):
    rng = np.random.default_rng(0)
    for split in ("training", "validation"):
        for label in "ab":
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(rng.integers(0, 256, (size + i, size, 3), np.uint8))
                image.save(root / split / label / f"{i}.png")


@pytest.mark.slow
def test_the_host_makes_two_crops_of_large_images(tmp_path):
    """Crops of any images reach the device in pairs, and the run ends like any other."""
    pictures(tmp_path / "data")
    config = tiny(
        data__name="folder",
        data__dir=str(tmp_path / "data"),
        data__classes="",
        preprocessing__train_crop="random_resized",
        batch_size=4,
        epochs=1,
        optimizer__schedule__warmup_epochs=0,
    )
    source = data.open_source(config.data, "train")
    given = {"batch_size": 4, "train": True, "seed": 0}
    preprocessing = preprocessing_of(config.preprocessing)
    batch = next(data.batches(source, preprocessing, **given, crops=2))
    again = next(data.batches(source, preprocessing, **given, crops=2))
    assert batch["image"].shape == (4, 2, 8, 8, 3)
    np.testing.assert_array_equal(batch["image"], again["image"])
    assert (batch["image"][:, 0] != batch["image"][:, 1]).any((1, 2, 3)).all()
    # The first crop is the one that training with one crop would see.
    one = next(data.batches(source, preprocessing, **given))
    np.testing.assert_array_equal(batch["image"][:, 0], one["image"])
    whole = next(data.batches(source, preprocessing, **given, crops=2, crop_area=(1.0, 1.0)))
    assert (whole["image"] != batch["image"]).any()
    train(config, tmp_path / "run")
    assert fct_jax.load_model(tmp_path / "run").dim == 8


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"augmentation__crop_area": (0.0, 1.0)}, "augmentation.crop_area"),
        ({"augmentation__blur_probability": 2.0}, "augmentation.blur_probability"),
        ({"augmentation__rotations": 1.0}, "did you mean 'rotation'"),
        ({"optimizer__name": "larsx"}, "did you mean 'lars'"),
    ],
)
def test_mistakes(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(tiny(**changes), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("module", [cifar100_simclr, imagenet_simclr, digits_simclr])
def test_published_configs(module):
    """Their keys exist, their augmentation is sound, and they take the old model's classes."""
    config = module.get_config()
    configs.check(config)
    augment.Augmentation.from_dict(config.augmentation)
    assert config.data.classes
    if module is not digits_simclr:
        assert config.model.embedding_dim == 128 and config.model.name == "resnet50"
        assert config.optimizer.name == "lars"
