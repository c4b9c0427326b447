"""Search while a part of the sibling is re-embedded, against an exact search of both spaces."""

import subprocess
import sys

import numpy as np
import pytest
from patience import LONG
from store_apps import NEW, OLD, ids, vectors

from fct_jax.errors import UserError
from fct_jax.upgrade import Calibration, calibrate, search
from fct_jax.upgrade.stores import NEW as REEMBEDDED
from fct_jax.upgrade.stores import TRANSLATED
from fct_jax.upgrade.stores.affine import StoreCalibration
from fct_jax.upgrade.ways.calibration import Weights

META = {"fingerprint": "half"}
COUNT, QUERIES, K = 600, 12, 10


def spaces(count, seed):
    """Return vectors of the same items by two models, with lengths other than 1."""
    old = vectors(count, seed)
    turn = np.random.default_rng(11).normal(size=(OLD, NEW)) / np.sqrt(OLD)
    new = old @ turn + 0.15 * np.random.default_rng(seed + 1).normal(size=(count, NEW))
    return old * 1.5, new.astype(np.float32)


@pytest.fixture(scope="module", params=["cosine", "l2"])
def calibration(request, tmp_path_factory):
    """Return a calibration whose two weights differ, and its folder."""
    weights = Weights(dual_new=1.3, dual_shift=0.2, fused_old=0.7, fused_new=1.1, fused_shift=-0.1)
    made = calibrate(*spaces(1200, 21), metric=request.param, weights=weights)
    return made, made.save(tmp_path_factory.mktemp("calibration") / request.param)


class TestAffine:
    def test_is_that_of_the_calibration(self, calibration):
        made, folder = calibration
        asked = spaces(300, 33)  # more than one block
        want, have = made.affine(*asked), StoreCalibration(folder).affine(*asked)
        half = [0, 0]
        if made.new.metric == "l2":
            spaces_ = zip(asked, (made.old, made.new), strict=True)
            half = [((rows - space.centre) ** 2).sum(axis=1) / 2 for rows, space in spaces_]
        shifts = {
            "keep_shift": want.keep * half[0],
            "dual_shift": want.dual * half[1],
            "fused_shift": want.fused_old * half[0] + want.fused_new * half[1],
        }
        for name, value in vars(want).items():
            moved = value + shifts.get(name, 0)
            np.testing.assert_allclose(getattr(have, name), moved, rtol=2e-4, atol=2e-4)

    def test_of_no_queries(self, calibration):
        none = StoreCalibration(calibration[1]).affine(np.zeros((0, OLD)), np.zeros((0, NEW)))
        assert len(none) == 0

    def test_needs_numpy_alone(self, calibration):
        code = (
            "import sys\n"
            "for name in ('faiss', 'jax', 'jaxlib', 'flax', 'optax', 'scipy', 'pyarrow'):\n"
            "    sys.modules[name] = None\n"
            "import numpy as np\n"
            "from fct_jax.upgrade.stores.affine import StoreCalibration\n"
            f"made = StoreCalibration({str(calibration[1])!r})\n"
            f"made = made.affine(np.ones((3, {OLD})), np.ones((3, {NEW})))\n"
            "print(len(made), np.isfinite(made.keep).all())"
        )
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONG)
        assert done.stdout.split() == ["3", "True"], done.stderr

    def test_what_it_refuses(self, calibration, tmp_path):
        with pytest.raises(UserError, match="calibration.json is missing"):
            StoreCalibration(tmp_path)
        damped = calibrate(*spaces(300, 2), weights=Weights(damping=0.5)).save(tmp_path / "damped")
        with pytest.raises(UserError, match="without damping"):
            StoreCalibration(damped)
        assert Calibration.load(damped).weights.damping == 0.5


@pytest.fixture(params=["postgres", "qdrant", "lance", "milvus"])
def half(request, calibration, make_app, open_store):
    """Return a store, its sibling, their contents, and the mask of re-embedded rows."""
    app = make_app(request.param, "int", calibration[0].new.metric)
    app.create()
    old, new = spaces(COUNT, 5)
    keys = np.array(ids("int", 0, COUNT))
    app.put(keys.tolist(), old)
    store = open_store(app.uri)
    target, batch = store.sibling(NEW, META), store.read(None, COUNT)
    migrated = np.random.default_rng(2).random(COUNT) < 0.5
    mapped = -new  # they would come last: translated rows must not take part
    for version, rows, some in ((TRANSLATED, mapped, ~migrated), (REEMBEDDED, new, migrated)):
        part = batch.take(some)
        assert target.write(part.ids, rows[some], version, part.tokens, part.extra).all()
    return store, target, keys, (old, new), migrated


@pytest.mark.slow
@pytest.mark.parametrize("way", ["dual", "fused"])
def test_finds_what_exact_search_finds(half, calibration, way, monkeypatch):
    store, target, keys, rows, migrated = half
    made, folder = calibration
    asked = spaces(QUERIES, 77)
    # The search is so deep that every item is a candidate, and only one answer is right.
    monkeypatch.setattr("fct_jax.upgrade.stores.half.FUSED_DEPTH", COUNT // K)
    want, found = search(way, *asked, *rows, migrated, K, made)
    affine = StoreCalibration(folder).affine(*asked)
    scores, have = store.search_half(target, *asked, K, affine, way=way)
    np.testing.assert_allclose(scores, want, rtol=1e-3, atol=1e-3)
    # Items whose scores are equal up to rounding may change places.
    assert (have == keys[found]).mean() > 0.95
    assert 0.1 < migrated[found].mean() < 0.9  # both kinds are found


def test_few_results_are_filled_up(half, calibration):
    store, target, _, _, _ = half
    asked = spaces(2, 7)
    affine = StoreCalibration(calibration[1]).affine(*asked)
    scores, found = store.search_half(target, *asked, COUNT + 5, affine)
    # Each item is found at most once.
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in found)
    assert np.isneginf(scores[found < 0]).all() and (found[:, -5:] == -1).all()


def test_what_is_refused(half, calibration):
    store, target, _, _, _ = half
    asked = spaces(3, 7)
    affine = StoreCalibration(calibration[1]).affine(*asked)
    with pytest.raises(UserError, match="did you mean 'fused'"):
        store.search_half(target, *asked, 5, affine, way="fussed")
    with pytest.raises(UserError, match="the same queries"):
        store.search_half(target, asked[0][:2], asked[1], 5, affine)
