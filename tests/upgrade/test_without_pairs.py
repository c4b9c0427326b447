"""``fit --method unpaired``: a map from two samples that share no item, from the console."""

import functools

import numpy as np
import pytest

from fct_jax import cli, upgrade
from fct_jax.errors import UserError
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade.maps import unpaired
from fct_jax.upgrade.maps.loading import load_map

SMALL = unpaired.Settings(
    repetitions=25,
    rows=600,
    clusters=9,
    restarts=15,
    matched=15,
    refinements=40,
    refinement_rows=200,
    centres=40,
)
MIDDLES = np.random.default_rng(1).normal(size=(9, 8))
TURN = np.linalg.qr(np.random.default_rng(8).normal(size=(9, 9)))[0]


@pytest.fixture
def small(monkeypatch):
    """Use fewer repetitions than published."""
    function = functools.partial(unpaired.fit_unpaired, settings=SMALL)
    monkeypatch.setattr(unpaired, "fit_unpaired", function)


def content(seed, count):
    """Return points of uneven clusters without symmetry."""
    rng = np.random.default_rng(seed)
    share = np.arange(1, len(MIDDLES) + 1) / np.arange(1, len(MIDDLES) + 1).sum()
    which = rng.choice(len(MIDDLES), count, p=share)
    return (MIDDLES[which] + 0.15 * rng.normal(size=(count, 8))).astype(np.float32)


def by_new_model(x):
    """Return the vectors of the new model: turned, twice as long, and shifted."""
    return (2 * np.pad(x, ((0, 0), (0, 1))) @ TURN + 3).astype(np.float32)


def check_pairs(found):
    """Check the map on pairs that it has not seen: most vectors arrive near their own place."""
    held = content(99, 60)
    mapped, _ = found.transform(held)
    wanted = by_new_model(held)
    near = np.linalg.norm(mapped[:, None] - wanted, axis=2).argmin(axis=1)
    assert np.mean(near == np.arange(60)) > 0.9  # chance: 0.017
    # Scale and shift are found, too: an error of the mean or length would be near 1.
    spread = np.linalg.norm(wanted - wanted.mean(axis=0))
    assert np.linalg.norm(mapped - wanted) < 0.25 * spread


def test_two_files_without_a_shared_item(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("some.npy", content(1, 900))
    np.save("others.npy", by_new_model(content(2, 800)))
    words = ["fit", "some.npy", "others.npy", "--method", "unpaired", "--out", "map"]
    assert cli.main(words) == cli.DONE
    said = " ".join(capsys.readouterr().out.split())
    assert "Fitted without pairs: the 5 seeds agree" in said
    assert "this cannot be checked without 50 to 100 pairs." in said
    found = load_map("map")
    assert (found.method, found.dim_in, found.dim_out) == ("unpaired", 8, 9)
    assert not found.has_uncertainty and found.known is None
    assert (tmp_path / "map/numpy.safetensors").is_file()
    check_pairs(found)


def test_shared_ids_check_the_map_and_are_not_fitted_on(small, capsys):
    x = content(1, 900)
    names = np.array([f"item {i}" for i in range(1700)])
    old = EmbeddingSet.of(x, names[:900])
    new = EmbeddingSet.of(by_new_model(np.concatenate([x[-60:], content(2, 800)])), names[840:])
    found = upgrade.fit(old, new, method="unpaired")
    assert found.description["pairs_held_out"] == len(found.known.ids) == 60
    assert found.description["vectors"] == [840, 800]
    assert found.description["quality"]["unpaired"]["own"] > 0.9
    assert not np.isin(upgrade.inputs.row_hashes(x[-60:]), found.fitted).any()
    check_pairs(found)


@pytest.fixture
def right(monkeypatch):
    """Let every fit find the right map."""

    def fit(old, new, **settings):
        weight = np.linalg.pinv(TURN[:8]) if old.shape[1] == 9 else TURN[:8]
        alike = np.ones((5, 5))
        return unpaired.UnpairedMap(weight, old.mean(axis=0), new.mean(axis=0), alike, alike[0])

    monkeypatch.setattr(unpaired, "fit_unpaired", fit)


def test_pairs_that_the_map_fails_on_are_an_error(right):
    x = content(1, 900)
    names = np.array([f"item {i}" for i in range(1700)])
    old, others = EmbeddingSet.of(x, names[:900]), content(2, 800)
    for shift in (0, 7):  # with a shift, ids name other items
        shared = np.roll(x[-60:], shift, axis=0)
        new = EmbeddingSet.of(by_new_model(np.concatenate([shared, others])), names[840:])
        if not shift:
            assert upgrade.fit(old, new, method="unpaired").description["pairs_held_out"] == 60
            continue
        with pytest.raises(UserError, match="known-answer queries fail on the unpaired map"):
            upgrade.fit(old, new, method="unpaired")


def test_a_bridge_and_zero_vectors(right):
    old, new = content(1, 900), by_new_model(content(2, 800))
    new[5] = 0
    bridge = upgrade.fit(old, new, method="unpaired", direction="backward")
    assert bridge.description["zero_vectors_left_out"] == 1
    mapped, _ = bridge.transform(by_new_model(content(99, 60)))
    wanted = content(99, 60)
    assert np.linalg.norm(mapped - wanted) < 0.25 * np.linalg.norm(wanted)


def test_mistakes_are_one_line_and_write_nothing(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(3)
    np.save("round.npy", rng.normal(size=(300, 8)).astype(np.float32))
    np.save("round2.npy", rng.normal(size=(400, 8)).astype(np.float32))
    np.save("few.npy", content(4, 19))
    np.save("labels.npy", np.zeros(400, np.int64))
    np.save("holes.npy", np.full((300, 8), np.nan, np.float32))
    for old, more, text in (
        ("round.npy", [], "no map was found without pairs: the 5 seeds do not agree"),
        ("few.npy", [], "a map without pairs needs at least 30 vectors on each side; there are 19"),
        ("round.npy", ["--labels", "labels.npy"], "takes neither labels nor a classifier"),
        ("round.npy", ["--held-out", "2"], "held_out must be a share between 0 and 1"),
        ("holes.npy", [], "is not finite"),
    ):
        words = ["fit", old, "round2.npy", "--method", "unpaired", "--out", "map", *more]
        assert cli.main(words) == 1
        said = capsys.readouterr().err.strip()
        assert text in " ".join(said.split()) and "Traceback" not in said
        assert not (tmp_path / "map").exists()
    found = upgrade.fit("round.npy", "round.npy", candidates=("procrustes", "unpaired"))
    assert found.description["left_out"]["unpaired"].startswith("it takes no pairs")
    assert cli.main(["apply", "up", "--map", "unpaired", "--gallery", "round.npy"]) == 1
    assert "unpaired must be fitted first" in capsys.readouterr().err
