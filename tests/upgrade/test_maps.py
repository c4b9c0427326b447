"""Maps between vector spaces: closed forms against plain solutions, training, export, mistakes."""

import itertools
import re
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
from fct_jax.upgrade.maps.map import load_map
from fct_jax.upgrade.maps.methods import fit_closed_form
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
    made = fit_closed_form("ridge", EmbeddingSet.of(x[:1500]), EmbeddingSet.of(y[:1500]))
    mapped, log_variance = made.transform(x[1500:])
    true = log_squared_error(mapped, y[1500:])
    assert np.corrcoef(log_variance, true)[0, 1] > 0.7
    assert abs(log_variance.mean() - true.mean()) < 0.3  # errors of pairs that were left out
    assert made.has_uncertainty and log_variance.dtype == np.float32


# fit


def test_auto_takes_the_best_of_held_out_pairs(text, tmp_path):
    found = upgrade.fit(
        text["old"], text["new"], candidates=("procrustes", "ridge"), out=tmp_path / "map"
    )
    scores = found.description["held_out"]
    by = found.description["judged_by"]
    assert by == "agreement@10" and set(scores) == {"procrustes", "ridge"}
    assert found.method == max(scores, key=lambda name: scores[name][by])
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
        names["load_query_map"](folder / "numpy.safetensors")(vectors), expected, atol=2e-5
    )


def test_linear_maps_are_exported(text, tmp_path):
    found = upgrade.fit(text["old"], text["new"], method="ridge", out=tmp_path / "map")
    check_snippet(tmp_path / "map", text["old"], found.transform(text["old"])[0])


def test_fastfill_with_labels_fits_a_classifier_where_none_is_given():
    labels = np.arange(160) % 3 + 7  # neither from 0 on nor consecutive with anything
    old, new = sets(labels=labels)
    short = {"inner_dim": 8, "epochs": 1}
    made = fit_learned("fastfill", old, new, labels, **short)
    given = fit_learned("fastfill", old, new, labels - 7, np.eye(3, 4), **short)
    plain = fit_learned("fastfill", old, new, None, **short)
    results = [m.transform(old.vectors)[0] for m in (made, given, plain)]
    assert all(not np.allclose(a, b) for a, b in itertools.pairwise(results))
    with pytest.raises(UserError, match="must have shape"):
        fit_learned("fastfill", old, new, labels, np.ones((3, 5)), **TINY)
    with pytest.raises(UserError, match="the classifier has 3 classes"):
        fit_learned("fastfill", old, new, labels, np.ones((3, 4)), **TINY)


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
    assert not found.has_uncertainty and not log_variance.any()


# Inputs and mistakes


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
        (("", new), {}, "config.old is empty"),
        ((tmp_path / "ints.npy", new), {}, r"ints.npy: vectors must be \(N, D\) floats"),
        ((tmp_path / "junk.npy", new), {}, "junk.npy cannot be read: no .npy array of numbers"),
        ((old, new), {"labels": tmp_path / "none.npy"}, "none.npy is not there"),
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
    path = tmp_path / "map" / "map.json"
    path.write_text(
        path.read_text().replace('"scale"', '"scale"').replace("procrustes", "ridge", 1)
    )
    with pytest.raises(UserError, match="damaged"):
        load_map(tmp_path / "map")
    with pytest.raises(UserError, match="no map in"):
        load_map(tmp_path)


def test_the_package_offers_its_functions_lazily():
    assert callable(upgrade.fit) and callable(upgrade.assess) and "fit" in dir(upgrade)
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        upgrade.fitt  # noqa: B018
