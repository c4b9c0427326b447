"""Every way by NumPy alone gives what `search` gives, and imports nothing heavier."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from patience import LONG

from fct_jax.errors import UserError
from fct_jax.upgrade import fit
from fct_jax.upgrade.maps.backward import Backward
from fct_jax.upgrade.ways import WAYS
from fct_jax.upgrade.ways.calibration import Weights, calibrate
from fct_jax.upgrade.ways.plain import PlainSearch, export_way
from fct_jax.upgrade.ways.serving import search

N, QUERIES = 300, 40
TURN = np.linalg.qr(np.random.default_rng(3).normal(size=(14, 14)))[0]


@pytest.fixture(scope="module")
def made():
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(N + QUERIES, 12))
    sides = [
        (latent @ rng.normal(size=(12, dim)) + rng.normal(size=(len(latent), dim)))
        for dim in (10, 14)
    ]
    old, new = (part.astype(np.float32) for part in sides)
    bridge = fit(old[:N], new[:N], method="ridge", direction="backward", uncertainty=False)
    return old, new, bridge, rng.random(N) < 0.4


def given(made, metric):
    old, new, bridge, _ = made
    needed = {
        "calibration": calibrate(old[:N], new[:N], metric=metric),
        "bridge": bridge,
        "backward": Backward(TURN + 0.1, np.linspace(0, 1, 14)),  # no rotation
    }
    vectors = {"query_old": old[N:], "query_new": new[N:], "old": old[:N], "new": new[:N]}
    vectors["translated"] = new[:N] + 0.3 * np.flip(new[:N])
    return needed, vectors


@pytest.mark.parametrize("k", [7, N + 5])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("name", WAYS)
def test_numpy_alone_is_search(made, tmp_path, name, metric, k):
    if WAYS[name].needs_backward and metric == "l2":
        pytest.skip("a common space is compared by cosine")
    migrated = made[-1]
    needed, vectors = given(made, metric)
    for number, way in enumerate(WAYS[name].all_variants()[::4]):
        path = export_way(tmp_path / f"{number}.npz", way, metric=metric, **needed)
        scores, rows = PlainSearch(path).search(k, migrated, **vectors)
        expected, expected_rows = search(
            way, k=k, migrated=migrated, calibration=needed["calibration"], metric=metric,
            query_bridged=needed["bridge"].transform(vectors["query_new"])[0],
            backward=needed["backward"], **vectors,
        )  # fmt: skip
        known = expected_rows >= 0
        np.testing.assert_array_equal(rows >= 0, known)
        scale = np.abs(expected[known]).max()
        np.testing.assert_allclose(scores[known] / scale, expected[known] / scale, atol=1e-5)
        # Rows whose scores are equal up to rounding may change places.
        assert (rows == expected_rows).mean() > 0.99


def test_nothing_heavy_is_imported(made, tmp_path):
    needed, _ = given(made, "cosine")
    export_way(tmp_path / "way.npz", "union_cascade", **needed)
    program = (
        "import sys\nfrom fct_jax.upgrade.ways.plain import PlainSearch\n"
        f"PlainSearch({str(tmp_path / 'way.npz')!r})\n"
        "print([name for name in ('jax', 'faiss', 'numba', 'flax') if name in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=LONG,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert ended.stdout.strip() == "[]", ended.stdout + ended.stderr


def test_mistakes_are_one_line(made, tmp_path):
    needed, vectors = given(made, "cosine")
    for name, lacking in (("fused", "calibration"), ("bridge", "bridge"), ("common", "backward")):
        with pytest.raises(UserError, match=f"{name} search needs {lacking}="):
            export_way(tmp_path / "x.npz", name, **needed | {lacking: None})
    damped = calibrate(made[0], made[1], metric="cosine", weights=Weights(damping=0.5))
    with pytest.raises(UserError, match="has no plain form"):
        export_way(tmp_path / "x.npz", "fused", calibration=damped)
    path = export_way(tmp_path / "dual.npz", "dual", **needed)
    with pytest.raises(UserError, match="exists already"):
        export_way(path, "dual", **needed)
    with pytest.raises(UserError, match="dual search needs query_old="):
        PlainSearch(path).search(5, made[-1], **vectors | {"query_old": None})
    (tmp_path / "noise").write_bytes(b"noise")
    with pytest.raises(UserError, match="is no exported way"):
        PlainSearch(tmp_path / "noise")
