"""What a compatible training starts from: statistics, old embeddings, weights that must fit."""

import numpy as np
import pytest
import tiny_runs
from ml_collections import ConfigDict
from tiny_compatible import NEW_DATA, config, new_config, old_run, refused, task_of

from fct_jax import config as configs
from fct_jax import data, load_model
from fct_jax.embed.command import embed
from fct_jax.errors import UserError
from fct_jax.storage.class_statistics import class_statistics, load_statistics, save_statistics
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.train.loop import train

pytestmark = pytest.mark.usefixtures("flat_model")


@pytest.fixture(scope="module")
def old(tmp_path_factory, flat_model):
    """Train an old model of five renumbered classes."""
    return old_run(tmp_path_factory.mktemp("runs"))


def test_statistics_by_hand_and_by_the_task_agree(old, tmp_path):
    command = configs.embed()
    command.model, command.split, command.class_statistics = old, "train", True
    made = embed(command, tmp_path / "old_train")
    for kind, method in (("euclidean", "advbct"), ("angle", "lce")):
        file = tmp_path / "old_train" / f"class_statistics_{kind}.npz"
        stats = load_statistics(file, fingerprint=made.fingerprint, num_classes=5, kind=kind)
        by_task = task_of(new_config(old, method)).frozen["statistics"]
        np.testing.assert_allclose(by_task.center, stats.center, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(by_task.radius, stats.radius, rtol=1e-4, atol=1e-6)
        for where in (file, file.parent):
            given = task_of(new_config(old, method, statistics=str(where))).frozen["statistics"]
            np.testing.assert_array_equal(given.center, stats.center)
    # These are only the old model's own training images.
    assert len(made) == (np.asarray(made.labels) < 5).sum() < 600


def test_vectors_of_another_program_may_be_the_old_side(old, tmp_path):
    source = data.open_source(ConfigDict({"name": "digits", "subset": NEW_DATA}), "train")
    rng = np.random.default_rng(0)
    shuffled = rng.permutation(len(source))
    vectors = rng.standard_normal((len(source), 8), np.float32)
    labels = source.labels
    there = EmbeddingSet.of(vectors[shuffled], source.ids[shuffled], labels[shuffled])
    there.write(tmp_path / "foreign")
    task = task_of(new_config(str(tmp_path / "foreign"), "advbct"))
    np.testing.assert_array_equal(task.frozen["embeddings"][0], vectors)
    expected = class_statistics(vectors, labels, 10)
    np.testing.assert_allclose(task.frozen["statistics"].center, expected.center, atol=1e-6)

    foreign = str(tmp_path / "foreign")
    refused(new_config(foreign, "bct"), "bct needs the old model's classifier", tmp_path)
    there = EmbeddingSet.of(vectors[:990], source.ids[:990])
    there.write(tmp_path / "short")
    short = str(tmp_path / "short")
    refused(new_config(short, "l2"), "10 of 1000 training images have no embedding", tmp_path)
    there = EmbeddingSet.of(vectors, source.ids, (labels + 1) % 10)
    there.write(tmp_path / "relabelled")
    refused(new_config(str(tmp_path / "relabelled"), "l2"), "has label", tmp_path)


def test_refusals(old, tmp_path):
    refused(new_config(old, "bcct"), "unknown compatible training method 'bcct'.*'bct'", tmp_path)
    refused(new_config("", "bct"), "config.old is empty", tmp_path)
    refused(new_config(str(tmp_path), "bct"), "no gallery at", tmp_path)
    other_size = new_config(old, model__embedding_dim=16)
    refused(other_size, "set config.model.embedding_dim=8, not 16", tmp_path)
    refused(new_config(old, data__subset=""), "config.data.subset='new classes 0.5", tmp_path)
    crops = new_config(old, preprocessing__train_crop="random_resized")
    refused(crops, "train_crop=none", tmp_path)
    task_of(new_config(old, "lwf", model__embedding_dim=16))  # LwF compares logits


def test_statistics_that_do_not_fit_are_refused(old, tmp_path):
    rng = np.random.default_rng(0)

    def given(num_classes, fingerprint, kind="euclidean"):
        vectors, labels = rng.standard_normal((40, 8)), np.arange(40) % num_classes
        stats = class_statistics(vectors, labels, num_classes, kind)
        save_statistics(tmp_path / "stats.npz", stats, fingerprint=fingerprint)
        return new_config(old, "advbct", statistics=str(tmp_path / "stats.npz"))

    own = load_model(old).fingerprint
    task_of(given(5, own))
    refused(given(5, "another"), "fingerprint 'another'", tmp_path)
    refused(given(7, own), "num_classes 7, expected 5", tmp_path)
    refused(given(5, own, "angle"), "kind 'angle'", tmp_path)
    missing = new_config(old, "advbct", statistics=str(tmp_path / "none.npz"))
    refused(missing, "no class statistics found", tmp_path)


def test_classes_of_an_old_model_that_was_never_renumbered(tmp_path):
    train(config(data__classes="first 4"), tmp_path / "first")
    task = task_of(new_config(str(tmp_path / "first"), "bct", data__subset=""))
    assert task.frozen["classifier"].shape == (4, 8)  # the trained ones of ten rows
    train(config(data__classes="2-5"), tmp_path / "middle")
    middle = new_config(str(tmp_path / "middle"), "bct", data__subset="")
    refused(middle, "numbered from 0 on", tmp_path)


def test_pretrained_weights_must_fit(old, tmp_path):
    from safetensors.numpy import save_file

    save_file({"conv1.weight": np.zeros((8, 3, 7, 7), np.float32)}, tmp_path / "w.safetensors")
    wrong = tiny_runs.changed(new_config(old), {"pretrained": str(tmp_path / "w.safetensors")})
    with pytest.raises(UserError, match="weights do not fit"):
        train(wrong, tmp_path / "run")
