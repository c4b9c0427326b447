"""Maps that are trained, or made of cells: fitting, saving, export."""

import itertools

import numpy as np
import pytest
from tiny_pairs import check_snippet, pairs_of, sets

from fct_jax import upgrade
from fct_jax.errors import UserError
from fct_jax.upgrade.inputs import row_hashes
from fct_jax.upgrade.maps.loading import load_map
from fct_jax.upgrade.maps.network import affordable_epochs, fit_classifier, fit_learned

TINY = {"inner_dim": 16, "epochs": 40}


@pytest.mark.slow
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


@pytest.mark.slow
def test_fastfill_with_labels_fits_a_classifier_where_none_is_given():
    labels = np.arange(160) % 3 + 7  # labels do not begin at 0
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


def bent(count=1500, do=8, dn=6, seed=0):
    """Return pairs whose map differs between two halves of the space: no linear map fits both."""
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
    scores = found.description["quality"]
    assert scores["local"]["agreement@10"] > scores["ridge"]["agreement@10"] + 0.2
    again = load_map(tmp_path / "map")
    assert again.fingerprint == found.fingerprint and again.description["cells"] > 2
    moved, log_variance = again.transform(x)
    np.testing.assert_array_equal(moved, found.transform(x)[0])
    assert log_variance.shape == (1500,)
    # It agrees with the module's own map in float64.
    from fct_jax.upgrade.maps.local import fit_local

    inside = np.isin(row_hashes(x), found.fitted)
    cells = found.description["cells"]
    slow = fit_local(x[inside], y[inside], cells=cells, gating="soft", seed=0)
    np.testing.assert_allclose(moved, slow(x), atol=1e-4)
    few = upgrade.fit(x[:50], y[:50], method="local")
    assert few.method == "procrustes" and "needs 48 pairs" in few.description["left_out"]["local"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["converter", "common", "common_relaxed"])
def test_newer_networks_are_fitted_and_saved(method, tmp_path):
    x, y = bent(700)
    y *= 3
    epochs = {"converter": 30}.get(method, 5)
    labels = np.arange(700) % 5 if method == "common" else None
    found = upgrade.fit(x, y, method=method, labels=labels, epochs=epochs, out=tmp_path / "map")
    assert found.method == method and found.has_uncertainty
    again = load_map(tmp_path / "map")
    assert again.fingerprint == found.fingerprint
    np.testing.assert_array_equal(again.transform(x)[0], found.transform(x)[0])
    if method == "converter":
        lengths = np.linalg.norm(again.transform(x)[0], axis=1)
        np.testing.assert_allclose(lengths, np.linalg.norm(y, axis=1).mean(), rtol=0.05)
    fewer = upgrade.fit(x[:90], y[:90], method=method)
    assert fewer.method == "ridge" and "pairs to fit on" in fewer.description["left_out"][method]


@pytest.mark.parametrize("dim_new", [5, 9])
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("kind", ["strict", "relaxed"])
def test_common_maps_lead_back_from_their_space(kind, labelled, dim_new):
    from fct_jax.upgrade.maps.common_space_training import Settings, train_common_space
    from fct_jax.upgrade.maps.fits import fit_common_space

    old, new = sets(200, 7, dim_new)
    labels = np.arange(200) % 4 if labelled else None
    found = fit_common_space(pairs_of(old, new, labels, epochs=3), kind)
    settings = Settings(kind=kind, epochs=3, seed=0)
    space, _ = train_common_space(old.vectors, new.vectors, labels, settings)
    # B maps the results to F(old).
    moved = space.moved(found(np.float64(old.vectors)))
    np.testing.assert_allclose(moved, space.translated(old.vectors), atol=1e-9)
    if kind == "strict":  # no score between new vectors and results changes
        ours = new.vectors @ found(np.float64(old.vectors)).T
        theirs = space.moved(new.vectors) @ space.translated(old.vectors).T
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
