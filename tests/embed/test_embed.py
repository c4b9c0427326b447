"""Embedding and transforming: runs to EmbeddingSets, and everything that does not fit together."""

import json
import subprocess

import numpy as np
import pytest
import tiny_models
import tiny_runs
from ml_collections import ConfigDict
from PIL import Image

import fct_jax
from fct_jax import config as configs
from fct_jax import data
from fct_jax.embed.command import embed
from fct_jax.embed.images import embeddings_of
from fct_jax.errors import UserError
from fct_jax.frozen.model import Embedder, Transformer
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.train.loop import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Make runs old, new, fct, fastfill and fastfill_side (whose side model is new)."""
    folder = tmp_path_factory.mktemp("runs")
    old = tiny_models.backbone_run(folder / "old")
    new = tiny_models.backbone_run(folder / "new", dim=12)
    for kind in ("fct", "fastfill"):
        tiny_models.transformation_run(folder / kind, kind, old, new)
    tiny_models.transformation_run(folder / "fastfill_side", "fastfill", old, new, side=new)
    for name in ("old", "new"):
        (folder / name / "config.json").write_text("{}")
    return folder


def embed_config(**changes):
    return tiny_runs.changed(configs.embed(), changes)


@pytest.mark.slow
def test_load_model_embeds_images_of_any_size(runs):
    model = fct_jax.load_model(runs / "old")
    assert isinstance(model, Embedder)
    assert model.dim == 8 and model.classifier.shape == (10, 8)
    rng = np.random.default_rng(0)
    for shape in ((3, 8, 8, 3), (1, 30, 17, 3), (300, 8, 8, 3), (0, 8, 8, 3)):
        images = rng.integers(0, 256, shape, np.uint8)
        found = model.embed(images)
        assert found.shape == (shape[0], 8) and found.dtype == np.float32
    # An image's embedding does not depend on its batch.
    np.testing.assert_allclose(model.embed(images[:0]), np.empty((0, 8)), rtol=0)
    images = rng.integers(0, 256, (7, 8, 8, 3), np.uint8)
    alone = np.concatenate([model.embed(images[i : i + 1]) for i in range(7)])
    np.testing.assert_allclose(model.embed(images, batch_size=3), alone, atol=1e-5)


def test_embed_refuses_other_arrays(runs):
    model = fct_jax.load_model(runs / "old")
    with pytest.raises(UserError, match=r"images must be \(N, H, W, 3\) uint8"):
        model.embed(np.zeros((2, 8, 8, 3), np.float32))


def test_classifier_gives_the_models_logits(runs):
    model = fct_jax.load_model(runs / "new")
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    logits, embedding = model.forward(model.variables, images)
    np.testing.assert_allclose(embedding @ model.classifier.T, logits, atol=1e-4)
    # To embed takes no classifier, so it stays on the host.
    np.testing.assert_allclose(model.run(images), embedding, atol=1e-5)
    assert "classifier" not in model.needed["params"]
    assert isinstance(model.variables["params"]["classifier"]["kernel"], np.ndarray)


def test_command_embeds_the_runs_own_data(runs, tmp_path):
    config = embed_config(model=str(runs / "old"))
    made = embed(config, tmp_path / "set")
    source = data.open_source(ConfigDict({"name": "digits"}), "validation")
    assert len(made) == len(source)
    np.testing.assert_array_equal(made.labels, source.labels)
    np.testing.assert_array_equal(made.ids, source.ids)
    model = fct_jax.load_model(runs / "old")
    assert made.fingerprint == model.fingerprint
    images = np.stack([source[i]["image"] for i in range(20)])
    np.testing.assert_allclose(made.vectors[:20], model.embed(images), atol=1e-5)
    with pytest.raises(UserError, match="exists already"):
        embed(config, tmp_path / "set")


@pytest.mark.slow
def test_views_of_a_flip(runs):
    """View 0 is the image, view 1 its mirror image: the two results of a random flip."""
    config = tiny_runs.transformation(runs / "old", runs / "new")
    config.preprocessing.flip = True
    sets = [embeddings_of(config.old, "old", config, "train", view=view) for view in (0, 1)]
    model = fct_jax.load_model(runs / "old")
    source = data.open_source(config.data, "train")
    images = np.stack([source[i]["image"] for i in range(10)])
    np.testing.assert_allclose(sets[0].vectors[:10], model.embed(images), atol=1e-5)
    np.testing.assert_allclose(sets[1].vectors[:10], model.embed(images[:, :, ::-1]), atol=1e-5)
    again = embeddings_of(config.old, "old", config, "train", view=1)
    assert again.name == sets[1].name


@pytest.mark.parametrize("kind, uncertain", [("fct", False), ("fastfill", True)])
def test_command_transforms_a_set(runs, tmp_path, kind, uncertain):
    old = embed(embed_config(model=str(runs / "old")), tmp_path / "old")
    config = embed_config(model=str(runs / kind), old=str(tmp_path / "old"), batch_size=100)
    made = embed(config, tmp_path / "moved")
    model = fct_jax.load_model(runs / kind)
    assert isinstance(model, Transformer)
    assert made.vectors.shape == (len(old), 12)
    assert made.fingerprint == fct_jax.load_model(runs / "new").fingerprint
    assert (made.uncertainty is not None) == uncertain
    vectors, log_variance = model.transform(old.vectors[:50])
    np.testing.assert_allclose(made.vectors[:50], vectors, atol=1e-5)
    if uncertain:
        np.testing.assert_allclose(made.uncertainty[:50], log_variance, atol=1e-5)
    np.testing.assert_array_equal(made.ids, old.ids)


def test_side_information_is_asked_for_and_used(runs, tmp_path):
    sets = {
        name: embed(embed_config(model=str(runs / name)), tmp_path / name)
        for name in ("old", "new")
    }
    config = embed_config(model=str(runs / "fastfill_side"), old=sets["old"].name)
    with pytest.raises(UserError, match=r"give config\.side"):
        embed(config, tmp_path / "moved")
    config.side = sets["old"].name
    with pytest.raises(UserError, match="was trained on side vectors of model"):
        embed(config, tmp_path / "moved")
    config.side = sets["new"].name
    assert embed(config, tmp_path / "moved").vectors.shape[1] == 12


def test_sets_of_another_model_are_refused(runs, tmp_path):
    new = embed(embed_config(model=str(runs / "new")), tmp_path / "new")
    config = embed_config(model=str(runs / "fct"), old=new.name)
    with pytest.raises(UserError, match="was trained on old vectors of model"):
        embed(config, tmp_path / "moved")
    EmbeddingSet.of(new.vectors).write(tmp_path / "unknown")
    config.old = str(tmp_path / "unknown")
    with pytest.raises(UserError, match="has dimension 12; the transformation takes old .* of 8"):
        embed(config, tmp_path / "moved")
    assert not (tmp_path / "moved").exists()


def test_damaged_models_are_refused(runs, tmp_path):
    subprocess.run(["cp", "-r", runs / "old", tmp_path / "run"], check=True)
    file = tmp_path / "run" / "model" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="weights.safetensors cannot be read"):
        fct_jax.load_model(tmp_path / "run")
    subprocess.run(["rm", "-r", tmp_path / "run" / "model"], check=True)
    with pytest.raises(UserError, match="training has not ended"):
        fct_jax.load_model(tmp_path / "run")
    with pytest.raises(UserError, match="not a run"):
        fct_jax.load_model(tmp_path)


@pytest.mark.slow
def test_own_vectors_train_a_transformation(runs, tmp_path):
    """EmbeddingSets replace runs, with and without labels and classifier."""
    rng = np.random.default_rng(0)
    old = rng.standard_normal((200, 5)).astype(np.float32)
    new = np.tanh(old @ rng.standard_normal((5, 6))).astype(np.float32)
    labels = rng.integers(0, 4, 200)
    EmbeddingSet.of(old, labels=labels, meta={"fingerprint": "o"}).write(tmp_path / "old")
    EmbeddingSet.of(new, labels=labels, meta={"fingerprint": "n"}).write(tmp_path / "new")
    config = tiny_runs.transformation(
        tmp_path / "old", tmp_path / "new", epochs=30, optimizer__lr=1e-2
    )
    config.validation_old, config.validation_new = config.old, config.new
    train(config, tmp_path / "fct")
    entries = [json.loads(s) for s in (tmp_path / "fct" / "metrics.jsonl").read_text().splitlines()]
    losses = [entry["validation/loss"] for entry in entries if "validation/loss" in entry]
    assert losses[-1] < 0.5 * new.var()

    fastfill = tiny_runs.transformation(tmp_path / "old", tmp_path / "new", "fastfill")
    with pytest.raises(UserError, match="needs the new model's classifier"):
        train(fastfill, tmp_path / "fastfill")
    np.save(tmp_path / "classifier.npy", np.eye(3, 6, dtype=np.float32))
    fastfill.classifier = str(tmp_path / "classifier.npy")
    with pytest.raises(UserError, match="label 3 does not fit the classifier"):
        train(fastfill, tmp_path / "fastfill")
    np.save(tmp_path / "classifier.npy", np.eye(4, 6, dtype=np.float32))
    train(fastfill, tmp_path / "fastfill")
    assert fct_jax.load_model(tmp_path / "fastfill").description["new_fingerprint"] == "n"


def test_pairs_that_do_not_fit_are_refused_before_training(runs, tmp_path):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((200, 5)).astype(np.float32)
    EmbeddingSet.of(vectors).write(tmp_path / "old")
    EmbeddingSet.of(vectors[:150]).write(tmp_path / "short")
    EmbeddingSet.of(vectors, ids=np.arange(200)[::-1]).write(tmp_path / "shuffled")
    broken = vectors.copy()
    broken[17, 2] = np.nan
    EmbeddingSet.of(broken).write(tmp_path / "broken")
    for other, message in (
        ("short", "200 vectors and .*short has 150"),
        ("shuffled", "row 0 is id 0 in .*old and id 199"),
        ("broken", "the vector of id 17 is not finite"),
        ("nowhere", "does not exist"),
    ):
        config = tiny_runs.transformation(tmp_path / "old", tmp_path / other)
        with pytest.raises(UserError, match=message):
            train(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()
    config = tiny_runs.transformation(tmp_path / "old", runs / "new")
    with pytest.raises(UserError, match="must be all runs or all EmbeddingSets"):
        train(config, tmp_path / "run")


def test_preprocessing_that_contradicts_the_runs_is_refused(runs, tmp_path):
    for online in (False, True):
        config = tiny_runs.transformation(runs / "old", runs / "new", online=online)
        config.preprocessing.size = 16
        with pytest.raises(UserError, match="preprocessing.size=16, but .*old embeds .* size=8"):
            train(config, tmp_path / "run")


@pytest.mark.slow
def test_online_equals_cached_in_distribution(runs, tmp_path):
    """Without augmentation, recomputed and cached embeddings give the same training."""
    for online in (False, True):
        config = tiny_runs.transformation(runs / "old", runs / "new", online=online)
        train(config, tmp_path / str(online))
    entries = [
        [json.loads(s) for s in (tmp_path / str(o) / "metrics.jsonl").read_text().splitlines()]
        for o in (False, True)
    ]
    for cached, recomputed in zip(*entries, strict=True):
        for name in cached.keys() - {"train/steps_per_second", "train/data_wait"}:
            value = cached[name]
            assert value == pytest.approx(recomputed[name], rel=1e-3), name


def make_folder(root, damaged=False):
    rng = np.random.default_rng(0)
    for split, count in (("training", 4), ("validation", 3)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (10, 9, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    if damaged:
        (root / "validation" / "dog" / "1.png").write_bytes(b"not a picture")


def test_unreadable_images_are_named_or_skipped(runs, tmp_path, capsys):
    make_folder(tmp_path / "images", damaged=True)
    config = embed_config(model=str(runs / "old"), data__name="folder")
    config.data.dir = str(tmp_path / "images")
    with pytest.raises(UserError, match=r"dog/1\.png"):
        embed(config, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    config.data.on_error = "skip"
    made = embed(config, tmp_path / "set")
    assert "1 of 6 images were skipped" in capsys.readouterr().out
    assert len(made) == 5
    assert made.meta["skipped"] == 1
    assert not any("dog/1.png" in name for name in made.ids)
    np.testing.assert_array_equal(made.labels, [0, 0, 0, 1, 1])
