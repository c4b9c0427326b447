"""Every compatible method trains, and does what was published."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses_golden import close, statistics
from ml_collections import FrozenConfigDict
from safetensors.numpy import load_file
from tiny_compatible import NEW_DATA, config, new_config, old_run, refused, task_of

from fct_jax import config as configs
from fct_jax import data, load_model, losses, models
from fct_jax.errors import UserError
from fct_jax.models.lce_transformation import LCETransformation
from fct_jax.storage.class_statistics import class_statistics
from fct_jax.train.compatible.methods import METHODS, Compatibility, Step
from fct_jax.train.image_batches import preprocessing_of
from fct_jax.train.loop import train

pytestmark = pytest.mark.usefixtures("flat_model")


@pytest.fixture(scope="module")
def old(tmp_path_factory, flat_model):
    """Train an old model of five renumbered classes."""
    return old_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, flat_model):
    """Train a new 12-dimensional model of all ten classes without regard to the old one."""
    run = tmp_path_factory.mktemp("runs") / "teacher"
    train(config(data__subset=NEW_DATA, seed=4, model__embedding_dim=12), run)
    return str(run)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method, old, teacher, tmp_path):
    run, row = tmp_path / "run", METHODS[method]
    dim = row.size.of(8, 8, 12)
    changes = {"teacher": teacher} if row.teacher else {}
    train(new_config(old, method, model__embedding_dim=dim, **changes), run)
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = [entry for entry in entries if "train/base" in entry]
    assert last["train/base"] < first["train/base"]
    assert 0 <= last["train/share"] <= 1
    assert (last["train/share"] > 0) == (method != "none")
    names = {*METHODS, "boundary", "alignment", "adversarial", "compatibility", "teacher"}
    parts = {name for name in names if f"train/{name}" in last}
    known = {"oca": losses.OCA_WEIGHTS, "bt2": losses.BT2_WEIGHTS}
    weights = known[method]._asdict() if method in known else {}
    # In the epoch of the last steps, the adversarial loss has the weight 1.
    expected = sum(weights.get(name, 1.0) * last[f"train/{name}"] for name in parts)
    expected += row.base_weight * last["train/base"]
    assert last["train/loss"] == pytest.approx(expected, rel=1e-4)
    assert bool(parts) == (method not in ("none", "mixbct"))
    # The export is an ordinary backbone, without parts that only training needs.
    model = load_model(run)
    served = 12 + 8 // 4 if method == "bt2" else dim
    assert model.description["kind"] == "backbone" and model.classifier.shape == (10, served)
    trained = {"projection", "projection_bn", "classifier"}
    if method == "bt2":
        assert set(model.variables["params"]["backbone"]) == trained
    else:
        assert set(model.variables["params"]) == trained
    assert model.embed(np.zeros((2, 8, 8, 3), np.uint8)).shape == (2, served)
    if method != "none":
        told = model.description["compatible"]
        before = load_model(old).fingerprint
        assert (told["method"], told["old_dim"], told["old_fingerprint"]) == (method, 8, before)
        assert told["old_first"] == (served > 8)


@pytest.mark.slow
def test_bt2_is_exported_as_one_vector_that_begins_with_the_old_space(old, teacher, tmp_path):
    refused(new_config(old, "bt2"), "needs config.teacher: the run of the new model", tmp_path)
    given = {"teacher": teacher, "model__embedding_dim": 20}
    small = new_config(old, "bt2", **{**given, "model__embedding_dim": 12})
    refused(small, "dimension 8, the teacher's 12, so set config.model.embedding_dim=20", tmp_path)
    much = new_config(old, "bt2", compatibility__extra=9, **given)
    refused(much, "config.compatibility.extra=9 must be at most 8", tmp_path)

    made = new_config(old, "bt2", epochs=6, evaluate_every_epochs=6, **given)
    train(made, tmp_path / "new")
    model, before = load_model(tmp_path / "new"), load_model(old)
    source = data.open_source(config(data__subset=NEW_DATA).data, "train")
    pixels = np.stack([source[i]["image"] for i in range(200)])
    new, labels = model.embed(pixels), source.labels[:200]
    assert new.shape == (200, 12 + 2) and model.dim == 14
    # The transformation loses nothing: a unit part of 2 numbers, and one of length C = 2.
    np.testing.assert_allclose(np.sum(new**2, axis=1), 5.0, rtol=1e-5)
    # Compute it by hand in float64 from the exported parameters.
    weights = load_file(tmp_path / "new" / "model" / "weights.safetensors")
    weights = {name.removeprefix("params/"): np.float64(w) for name, w in weights.items()}
    raw = np.float64(model.preprocessing.on_device(pixels)).reshape(200, -1)
    raw = raw @ weights["backbone/projection/kernel"]
    norm = {k: weights[f"backbone/projection_bn/{k}"] for k in ("scale", "bias")}
    running = {k: weights[f"batch_stats/backbone/projection_bn/{k}"] for k in ("mean", "var")}
    raw = (raw - running["mean"]) / np.sqrt(running["var"] + 1e-5) * norm["scale"] + norm["bias"]

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    branch = np.maximum(raw, 0) @ weights["branch/kernel"] + weights["branch/bias"]
    own = unit(raw[:, :12])
    z = np.hstack([unit(unit(branch)[:, :2]), 2 * own @ weights["new_basis"].T])
    expected = np.hstack([z[:, :8] @ weights["old_basis"].T, z[:, 8:]])
    np.testing.assert_allclose(new, expected, atol=1e-4)
    for basis in ("new_basis", "old_basis"):
        turn = weights[basis]
        np.testing.assert_allclose(turn @ turn.T, np.eye(len(turn)), atol=1e-5)
        assert np.abs(turn - np.eye(len(turn))).max() > 1e-3  # it was learned
    # The exported classifier gives the logits of the new model's own vector.
    logits = own @ weights["backbone/classifier/kernel"][:12]
    np.testing.assert_allclose(new @ model.classifier.T, logits, atol=1e-4)
    assert (logits.argmax(1) == labels).mean() > 0.6
    # Cosine with the mean of the own class in the old space, beside those of other classes.
    means = unit(class_statistics(before.embed(pixels), labels, 10).center)
    likeness = unit(new[:, :8]) @ means.T
    own = likeness[np.arange(200), labels]
    assert (own > np.where(np.arange(10) == labels[:, None], -1, likeness).max(1)).mean() > 0.6


@pytest.mark.slow
def test_a_bt2_step_is_the_sum_of_its_published_parts(old, teacher):
    task = task_of(new_config(old, "bt2", teacher=teacher, model__embedding_dim=20))
    variables, batch = jax.jit(task.init)(jax.random.key(0)), first_batch(task)
    step = jax.jit(lambda v: task.loss(v, task.frozen, batch, 0, jax.random.key(1), False))
    loss, (_, metrics) = step(variables)
    weights = {"base": 1, "teacher": 1, "compatibility": 10, "alignment": 5}
    expected = sum(factor * float(metrics[name]) for name, factor in weights.items())
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    model = load_model(teacher)
    images = model.preprocessing.on_device(batch["image"])
    outputs = models.build("flat", num_classes=10, embedding_dim=20).apply(
        {part: variables[part]["model"] for part in variables}, images, train=True, mutable=True
    )[0][1]
    theirs = np.float64(model.forward(model.variables, batch["image"])[1])
    ours = np.float64(outputs[:, :12])
    cosines = np.sum(ours * theirs, 1) / np.linalg.norm(ours, axis=1)
    cosines /= np.linalg.norm(theirs, axis=1)
    assert float(metrics["teacher"]) == pytest.approx(1 - cosines.mean(), rel=1e-4)
    # While both bases are the identity, z begins with the compatible part.
    learned = variables["params"]["method"]
    assert not np.any(learned["new_turn"]) and not np.any(learned["old_turn"])
    branch = np.maximum(outputs, 0) @ learned["branch"]["kernel"] + learned["branch"]["bias"]
    head = np.asarray(branch)[:, :2]
    z = np.hstack([head / np.linalg.norm(head, axis=1, keepdims=True), 2 * own_unit(ours)])[:, :8]
    before = np.float64(task.frozen["embeddings"])[0][np.asarray(batch["index"])]
    cosines = np.sum(own_unit(z) * own_unit(before), 1)
    assert float(metrics["alignment"]) == pytest.approx(1 - cosines.mean(), rel=1e-4)


def own_unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.slow
def test_oca_keeps_the_old_space_in_the_first_numbers(old, tmp_path):
    refused(new_config(old, "oca"), "first numbers of a larger.*embedding_dim=10", tmp_path)
    changes = {"model__embedding_dim": 10, "epochs": 6, "evaluate_every_epochs": 6}
    train(new_config(old, "oca", **changes), tmp_path / "new")
    model, before = load_model(tmp_path / "new"), load_model(old)
    source = data.open_source(config(data__subset=NEW_DATA).data, "train")
    pixels = np.stack([source[i]["image"] for i in range(200)])
    new, labels = model.embed(pixels), source.labels[:200]
    # Cosine with the mean of the own class in the old space, beside those of other classes.
    means = class_statistics(before.embed(pixels), labels, 10).center
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    likeness = new[:, :8] / np.linalg.norm(new[:, :8], axis=1, keepdims=True) @ means.T
    own = likeness[np.arange(200), labels]
    assert (own > np.where(np.arange(10) == labels[:, None], -1, likeness).max(1)).mean() > 0.6
    # The exported classifier includes the rotation: it classifies unrotated embeddings.
    unit = new / np.linalg.norm(new, axis=1, keepdims=True)
    assert ((unit @ model.classifier.T).argmax(1) == labels).mean() > 0.6


@pytest.mark.slow
def test_mixbct_lets_old_embeddings_stand_for_new_ones(old):
    task = task_of(new_config(old, "mixbct", compatibility__mix_share=0.5))
    batch, key = first_batch(task), jax.random.key(3)
    assert task.frozen["credible"].shape == (1000,)
    assert 0.85 < float(jnp.mean(task.frozen["credible"])) < 0.95
    variables = jax.jit(task.init)(jax.random.key(0))

    def base(old_scale):
        frozen = {**task.frozen, "embeddings": old_scale * task.frozen["embeddings"]}
        return task.loss(variables, frozen, batch, 0, key, False)[1][1]

    assert float(base(1.0)["share"]) == 0.5
    close(base(2.0)["base"], base(1.0)["base"])  # only the directions of old embeddings count
    assert float(base(-1.0)["base"]) != pytest.approx(float(base(1.0)["base"]), rel=1e-3)


@pytest.mark.slow
def test_method_changes_the_model(old, tmp_path):
    weights = {}
    for name, method, scale in (("a", "bct", 1.0), ("b", "bct", 0.0), ("c", "none", 1.0)):
        train(new_config(old, method, compatibility__weight=scale), tmp_path / name)
        weights[name] = load_file(tmp_path / name / "model" / "weights.safetensors")
    kernel = "params/projection/kernel"
    np.testing.assert_array_equal(weights["b"][kernel], weights["c"][kernel])
    assert np.abs(weights["a"][kernel] - weights["c"][kernel]).max() > 1e-3


@pytest.mark.slow
def test_same_seed_same_weights(old, tmp_path):
    for name in ("a", "b"):
        train(new_config(old), tmp_path / name)
    one, other = (load_file(tmp_path / n / "model" / "weights.safetensors") for n in ("a", "b"))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("base", ["arcface", "cosface"])
def test_base_losses(base, old):
    task_config = new_config(old, "bct_ract", base_loss=base)
    task = task_of(task_config)
    variables = jax.jit(task.init)(jax.random.key(0))
    batch = first_batch(task)
    step = jax.jit(lambda variables, frozen: task.loss(variables, frozen, batch, 0, None, False))
    loss, (_, metrics) = step(variables, task.frozen)
    model = models.build("flat", num_classes=10, embedding_dim=8)
    images = preprocessing_of(task_config.preprocessing).on_device(batch["image"], batch["flip"])
    embedding = model.apply(
        task.export(variables),
        images,
        train=True,
        mutable=["batch_stats"],
    )[0][1]
    classifier = variables["params"]["model"]["classifier"]["kernel"].T
    logits = losses.base_logits(base, embedding, classifier, batch["label"], 30.0, 0.3)
    expected = losses.cross_entropy(logits, batch["label"]).mean()
    np.testing.assert_allclose(metrics["base"], expected, rtol=1e-5)
    assert loss > expected
    refused_name = new_config(old, base_loss="sphereface")
    with pytest.raises(UserError, match="unknown base loss 'sphereface'.*arcface"):
        configs.check(refused_name)


def first_batch(task):
    _, call = next(iter(task.feed.calls(0)))
    return task.feed.pick(task.feed.data, call[0], jax.random.key(0))


@pytest.mark.parametrize("flip", [False, True])
def test_old_embeddings_are_those_of_the_very_images(flip, old):
    task = task_of(new_config(old, "l2", preprocessing__flip=flip))
    batch = first_batch(task)
    assert task.frozen["embeddings"].shape == (2 if flip else 1, 1000, 8)
    assert bool(batch["flip"].any()) == flip
    outputs = jnp.zeros((60, 10)), jnp.zeros((60, 8))
    params = jax.jit(task.init)(jax.random.key(0))["params"]["model"]
    seen = task.see(params, outputs, task.frozen, batch, 5)
    model = load_model(old)
    expected = model.forward(model.variables, batch["image"], batch["flip"])[1]
    np.testing.assert_allclose(seen.old_embedding, expected, rtol=1e-4, atol=1e-5)
    # Step 5 of two epochs of 16 steps.
    assert seen.progress == pytest.approx(5 / 32)
    assert float(seen.adversarial_weight) == pytest.approx(3 / 2)


@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_advbct_step_equals_the_published_code(golden_advbct, threshold):
    arrays = golden_advbct.arrays("adversarial")
    labels = jnp.asarray(arrays["step/labels"])
    num_old = int(arrays["step/old_class_ids"].max()) + 1
    epoch, epochs, batch, batches = (int(n) for n in arrays["step/epoch_nepoch_batchidx_len"])
    options = configs.compatibility()
    options.threshold = threshold
    method = Compatibility(METHODS["advbct"], FrozenConfigDict(options))

    def weight(name):
        return jnp.asarray(arrays[f"disc/d_{name}"])

    discriminator = {
        "fc1": {"kernel": weight("fc1.weight").T, "bias": weight("fc1.bias")},
        "bn1": {"scale": weight("bn1.weight"), "bias": weight("bn1.bias")},
        "fc2": {"kernel": weight("fc2.weight").T, "bias": weight("fc2.bias")},
    }
    running = {"mean": weight("bn1.running_mean"), "var": weight("bn1.running_var")}

    def total(feat, w_new, learned):
        logits = feat @ w_new.T
        step = Step(
            embedding=feat,
            logits=logits,
            classifier=w_new,
            labels=labels,
            old_embedding=jnp.asarray(arrays["step/feat_old"]),
            old_classifier=None,
            statistics=statistics(arrays, num_old, "euclidean", prefix="step/"),
            progress=(batch + epoch * batches) / (epochs * batches),
            adversarial_weight=losses.adversarial_weight(epoch, epochs),
        )
        variables = {"params": learned, "batch_stats": {"discriminator": {"bn1": running}}}
        (_, terms), new = method.apply(
            variables, step, lambda embedding: logits, jax.random.key(0), mutable=["batch_stats"]
        )
        base = losses.cross_entropy(logits, labels).mean()
        return base + terms.total, (terms.losses, terms.share, new)

    learned = {"elastic": jnp.asarray(arrays["step/eb_weight"]), "discriminator": discriminator}
    (value, (parts, share, new)), (feat, w_new, gradients) = jax.jit(
        jax.value_and_grad(total, (0, 1, 2), has_aux=True)
    )(jnp.asarray(arrays["step/feat"]), jnp.asarray(arrays["step/w_new"]), learned)

    expected = {
        key.removeprefix(f"step_t{threshold}/"): value
        for key, value in arrays.items()
        if key.startswith(f"step_t{threshold}/")
    }
    close(value, expected["total_loss"])
    close(parts["boundary"], expected["comp_loss"])
    close(parts["adversarial"], expected["model_loss"])  # it is logged without the epoch's weight
    assert round(float(share) * len(labels)) == expected["violators"]
    close(feat, expected["grad_feat"])
    close(w_new, expected["grad_w_new"])
    close(gradients["elastic"], expected["grad_eb_weight"])
    judged = gradients["discriminator"]
    close(judged["fc1"]["kernel"].T, expected["grad_disc.d_fc1.weight"])
    close(judged["bn1"]["scale"], expected["grad_disc.d_bn1.weight"])
    close(judged["fc2"]["kernel"].T, expected["grad_disc.d_fc2.weight"])
    after = new["batch_stats"]["discriminator"]["bn1"]
    assert np.abs(after["mean"] - running["mean"]).max() > 1e-3


def test_lce_transformation_learns(old):
    task = task_of(new_config(old, "lce", compatibility__transformation_blocks=2))
    variables = jax.jit(task.init)(jax.random.key(0))
    batch = first_batch(task)

    def loss(params):
        seen = {**variables, "params": params}
        return task.loss(seen, task.frozen, batch, 0, None, False)[0]

    gradients = jax.jit(jax.grad(loss))(variables["params"])["method"]["transformation"]
    assert {name.split("_")[0] for name in gradients} == {"block0", "block1"}
    assert np.abs(gradients["block0_fc0"]["kernel"]).max() > 0


@pytest.mark.slow
def test_lce_transformation_is_exported(old, tmp_path):
    run = tmp_path / "run"
    train(new_config(old, "lce", compatibility__transformation_blocks=2), run)
    gallery = load_model(run / "gallery")
    assert gallery.old_fingerprint == load_model(old).fingerprint
    assert gallery.new_fingerprint == load_model(run).fingerprint
    vectors = np.random.default_rng(0).standard_normal((5, 8), np.float32)
    moved, uncertainty = gallery.transform(vectors)
    expected = LCETransformation(2).apply(gallery.variables, vectors)
    np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-6)
    assert uncertainty is None and np.abs(moved - vectors).max() > 1e-3
    train(new_config(old, "lce"), tmp_path / "plain")
    assert not (tmp_path / "plain" / "gallery").exists()


def test_old_model_is_validated_on_its_own_classes(old):
    metrics = json.loads((Path(old) / "metrics.jsonl").read_text().splitlines()[-1])
    assert np.isfinite(metrics["validation/loss"])
    assert metrics["validation/top1"] > 0.8
