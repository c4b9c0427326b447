"""Python functions in place of runs: their inputs, valid outputs, and the cache of outputs."""

import sys

import numpy as np
import pytest
import tiny_runs

import fct_jax
from fct_jax import config as configs
from fct_jax import data
from fct_jax.embed.command import embed
from fct_jax.embed.images import embeddings_of
from fct_jax.errors import UserError
from fct_jax.evaluate.command import evaluate
from fct_jax.frozen.callable_model import CallableModel
from fct_jax.frozen.runs import is_callable_name
from fct_jax.train.compatible.methods import find_method
from fct_jax.train.compatible.old_model import old_model
from fct_jax.train.loop import train

MODULE = """
import numpy as np
seen = []

def old(images):
    seen.append((images.shape, images.dtype))
    return images[:, ::2, ::2, 0].reshape(len(images), -1) / 255.0
old.image_size = 8

def new(images):
    return images[:, :, :, 0].reshape(len(images), -1).astype(np.float16) / 16
new.image_size = 8

def side(images):
    return np.stack([images.mean((1, 2, 3)), images[:, :4].mean((1, 2, 3))], 1)
side.image_size = 8

def large(images):
    return images.mean((1, 2))

def flat(images):
    return images.mean((1, 2, 3))

def short(images):
    return images.mean((1, 2))[1:]

def text(images):
    return np.full((len(images), 2), "a")

def growing(images):
    seen.append(0)
    return np.ones((len(images), len(seen)))

def nan(images):
    return np.where(np.arange(len(images))[:, None] == 2, np.nan, images.mean((1, 2)))

def half(images):
    return images.mean((1, 2))
half.image_size = 0.5

def failing(images):
    raise RuntimeError("no memory" + chr(10) + "more")

def ragged(images):
    return [[1, 2], [3]]

def large_values(images):
    return np.full((len(images), 2), 1e300)

number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a new module "their_models" on the path."""
    (tmp_path / "their_models.py").write_text(MODULE)
    (tmp_path / "their_broken.py").write_text("import no_such_package\n")
    (tmp_path / "their_mistyped.py").write_text("def f(images)\n")
    (tmp_path / "their_stopping.py").write_text("raise ValueError('no weights')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("their_models", "their_broken"):
        sys.modules.pop(name, None)


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a:b", "a.b_1:c"):
        assert is_callable_name(name)
    for name in ("runs/old", "a", "a:", ":b", "a/b:c", "a:b:c", "1a:b", "a-b:c", ""):
        assert not is_callable_name(name)
    (tmp_path / "a:b").mkdir()
    assert not is_callable_name("a:b")


def test_what_the_function_gets(module):
    model = fct_jax.load_model("their_models:old")
    assert isinstance(model, CallableModel)
    assert model.dim == 16 and model.classifier is None
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), np.uint8)
    found = model.embed(images, batch_size=3)
    assert found.shape == (7, 16) and found.dtype == np.float32
    np.testing.assert_allclose(found, images[:, ::2, ::2, 0].reshape(7, -1) / 255, rtol=1e-6)
    assert model.embed(images[:0]).shape == (0, 16)
    model.embed(np.zeros((2, 30, 17, 3), np.uint8))  # images of other sizes are resized
    seen = sys.modules["their_models"].seen
    assert {shape[1:] for shape, _ in seen} == {(8, 8, 3)}
    assert {dtype for _, dtype in seen} == {np.dtype(np.uint8)}
    mirrored = model.run(images, np.arange(7) % 2 == 1)
    np.testing.assert_array_equal(mirrored[::2], found[::2])
    np.testing.assert_array_equal(mirrored[1::2], model.embed(images[1::2, :, ::-1]))
    assert fct_jax.load_model("their_models:large").preprocessing.size == 224
    with pytest.raises(UserError, match=r"images must be \(N, H, W, 3\) uint8"):
        model.embed(images.astype(np.float32))


def test_fingerprint_is_of_what_it_computes(module, monkeypatch):
    first = fct_jax.load_model("their_models:old").fingerprint
    assert first == fct_jax.load_model("their_models:old").fingerprint
    assert first != fct_jax.load_model("their_models:new").fingerprint
    theirs = sys.modules["their_models"]
    original = theirs.old

    def replaced(change):
        def old(images):
            return change(original(images))

        old.image_size = 8
        monkeypatch.setattr(theirs, "old", old)
        return fct_jax.load_model("their_models:old").fingerprint

    assert replaced(lambda e: e * (1 + 1e-6)) == first  # as on another device
    assert replaced(lambda e: e * 2) != first
    assert replaced(lambda e: e[:, ::-1]) != first
    assert replaced(lambda e: 0 * e) != first


@pytest.mark.parametrize(
    "name, message",
    [
        ("no_such_module:f", "no_such_module:f: there is no such module"),
        ("their_models.sub:f", "there is no such module"),
        ("their_broken:f", "its module needs no_such_package, which is not installed"),
        ("their_mistyped:f", "its module cannot be imported: SyntaxError: "),
        ("their_stopping:f", r"imported: ValueError: no weights \(.*their_stopping.py, line 1\)"),
        (
            "their_models:failing",
            r"failed for 4 images: RuntimeError: no memory \(.*their_models.py, line [0-9]+\)",
        ),
        ("their_models:ragged", "failed for 4 images: ValueError: setting an array element"),
        ("their_models:large_values", "not finite, for image 0 of a batch of 4"),
        ("their_models:odl", "did you mean 'old'"),
        ("their_models:number", "must be a function, but it is of type int"),
        ("their_models:flat", r"returned shape \(4,\) for 4 images; it must be \(4, D\)"),
        ("their_models:short", r"returned shape \(3, 3\) for 4 images"),
        ("their_models:text", "real numbers"),
        ("their_models:nan", "not finite, for image 2 of a batch of 4"),
        ("their_models:half", "image_size must be a whole number"),
    ],
)
def test_mistakes(module, name, message):
    with pytest.raises(UserError, match=message) as caught:
        fct_jax.load_model(name)
    assert "\n" not in str(caught.value)


def test_dimension_may_not_change(module):
    model = fct_jax.load_model("their_models:growing")
    with pytest.raises(UserError, match="returned dimension 2, and 1 before"):
        model.embed(np.zeros((1, 8, 8, 3), np.uint8))


def test_embed_command(module, tmp_path):
    config = tiny_runs.changed(configs.embed(), {"model": "their_models:old"})
    with pytest.raises(UserError, match="config.data.name is empty"):
        embed(config, tmp_path / "set")
    config.data.name = "digits"
    made = embed(config, tmp_path / "set")
    assert made.vectors.shape == (797, 16)
    assert made.fingerprint == fct_jax.load_model("their_models:old").fingerprint
    config.class_statistics = True
    with pytest.raises(UserError, match="has no classifier"):
        embed(config, tmp_path / "other")


@pytest.mark.slow
def test_transformation_between_functions(module, tmp_path):
    """Training and evaluation use three functions, whose embeddings are computed once."""
    names = {role: f"their_models:{role}" for role in ("old", "new", "side")}
    config = tiny_runs.transformation(names["old"], names["new"], epochs=2, views=2)
    config.side = names["side"]
    config.callable_embeddings = str(tmp_path / "kept")
    train(config, tmp_path / "fct")
    kept = {path.relative_to(tmp_path / "kept") for path in (tmp_path / "kept").glob("*/*")}
    # For each function: two views of the training images, and the validation images.
    assert len(kept) == 9 and len({path.parent for path in kept}) == 3
    sys.modules["their_models"].seen.clear()
    report = tiny_runs.evaluation(names["old"], names["new"], f"FCT={tmp_path / 'fct'}")
    report.side = names["side"]
    report.callable_embeddings = config.callable_embeddings
    rows = evaluate(report, tmp_path / "report").rows
    assert rows["new/new"]["map"] > 0.5
    assert len(sys.modules["their_models"].seen) == 1  # nothing but the probes is embedded again
    report.side = names["new"]
    with pytest.raises(UserError, match="their_models.new"):
        evaluate(report, tmp_path / "other")


def test_views_are_mirrored(module, tmp_path):
    config = tiny_runs.transformation("their_models:new", "their_models:new")
    config.callable_embeddings = str(tmp_path / "kept")
    config.preprocessing.flip = True
    plain, mirrored = (
        embeddings_of(config.old, "old", config, "train", view=view).vectors.reshape(-1, 8, 8)
        for view in (0, 1)
    )
    np.testing.assert_array_equal(plain[:, :, ::-1], mirrored)


def test_functions_cannot_be_trained_through(module, tmp_path):
    config = tiny_runs.transformation("their_models:old", "their_models:new", online=True)
    with pytest.raises(UserError, match="online=True needs runs"):
        train(config, tmp_path / "run")
    config = tiny_runs.transformation("their_models:old", "their_models:new", "fastfill")
    config.callable_embeddings = str(tmp_path / "kept")
    with pytest.raises(UserError, match="needs the new model's classifier"):
        train(config, tmp_path / "run")


def test_old_function_of_compatible_training(module, tmp_path):
    config = tiny_runs.recipes.digits_compatible()
    config.old = "their_models:old"
    config.preprocessing.flip = True
    config.callable_embeddings = str(tmp_path / "kept")
    source = data.open_source(config.data, "train")
    found = old_model(config, find_method("advbct"), source)
    assert found.dim == 16 and found.embeddings.shape == (2, 1000, 16)
    assert found.statistics.center.shape == (10, 16)
    images = np.stack([source[i]["image"] for i in (0, 999)])
    np.testing.assert_allclose(
        found.embeddings[0][[0, 999]], images[:, ::2, ::2, 0].reshape(2, -1) / 255, rtol=1e-6
    )
    with pytest.raises(UserError, match="needs the old model's classifier"):
        old_model(config, find_method("bct"), source)
