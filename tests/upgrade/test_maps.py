"""Maps between vector spaces: closed forms against plain solutions, training, export, mistakes."""

import dataclasses
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fct_jax import upgrade
from fct_jax.errors import UserError
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade.inputs import open_sample, paired, row_hashes
from fct_jax.upgrade.maps import linear as closed_form
from fct_jax.upgrade.maps.choosing import choose
from fct_jax.upgrade.maps.functions import Linear
from fct_jax.upgrade.maps.loading import load_map
from fct_jax.upgrade.maps.methods import METHODS, Method, Pairs, Training, fit_method
from fct_jax.upgrade.maps.network import affordable_epochs, fit_classifier, fit_learned
from fct_jax.upgrade.maps.uncertainty import log_squared_error

REPOSITORY = Path(__file__).parents[2]
SAMPLE = REPOSITORY / "tests" / "text_sample.npz"


@pytest.fixture(scope="module")
def text():
    with np.load(SAMPLE) as file:
        return {name: file[name] for name in file.files}


def pairs(n=300, do=7, dn=5, noise=0.1, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, do)).astype(np.float32)
    y = x @ rng.normal(size=(do, dn)) + 3 + noise * rng.normal(size=(n, dn))
    return x, y.astype(np.float32)


def pairs_of(old, new, labels=None, classifier=None, seed=0, **training):
    training = Training(**{"inner_dim": 8, "epochs": 1, "batch_size": 0, **training})
    return Pairs(old, new, labels, classifier, training, seed)


def sums_of(x, y, folds=4):
    fold = np.arange(len(x)) % folds
    return *closed_form.fold_sums(x, y, fold, folds), fold


# Closed forms


@pytest.mark.parametrize(("do", "dn"), [(7, 5), (5, 7), (6, 6)])
def test_procrustes_is_that_of_padded_square_matrices(do, dn):
    x, y = pairs(do=do, dn=dn)
    found = closed_form.procrustes_folds(*sums_of(x, y)[:2])[0]
    size = max(do, dn)
    a = np.pad(x - x.mean(0), ((0, 0), (0, size - do))).astype(np.float64)
    b = np.pad(y - y.mean(0), ((0, 0), (0, size - dn))).astype(np.float64)
    u, _, vt = np.linalg.svd(a.T @ b)
    square = u @ vt
    np.testing.assert_allclose(square @ square.T, np.eye(size), atol=1e-9)
    np.testing.assert_allclose(found.weight, square[:do, :dn], atol=1e-6)
    mapped = (a @ square)[:, :dn]
    scale = (mapped * b[:, :dn]).sum() / (mapped**2).sum()
    np.testing.assert_allclose(found(x), scale * mapped + y.mean(0), atol=1e-4)


def test_procrustes_finds_a_rotation_again():
    rng = np.random.default_rng(1)
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    x = rng.normal(size=(200, 6)) + 5
    found = closed_form.procrustes_folds(*sums_of(x, x @ rotation)[:2])[0]
    np.testing.assert_allclose(found.weight, rotation, atol=1e-9)
    assert found.scale == pytest.approx(1)
    np.testing.assert_allclose(found.bias, 0, atol=1e-8)


def slow_ridge(x, y, penalty):
    """Least squares on rows that are appended for the penalty, as textbooks have it."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    a, b = (x - mean_x).astype(np.float64), (y - mean_y).astype(np.float64)
    unit = (a * a).sum() / a.shape[1]
    a = np.vstack([a, np.sqrt(penalty * unit) * np.eye(a.shape[1])])
    b = np.vstack([b, np.zeros((x.shape[1], y.shape[1]))])
    weight = np.linalg.lstsq(a, b, rcond=None)[0]
    return weight, mean_y - mean_x @ weight


@settings(deadline=None, max_examples=15)
@given(do=st.integers(1, 9), dn=st.integers(1, 9), n=st.integers(30, 80), seed=st.integers(0, 1000))
def test_ridge_and_its_cross_validation_are_the_slow_ones(do, dn, n, seed):
    x, y = pairs(n, do, dn, noise=2.0, seed=seed)
    x, y = x.astype(np.float64), y.astype(np.float64)
    sums, centre, fold = sums_of(x, y)
    penalties = np.array([1e-4, 1e-2, 1.0, 100.0])
    found, others = closed_form.ridge(sums, centre, penalties)
    errors = np.zeros(len(penalties))
    for i, penalty in enumerate(penalties):
        for f in range(4):
            weight, bias = slow_ridge(x[fold != f], y[fold != f], penalty)
            errors[i] += ((y[fold == f] - x[fold == f] @ weight - bias) ** 2).sum()
    assert found.penalty == penalties[np.argmin(errors)]
    assert found.error == pytest.approx(errors.min() / ((y - y.mean(0)) ** 2).sum())
    weight, bias = slow_ridge(x, y, found.penalty)
    np.testing.assert_allclose(found.weight, weight, atol=1e-8)
    np.testing.assert_allclose(found.bias, bias, atol=1e-8)
    weight, bias = slow_ridge(x[fold != 1], y[fold != 1], found.penalty)
    np.testing.assert_allclose(others[1](x), x @ weight + bias, atol=1e-8)


def test_a_large_common_part_costs_no_digits():
    x, y = pairs(n=20_000, noise=0.0)
    far = (x.astype(np.float64) + 3e4).astype(np.float32)  # as float32 still tells it apart
    exact = far.astype(np.float64) - 3e4
    y = (exact @ np.linalg.lstsq(x, y - 3, rcond=None)[0]).astype(np.float64)
    found, _ = closed_form.ridge(*sums_of(far, y)[:2])
    assert np.abs(found(far.astype(np.float64)) - y).max() < 1e-4 * np.abs(y).max()


def test_sums_do_not_depend_on_the_blocks(monkeypatch):
    x, y = pairs()
    whole, _ = closed_form.ridge(*sums_of(x, y)[:2])
    monkeypatch.setattr(closed_form, "ROWS", 17)
    parts, _ = closed_form.ridge(*sums_of(x, y)[:2])
    np.testing.assert_allclose(parts.weight, whole.weight, atol=1e-9)
    np.testing.assert_allclose(parts.bias, whole.bias, atol=1e-9)


# Uncertainty


def test_uncertainty_tells_bad_vectors_from_good_ones():
    """Vectors of one half are mapped at random, of the other exactly."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 8)).astype(np.float32)
    y = x @ rng.normal(size=(8, 6)).astype(np.float32)
    y[x[:, 0] > 0] += 2 * rng.normal(size=((x[:, 0] > 0).sum(), 6)).astype(np.float32)
    inside = pairs_of(EmbeddingSet.of(x[:1500]), EmbeddingSet.of(y[:1500]))
    made = fit_method("ridge", METHODS["ridge"], inside)
    mapped, log_variance = made.transform(x[1500:])
    true = log_squared_error(mapped, y[1500:])
    assert np.corrcoef(log_variance, true)[0, 1] > 0.7
    assert abs(log_variance.mean() - true.mean()) < 0.3  # errors of pairs that were left out
    assert made.has_uncertainty and log_variance.dtype == np.float32


# fit


def test_auto_takes_the_best_of_held_out_pairs(text, tmp_path):
    candidates = ("ridge", "procrustes", "identity")
    found = upgrade.fit(text["old"], text["new"], candidates=candidates, out=tmp_path / "map")
    scores = found.description["held_out"]
    by = found.description["judged_by"]
    assert by == "agreement@10" and list(scores) == ["procrustes", "ridge"]
    assert found.method == max(scores, key=lambda name: scores[name][by])
    assert "need" in found.description["left_out"]["identity"]
    assert found.description["pairs_held_out"] == 100
    # No pair of the fitting is among the known answers.
    assert not np.isin(row_hashes(found.known.old), found.fitted).any()
    assert np.isin(row_hashes(text["old"]), found.fitted).sum() == 400
    again = load_map(tmp_path / "map")
    assert again.fingerprint == found.fingerprint and again.description == found.description
    for one, other in zip(again.transform(text["old"]), found.transform(text["old"]), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(
        np.linalg.norm(found.transform(text["old"])[0], axis=1), 1, atol=1e-5
    )


def test_held_out_quality_is_the_slow_one(text):
    found = upgrade.fit(text["old"], text["new"], method="ridge")
    order = np.random.default_rng(0).permutation(500)
    rows = np.sort(order[:100])
    target = text["new"][rows].astype(np.float64)
    mapped = found.transform(text["old"][rows])[0].astype(np.float64)

    def nearest(gallery, i, k, without):
        near = [
            (np.linalg.norm(target[i] - gallery[j]), j) for j in range(100) if j != i or not without
        ]
        return [j for _, j in sorted(near)[:k]]

    both = [
        len(set(nearest(target, i, 10, True)) & set(nearest(mapped, i, 10, True))) / 10
        for i in range(100)
    ]
    own = [nearest(mapped, i, 1, False) == [i] for i in range(100)]
    quality = found.description["held_out"]["ridge"]
    assert quality["agreement@10"] == pytest.approx(np.mean(both))
    assert quality["own"] == pytest.approx(np.mean(own))


def test_blocks_read_a_memory_map_piece_by_piece(text, tmp_path):
    np.save(tmp_path / "old.npy", text["old"])
    mapped = np.load(tmp_path / "old.npy", mmap_mode="r")
    found = upgrade.fit(text["old"], text["new"], method="procrustes")
    whole = found.transform(text["old"])
    parts = list(found.blocks(mapped, 64))
    assert [len(part[0]) for part in parts] == [64] * 7 + [52]
    np.testing.assert_allclose(np.concatenate([p[0] for p in parts]), whole[0], atol=1e-6)
    np.testing.assert_allclose(np.concatenate([p[1] for p in parts]), whole[1], atol=1e-5)
    assert found.transform(text["old"][:0])[0].shape == (0, 384)


def sets(n=160, do=6, dn=4, labels=None, seed=0):
    x, y = pairs(n, do, dn, seed=seed)
    old = EmbeddingSet.of(x, labels=labels, meta={"fingerprint": "a", "metric": "cosine"})
    return old, EmbeddingSet.of(y, labels=labels, meta={"fingerprint": "b", "metric": "cosine"})


TINY = {"inner_dim": 16, "epochs": 40}


@pytest.mark.parametrize("method", ["fct", "fastfill"])
def test_trained_maps_are_saved_and_exported(method, tmp_path):
    old, new = sets()
    found = upgrade.fit(old, new, method=method, out=tmp_path / "map", **TINY)
    again = upgrade.load_map(tmp_path / "map")
    embeddings, log_variance = again.transform(old.vectors)
    np.testing.assert_array_equal(embeddings, found.transform(old.vectors)[0])
    assert found.has_uncertainty and log_variance.std() > 0
    assert (found.old_fingerprint, found.new_fingerprint) == ("a", "b")
    assert found.metric == "cosine"
    check_snippet(tmp_path / "map", old.vectors, embeddings)


def check_snippet(folder, vectors, expected):
    """The NumPy code of README.md, and of the tutorial, does what the map does."""
    pages = [REPOSITORY / "README.md", REPOSITORY / "docs" / "upgrade.md"]
    blocks = [b for p in pages for b in re.findall(r"```python\n(.*?)```", p.read_text(), re.S)]
    found = {block for block in blocks if "load_query_map" in block}
    assert len(found) == 1, "both pages must have the same code"
    code = found.pop()
    assert "jax" not in code and len(code.splitlines()) <= 20
    names = {}
    exec(code, names)
    np.testing.assert_allclose(
        names["load_query_map"](folder / "numpy.safetensors")(vectors), expected, 1e-5, 2e-5
    )


def test_linear_maps_are_exported(text, tmp_path):
    found = upgrade.fit(text["old"], text["new"], method="ridge", out=tmp_path / "map")
    check_snippet(tmp_path / "map", text["old"], found.transform(text["old"])[0])


def test_fastfill_with_labels_fits_a_classifier_where_none_is_given():
    labels = np.arange(160) % 3 + 7  # neither from 0 on nor consecutive with anything
    old, new = sets(labels=labels)
    made = fit_learned("fastfill", pairs_of(old, new, labels))
    given = fit_learned("fastfill", pairs_of(old, new, labels - 7, np.eye(3, 4)))
    plain = fit_learned("fastfill", pairs_of(old, new))
    results = [function(old.vectors)[0] for function in (made, given, plain)]
    assert all(not np.allclose(a, b) for a, b in itertools.pairwise(results))
    with pytest.raises(UserError, match="must have shape"):
        fit_learned("fastfill", pairs_of(old, new, labels, np.ones((3, 5))))
    with pytest.raises(UserError, match="the classifier has 3 classes"):
        fit_learned("fastfill", pairs_of(old, new, labels, np.ones((3, 4))))


def test_the_linear_classifier_separates_what_is_separable():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 400)
    vectors = 3 * np.eye(4)[labels] + 0.3 * rng.normal(size=(400, 4))
    weights = fit_classifier(vectors, labels)
    assert weights.shape == (4, 4)
    assert np.mean((vectors @ weights.T).argmax(axis=1) == labels) > 0.99


def test_large_samples_are_trained_on_for_fewer_epochs():
    assert affordable_epochs(3_000, 256, 384, 2048) == 80
    weights = 2 * (256 * 512 + 512 * 768) + 1536 * 2048 + 2048**2 + 2048 * 384
    assert affordable_epochs(20_000, 256, 384, 2048) == int(3e13 / (6 * 20_000 * weights)) < 80
    assert affordable_epochs(10**6, 4096, 4096, 2048) == 10


def test_a_run_of_the_train_command_is_a_map(tmp_path):
    import tiny_runs

    from fct_jax.train.loop import train

    old, new = sets()
    old.write(tmp_path / "old")
    new.write(tmp_path / "new")
    config = tiny_runs.transformation(tmp_path / "old", tmp_path / "new", "fct", epochs=1)
    config.optimizer.schedule.warmup_epochs = 0
    train(config, tmp_path / "run")
    found = load_map(tmp_path / "run")
    embeddings, log_variance = found.transform(old.vectors)
    assert (found.method, embeddings.shape) == ("fct", (160, 4))
    assert not found.has_uncertainty and log_variance is None


# Maps that are not fitted here


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
    # Its spread is that of the noise; no linear map is surely better.
    assert upgrade.fit(x, y, candidates=("procrustes", "identity")).method == "identity"
    # The same commands as for any map take it by its name.
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
    with pytest.raises(UserError, match="identity: old vectors have dimension 8 and new ones 5"):
        upgrade.fit(x, y[:, :5], method="identity")


def lce_run(folder, dim=6, blocks=2, seed=0):
    """The gallery's run of an LCE training, with random weights and running statistics."""
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
    # Other vectors of the same size are refused as for any map.
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
    """A module of the user's, in the current directory."""
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
        ("NUMBER", "is no map"),
        ("nothing", "unknown map"),
        ("SHIFT", "must be fitted on pairs first"),
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
    assert set(chosen.description["held_out"]) == {"ridge", f"{own}:SHIFT"}
    # A kind of function that the package does not know.
    squares = np.sign(old.vectors) * old.vectors**2
    found = upgrade.fit(old, squares, method=f"{own}:SQUARED", out=tmp_path / "squared")
    assert found.description["function"] == f"{own}:Squared"
    again = load_map(tmp_path / "squared")
    np.testing.assert_allclose(again.transform(old.vectors)[0], squares, rtol=1e-6)
    assert not (tmp_path / "squared" / "numpy.safetensors").exists()


def test_a_closed_form_is_one_function(text):
    """The path of CONTRIBUTING: least squares without any shrinking, as a method of one's own."""

    def plain(sums, centre):
        return closed_form.ridge(sums, centre, penalties=np.array([0.0]))

    from fct_jax.upgrade.maps.methods import closed_form as of_sums

    method = Method("least squares", fit_folds=of_sums(plain))
    x, y = pairs(n=300)
    found = upgrade.fit(x, y, method=method)
    assert found.method == "own" and found.description["penalty"] == 0
    weight = np.linalg.lstsq(*(a - a.mean(0) for a in (x, y)), rcond=None)[0]
    np.testing.assert_allclose(found.weights["weight"], weight, atol=0.05)


def test_bridges_map_queries_of_the_new_model_to_the_old_space(text, tmp_path):
    bridge = upgrade.fit(
        text["old"], text["new"], method="ridge", direction="backward", out=tmp_path / "bridge"
    )
    turned = upgrade.fit(text["new"], text["old"], method="ridge")
    np.testing.assert_array_equal(
        bridge.transform(text["new"])[0], turned.transform(text["new"])[0]
    )
    assert (bridge.dim_in, bridge.dim_out) == (384, 256)
    again = load_map(tmp_path / "bridge")
    assert again.direction == "backward" and again.fingerprint == bridge.fingerprint
    with pytest.raises(UserError, match="this map is a bridge"):
        upgrade.assess(again, text["old"], text["new"])
    EmbeddingSet.of(text["old"]).write(tmp_path / "old")
    with pytest.raises(UserError, match="this map is a bridge"):
        upgrade.Upgrade(tmp_path / "up").plan(tmp_path / "bridge", tmp_path / "old")
    with pytest.raises(UserError, match="unknown direction 'back'; did you mean 'backward'"):
        upgrade.fit(text["old"], text["new"], direction="back")


# Inputs and mistakes


def test_rows_without_ids_are_paired_only_where_there_are_as_many(tmp_path):
    rng = np.random.default_rng(0)
    old, new = rng.normal(size=(300, 6)), rng.normal(size=(200, 4))
    np.save(tmp_path / "old.npy", old.astype(np.float32))
    np.save(tmp_path / "new.npy", new.astype(np.float32))
    message = "has 300 rows and .* 200, and neither has ids .*_ids.npy"
    for arguments in ((old, new), (tmp_path / "old.npy", str(tmp_path / "new.npy"))):
        for used in (upgrade.fit, lambda *pair: upgrade.assess("identity", *pair)):
            with pytest.raises(UserError, match=message) as error:
                used(*arguments)
            assert "\n" not in str(error.value)
    # Ids on one side are ids, though they look like row numbers.
    left, right = paired(EmbeddingSet.of(old), EmbeddingSet.of(new, ids=np.arange(100, 300)))
    np.testing.assert_array_equal(left.vectors, old[100:])
    assert len(right) == 200


def test_the_fingerprint_is_of_what_a_map_does(text, tmp_path, monkeypatch):
    clock = iter(np.cumsum(np.random.default_rng(0).uniform(1, 9, 100)))
    monkeypatch.setattr("fct_jax.upgrade.maps.fitting.time.monotonic", lambda: next(clock))
    maps = [upgrade.fit(text["old"], text["new"], method="procrustes") for _ in range(2)]
    seconds = [m.description["held_out"]["procrustes"]["seconds"] for m in maps]
    assert seconds[0] != seconds[1] and maps[0].fingerprint == maps[1].fingerprint
    for name, value in maps[0].weights.items():
        np.testing.assert_array_equal(value, maps[1].weights[name])
    # Another seed splits the pairs in another way, so that the map is another.
    other = upgrade.fit(text["old"], text["new"], method="procrustes", seed=1)
    assert other.fingerprint != maps[0].fingerprint
    # Each part of the function counts, and so do the spaces that it connects.
    first = maps[0]
    changed = Linear(**{**first.function.arrays(), "bias": first.function.bias + 1e-6})
    for made in (
        upgrade.Map(first.description, changed, first.uncertainty),
        upgrade.Map(first.description, first.function),
        upgrade.Map({**first.description, "unit_output": False}, first.function, first.uncertainty),
        upgrade.Map(
            {**first.description, "new_fingerprint": "c"}, first.function, first.uncertainty
        ),
    ):
        assert made.fingerprint != first.fingerprint


def test_maps_of_format_version_1_are_read(text, tmp_path):
    """Such a map has no kind of function, and a fingerprint that upgrades under way name."""
    found = upgrade.fit(text["old"], text["new"], method="ridge", out=tmp_path / "map")
    path = tmp_path / "map" / "map.json"
    described = json.loads(path.read_text())
    del described["function"], described["direction"]
    described |= {"format_version": 1, "fingerprint": "0123456789abcdef"}
    path.write_text(json.dumps(described))
    again = load_map(tmp_path / "map")
    assert again.fingerprint == again.description["fingerprint"] == "0123456789abcdef"
    for one, other in zip(again.transform(text["old"]), found.transform(text["old"]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_vectors_that_a_map_cannot_take(text):
    found = upgrade.fit(text["old"], text["new"], method="procrustes")
    old = text["old"].astype(np.float32)
    broken = np.tile(old, (20, 1))
    broken[7001, 3] = np.nan
    for vectors, message in (
        (text["new"], r"takes old vectors of dimension 256, but these have shape \(500, 384\)"),
        (
            old[0],
            r"takes vectors \(N, 256\), but this is one of shape \(256,\); give vector\[None\]",
        ),
        (old[0, 0], r"these have shape \(\)"),
        (old[None], r"these have shape \(1, 500, 256\)"),
        (broken, "the old vector in row 7001 holds NaN or infinity"),
        (np.where(old == old[0, 0], np.inf, old), "in row 0 holds NaN or infinity"),
        (old.astype(str), "takes vectors of numbers, not <U"),
    ):
        with pytest.raises(UserError, match=message) as error:
            found.transform(vectors)
        assert "\n" not in str(error.value)
    expected = found.transform(old[:2])[0]
    np.testing.assert_array_equal(found.transform(old[:2].tolist())[0], expected)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_fitting_beside_busy_processes_wastes_nothing(tmp_path):
    """Threads that wait by spinning would count as work: 40 s of it for 384 dimensions."""
    program = """
import time, numpy as np
from fct_jax import upgrade
rng = np.random.default_rng(0)
old = rng.normal(size=(3000, 384)).astype(np.float32)
new = (old @ rng.normal(size=(384, 384))).astype(np.float32)
begin = time.process_time()
upgrade.fit(old, new, method="procrustes")
print(time.process_time() - begin)
"""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(8)]
    try:
        ended = subprocess.run(
            [sys.executable, "-c", program],
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=240,
        )
    finally:
        for process in busy:
            process.kill()
            process.wait(timeout=30)
    assert ended.returncode == 0, ended.stderr
    assert float(ended.stdout) < 12  # CPU seconds; 3 on a quiet machine


def test_too_few_pairs_for_a_method_give_a_simpler_one(text, monkeypatch, capsys):
    demanding = dataclasses.replace(METHODS["ridge"], fewest=lambda do, dn: 4 * dn)
    monkeypatch.setitem(METHODS, "demanding", demanding)
    found = upgrade.fit(text["old"], text["new"], method="demanding")
    assert found.method == "procrustes"
    said = found.description["left_out"]["demanding"]
    assert said == "it needs 1,536 pairs to fit on, and there are 400"
    assert "it needs 1,536 pairs" in " ".join(capsys.readouterr().err.split())
    chosen = upgrade.fit(text["old"], text["new"], candidates=("demanding", "ridge"))
    assert chosen.method == "ridge" and chosen.description["left_out"]["demanding"] == said


def test_auto_leaves_out_what_is_not_installed(text, monkeypatch, capsys):
    def lacking(pairs):
        raise ModuleNotFoundError("No module named 'orbax'", name="orbax.checkpoint")

    monkeypatch.setitem(METHODS, "fct", dataclasses.replace(METHODS["fct"], fit=lacking))
    found = upgrade.fit(text["old"], text["new"], candidates=("ridge", "fct"))
    said = found.description["left_out"]["fct"]
    assert found.method == "ridge" and said.endswith("pip install 'fct_jax[train]'")
    assert "fct is left out: this needs orbax" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ModuleNotFoundError):  # of which the command makes a line
        upgrade.fit(text["old"], text["new"], method="fct")


def test_the_simplest_of_equally_good_maps_is_chosen():
    rng = np.random.default_rng(0)
    base = rng.uniform(size=400)
    noise = 0.2 * rng.normal(size=400)
    noise -= noise.mean()
    simple = {"agreement@10": base, "own": base}
    alike = {"agreement@10": base + noise + 1e-3, "own": base}
    better = {"agreement@10": base + noise + 0.05, "own": base}
    assert choose({"simple": simple, "alike": alike}) == ("simple", "simplicity")
    assert choose({"simple": simple, "better": better}) == ("better", "agreement@10")
    # Labels decide first; where they tell nothing apart, the neighbours do.
    ap = {"map": base, **better}
    worse = {"map": base - 0.2, **simple}
    assert choose({"a": worse, "b": ap}) == ("b", "map")
    assert choose({"a": {**worse, "map": base}, "b": ap}) == ("b", "agreement@10")
    alone = np.full(400, np.nan)
    assert choose({"a": {**worse, "map": alone}, "b": {**ap, "map": alone}})[1] == "agreement@10"


def test_pairs_are_found_by_id(tmp_path):
    old, new = sets()
    np.save(tmp_path / "new.npy", new.vectors[100:20:-1])
    np.save(tmp_path / "new_ids.npy", new.ids[100:20:-1])
    left, right = paired(old, open_sample(tmp_path / "new.npy", "new"))
    np.testing.assert_array_equal(left.ids, np.arange(100, 20, -1))
    np.testing.assert_array_equal(left.vectors, old.vectors[100:20:-1])
    np.testing.assert_array_equal(right.vectors, new.vectors[100:20:-1])


def test_labels_follow_their_pairs():
    old, new = sets(labels=np.arange(160) % 2)
    few = EmbeddingSet.of(old.vectors[40:], ids=old.ids[40:])
    bare = EmbeddingSet.of(new.vectors, meta=new.meta)
    both = [
        upgrade.fit(few, new, method="ridge"),
        upgrade.fit(few, bare, method="ridge", labels=np.arange(160) % 2),
    ]
    scores = [found.description["held_out"]["ridge"]["map"] for found in both]
    assert scores[0] == pytest.approx(scores[1])


def test_zero_vectors_are_left_out_and_counted():
    old, new = sets(labels=np.arange(160) % 2)
    vectors = new.vectors.copy()
    vectors[[3, 50]] = 0
    broken = EmbeddingSet.of(vectors, labels=new.labels, meta=new.meta)
    found = upgrade.fit(old, broken, method="ridge")
    assert found.description["zero_pairs_left_out"] == 2
    kept = np.delete(np.arange(160), [3, 50])
    same = upgrade.fit(
        EmbeddingSet.of(old.vectors[kept], labels=old.labels[kept], meta=old.meta),
        EmbeddingSet.of(new.vectors[kept], labels=new.labels[kept], meta=new.meta),
        method="ridge",
    )
    np.testing.assert_array_equal(found.weights["weight"], same.weights["weight"])
    with pytest.raises(UserError, match="149 of 160 pairs have a zero vector"):
        upgrade.fit(old, EmbeddingSet.of(vectors * (np.arange(160)[:, None] < 12)), method="ridge")


def test_parquet_folders_are_read(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    old, _ = sets()
    table = pa.table({"id": [f"k{i}" for i in old.ids], "vector": list(old.vectors)})
    (tmp_path / "old").mkdir()
    pq.write_table(table, tmp_path / "old" / "part.parquet")
    found = open_sample(tmp_path / "old", "old")
    np.testing.assert_array_equal(found.vectors, old.vectors)
    assert found.ids[3] == "k3"


def test_mistakes_are_one_line(tmp_path):
    old, new = sets()
    shuffled = EmbeddingSet.of(np.random.default_rng(0).permutation(new.vectors))
    far = EmbeddingSet.of(new.vectors, ids=new.ids + 1000)
    broken = EmbeddingSet.of(np.where(np.arange(160)[:, None] == 3, np.nan, new.vectors))
    np.save(tmp_path / "ints.npy", np.ones((160, 6), int))
    (tmp_path / "junk.npy").write_text("junk")
    for arguments, keywords, message in (
        ((old, new), {"method": "rigde"}, "did you mean 'ridge'"),
        ((old, shuffled), {"method": "ridge"}, "known-answer"),
        ((old, far), {}, "share 0 ids"),
        ((old, broken), {}, "id 3 is not finite"),
        ((old, new), {"metric": "dot"}, "unknown metric"),
        ((old, new), {"held_out": 1.0}, "held_out must be"),
        ((old, new), {"labels": np.zeros(3, int)}, "labels must be 160"),
        ((old, new), {"out": tmp_path}, "exists already"),
        ((tmp_path, new), {}, "no gallery at"),
        (("", new), {}, "old is empty; give vectors"),
        ((tmp_path / "ints.npy", new), {}, r"ints.npy: vectors must be \(N, D\) floats"),
        ((tmp_path / "junk.npy", new), {}, "junk.npy cannot be read: it is no .npy array"),
        ((old, new), {"labels": tmp_path / "none.npy"}, "none.npy does not exist"),
        ((old, new), {"classifier": np.eye(3, 4)}, "a classifier is of use with labels alone"),
        ((old, new), {"epochs": -1}, "epochs must be 0 or more, not -1"),
        ((old, new), {"inner_dim": 0}, "inner_dim must be 1 or more, not 0"),
    ):
        with pytest.raises(UserError, match=message) as error:
            upgrade.fit(*arguments, **keywords)
        assert "\n" not in str(error.value)


def test_a_damaged_or_missing_map_is_refused(text, tmp_path):
    found = upgrade.fit(text["old"], text["new"], method="procrustes", out=tmp_path / "map")
    with pytest.raises(UserError, match="takes old vectors of dimension 256"):
        found.transform(text["new"])
    path = tmp_path / "map" / "weights.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-40] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="damaged"):
        load_map(tmp_path / "map")
    with pytest.raises(UserError, match="no map in"):
        load_map(tmp_path)


def test_the_package_offers_its_functions_lazily():
    assert callable(upgrade.fit) and callable(upgrade.assess) and "fit" in dir(upgrade)
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        upgrade.fitt  # noqa: B018


# Newer methods as rows


def bent(count=1500, do=8, dn=6, seed=0):
    """Pairs whose map differs between two halves of the space: no linear map fits both."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, do)).astype(np.float32)
    side = np.sign(x[:, :1])
    x[:, :1] += 4 * side
    turns = [np.linalg.qr(rng.normal(size=(do, do)))[0][:, :dn] for _ in range(2)]
    y = np.where(side > 0, x @ turns[0], x @ turns[1]) + 0.01 * rng.normal(size=(count, dn))
    return x, y.astype(np.float32)


def test_local_maps_follow_a_bend(tmp_path):
    x, y = bent()
    found = upgrade.fit(x, y, candidates=("procrustes", "ridge", "local"), out=tmp_path / "map")
    assert found.method == "local" and found.description["judged_by"] == "agreement@10"
    scores = found.description["held_out"]
    assert scores["local"]["agreement@10"] > scores["ridge"]["agreement@10"] + 0.2
    again = load_map(tmp_path / "map")
    assert again.fingerprint == found.fingerprint and again.description["cells"] > 2
    moved, log_variance = again.transform(x)
    np.testing.assert_array_equal(moved, found.transform(x)[0])
    assert log_variance.shape == (1500,)
    # As the module's own map in float64 has it.
    from fct_jax.upgrade.maps.local import fit_local

    inside = np.isin(row_hashes(x), found.fitted)
    cells = found.description["cells"]
    slow = fit_local(x[inside], y[inside], cells=cells, gating="soft", seed=0)
    np.testing.assert_allclose(moved, slow(x), atol=1e-4)
    few = upgrade.fit(x[:50], y[:50], method="local")
    assert few.method == "procrustes" and "needs 48 pairs" in few.description["left_out"]["local"]


@pytest.mark.parametrize("method", ["converter", "common"])
def test_newer_networks_are_fitted_and_saved(method, tmp_path):
    x, y = bent(700)
    y *= 3
    epochs = {"converter": 30, "common": 5}[method]
    labels = np.arange(700) % 5 if method == "common" else None
    found = upgrade.fit(x, y, method=method, labels=labels, epochs=epochs, out=tmp_path / "map")
    assert found.method == method and found.has_uncertainty
    again = load_map(tmp_path / "map")
    assert again.fingerprint == found.fingerprint
    np.testing.assert_array_equal(again.transform(x)[0], found.transform(x)[0])
    if method == "converter":
        lengths = np.linalg.norm(again.transform(x)[0], axis=1)
        np.testing.assert_allclose(lengths, np.linalg.norm(y, axis=1).mean(), rtol=0.05)
        assert not (tmp_path / "map" / "numpy.safetensors").exists()
    else:
        check_snippet(tmp_path / "map", x, again.transform(x)[0])
    fewer = upgrade.fit(x[:90], y[:90], method=method)
    assert fewer.method == "ridge" and "pairs to fit on" in fewer.description["left_out"][method]
