"""Maps that fct_jax does not fit: identity, an LCE run, a user's functions."""

import numpy as np
import pytest
from tiny_pairs import check_snippet, sets

from fct_jax import upgrade
from fct_jax.errors import UserError
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade.maps.loading import load_map


def test_a_compatible_model_is_mapped_by_identity(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 8)).astype(np.float32)
    y = (x + 0.1 * rng.normal(size=x.shape)).astype(np.float32)
    bare = load_map("identity")
    assert bare.dim_in is None and bare.for_dim(8).dim_out == 8
    moved, log_variance = bare.transform(x)
    np.testing.assert_array_equal(moved, x)
    assert log_variance is None
    found = upgrade.fit(x, y, method="identity", out=tmp_path / "map")
    moved, log_variance = load_map(tmp_path / "map").transform(x)
    np.testing.assert_array_equal(moved, x)
    assert log_variance.shape == (200,) and found.known is not None
    check_snippet(tmp_path / "map", x, x)
    # Its spread equals the noise; no linear map is significantly better.
    assert upgrade.fit(x, y, candidates=("procrustes", "identity")).method == "identity"
    # All commands accept it by its name.
    made = upgrade.assess("identity", x, y, labels=np.arange(200) // 4)
    assert made.method == "identity" and made.points
    EmbeddingSet.of(x).write(tmp_path / "old")
    EmbeddingSet.of(y).write(tmp_path / "new")
    done = upgrade.Upgrade(tmp_path / "up")
    done.plan("identity", tmp_path / "old", order="random", budget_items=50)
    gallery = done.apply(reembed=tmp_path / "new")
    changed = (gallery.read(0, 200) != x).any(axis=1)
    assert changed.sum() == 50
    np.testing.assert_array_equal(gallery.read(0, 200)[changed], y[changed])
    with pytest.raises(
        UserError,
        match="identity: it needs equal dimensions, but old vectors have 8 and new ones 5",
    ):
        upgrade.fit(x, y[:, :5], method="identity")


def lce_run(folder, dim=6, blocks=2, seed=0):
    """Write the gallery's run of an LCE training, with random weights and running statistics."""
    import jax

    from fct_jax import models
    from fct_jax.frozen.model import write_model

    module = models.build("lce", blocks=blocks)
    variables = module.init(jax.random.key(seed), np.ones((2, dim)), np.ones((2, dim)))
    rng = np.random.default_rng(seed)
    variables = jax.tree.map(
        lambda a: np.asarray(a) + 0.3 * rng.uniform(size=a.shape).astype(np.float32), variables
    )
    described = {
        "kind": "transformation",
        "name": "lce",
        "kwargs": {"blocks": blocks},
        **dict.fromkeys(("dim", "old_dim", "side_dim"), dim),
        "needs_side": False,
        "old_fingerprint": "a",
        "new_fingerprint": "b",
        "side_fingerprint": None,
    }
    write_model(folder / "model", described, variables)
    return module, variables


@pytest.mark.parametrize("blocks", [1, 3])
def test_the_gallery_of_an_lce_run_is_a_map(tmp_path, blocks):
    module, variables = lce_run(tmp_path / "run" / "gallery", blocks=blocks)
    found = load_map(tmp_path / "run" / "gallery")
    x = np.random.default_rng(1).normal(size=(30, 6)).astype(np.float32)
    expected, _ = module.apply(variables, x, x)
    moved, log_variance = found.transform(x)
    assert (found.method, found.has_uncertainty, log_variance) == ("lce", False, None)
    np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(moved - x).max() > 0.1
    found.save(tmp_path / "map")
    check_snippet(tmp_path / "map", x, moved)
    again = load_map(tmp_path / "map")
    assert again.fingerprint == found.fingerprint and again.method == "lce"
    np.testing.assert_array_equal(again.transform(x)[0], moved)
    with pytest.raises(UserError, match="lce cannot be fitted|trained together with the new model"):
        upgrade.fit(*sets(), method="lce")


def test_a_lce_gallery_is_migrated(tmp_path):
    lce_run(tmp_path / "run")
    x = np.random.default_rng(1).normal(size=(150, 6)).astype(np.float32)
    EmbeddingSet.of(x, meta={"fingerprint": "a"}).write(tmp_path / "old")
    moved = load_map(tmp_path / "run").transform(x)[0]
    made = upgrade.Upgrade(tmp_path / "up").apply(
        tmp_path / "run", tmp_path / "old", unchecked=True
    )
    np.testing.assert_allclose(made.read(0, 150), moved, atol=1e-6)
    # Other vectors of the same size are refused, as for any map.
    with pytest.raises(UserError, match="comes from model|fingerprint"):
        EmbeddingSet.of(x, meta={"fingerprint": "c"}).write(tmp_path / "other")
        upgrade.Upgrade(tmp_path / "up2").apply(
            tmp_path / "run", tmp_path / "other", unchecked=True
        )


OWN = """
import numpy as np
from fct_jax.upgrade.maps.functions import Function, Linear
from fct_jax.upgrade.maps.methods import Method, closed_form

def halved(old):
    return old[:, :4] / 2

def unsure(old):
    return old[:, :4], old[:, 0]

def three(old):
    return old[:3]

def fails(old):
    raise ValueError("no luck")

def shift(pairs):
    difference = pairs.new.vectors.mean(axis=0) - pairs.old.vectors.mean(axis=0)
    return Linear(np.eye(len(difference)), 1.0, difference)

SHIFT = Method(fit=shift, text="adds the difference of the means", same_size=True)

class Squared(Function):
    def __init__(self, power):
        self.power = power
    def __call__(self, old):
        return np.sign(old) * np.abs(old) ** self.power
    def arrays(self):
        return {"power": np.float32(self.power)}

SQUARED = Method(fit=lambda pairs: Squared(np.float32(2)), text="squares")
NUMBER = 7
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write a user's module to the current directory."""
    name = f"own_maps_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_function_of_the_user_is_a_map(own, tmp_path):
    x = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
    found = load_map(f"{own}:halved").for_dim(6)
    assert (found.dim_in, found.dim_out, found.has_uncertainty) == (6, 4, False)
    np.testing.assert_array_equal(found.transform(x)[0], x[:, :4] / 2)
    unsure = load_map(f"{own}:unsure").for_dim(6)
    np.testing.assert_array_equal(unsure.transform(x)[1], x[:, 0])
    # As a method it gets known answers and an uncertainty, and is saved.
    fitted = upgrade.fit(x, x[:, :4] * 3, method=f"{own}:halved", out=tmp_path / "map")
    again = load_map(tmp_path / "map")
    assert again.fingerprint == fitted.fingerprint and again.has_uncertainty
    np.testing.assert_array_equal(again.transform(x)[0], x[:, :4] / 2)
    for name, message in (
        ("three", r"returned float32 \(3, 6\) for vectors \(4, 6\)"),
        ("fails", "failed for vectors .*ValueError: no luck"),
        ("NUMBER", "must be a map or a function, but it is of type int"),
        ("nothing", "unknown map"),
        ("SHIFT", "must be fitted first"),
    ):
        with pytest.raises(UserError, match=message):
            load_map(f"{own}:{name}").for_dim(6)


def test_a_method_of_the_user_is_fitted(own, tmp_path):
    old, _ = sets()
    new = EmbeddingSet.of(old.vectors + 2)
    found = upgrade.fit(old, new, method=f"{own}:SHIFT", out=tmp_path / "map")
    np.testing.assert_allclose(found.transform(old.vectors)[0], new.vectors, atol=1e-5)
    assert (
        found.description["function"] == "linear" and (tmp_path / "map/numpy.safetensors").exists()
    )
    assert load_map(tmp_path / "map").method == f"{own}:SHIFT"
    chosen = upgrade.fit(old, new, candidates=("ridge", f"{own}:SHIFT"))
    assert set(chosen.description["quality"]) == {"ridge", f"{own}:SHIFT"}
    # This kind of function is unknown to the package.
    squares = np.sign(old.vectors) * old.vectors**2
    found = upgrade.fit(old, squares, method=f"{own}:SQUARED", out=tmp_path / "squared")
    assert found.description["function"] == f"{own}:Squared"
    again = load_map(tmp_path / "squared")
    np.testing.assert_allclose(again.transform(old.vectors)[0], squares, rtol=1e-6)
    assert not (tmp_path / "squared" / "numpy.safetensors").exists()


def test_another_package_may_register_a_map(own, monkeypatch):
    from importlib import metadata

    offered = metadata.EntryPoint("halved", f"{own}:halved", "fct_jax.maps")
    offering = {"fct_jax.maps": [offered]}
    monkeypatch.setattr(metadata, "entry_points", lambda group: offering.get(group, []))
    x = np.random.default_rng(0).normal(size=(100, 6)).astype(np.float32)
    np.testing.assert_array_equal(load_map("halved").transform(x)[0], x[:, :4] / 2)
    assert upgrade.fit(x, x[:, :4], method="halved").method == "halved"
    for name, message in (
        ("halve", "no map in halve"),
        ("ridge", "ridge must be fitted first: `fct-jax fit OLD NEW --method ridge`"),
        ("lce", "lce is not a map by itself: it is trained together with the new model; name its"),
    ):
        with pytest.raises(UserError, match=message):
            load_map(name)
