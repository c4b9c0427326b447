"""Vectors are mapped, assessed and migrated without the libraries of training."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from patience import LONG

REPOSITORY = Path(__file__).parents[2]
TRAINING = ("grain", "tensorflow_datasets", "orbax", "tensorboardX", "sklearn", "flax", "optax")

START = """
import sys
import numpy as np
"""
MAP = "import fct_jax.upgrade.maps.map, fct_jax.upgrade.maps.fitting\n"
PAIRS = """
rng = np.random.default_rng(0)
old = rng.normal(size=(300, 8)).astype(np.float32)
new = (old @ rng.normal(size=(8, 6)) + 0.1 * rng.normal(size=(300, 6))).astype(np.float32)
from fct_jax import upgrade
"""
LINEAR = (
    PAIRS
    + """
found = upgrade.fit(old, new, method="ridge", out="map")
moved, log_variance = upgrade.load_map("map").transform(old)
assert moved.shape == (300, 6) and log_variance.shape == (300,)
"""
)
MIGRATION = (
    LINEAR
    + """
from fct_jax.storage.embedding_set import EmbeddingSet
upgrade.assess("map", old, new, out="report")
EmbeddingSet.of(old).write("gallery")
upgrade.Upgrade("upgrade").apply("map", "gallery", unchecked=True)
"""
)


def imported(tmp_path, program) -> set[str]:
    """Return the modules of a process that has run the program."""
    ended = subprocess.run(
        [sys.executable, "-c", f"{START}{program}\nprint(*sorted(sys.modules))"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert ended.returncode == 0, ended.stderr
    return set(ended.stdout.splitlines()[-1].split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "absent"),
    [
        (MAP, ("jax", "scipy", "faiss", "numba", "pyarrow", "matplotlib")),
        (LINEAR, ("jax", "pyarrow", "matplotlib")),
        (MIGRATION, ("jax",)),
    ],
    ids=["import", "fit", "migrate"],
)
def test_closed_forms_need_no_jax(tmp_path, program, absent):
    found = imported(tmp_path, program)
    assert not found & {*absent, *TRAINING, "tensorflow", "torch"}
    assert "fct_jax.upgrade.maps.map" in found


def test_the_same_map_by_numpy_and_by_jax():
    """float32 blocks on threads are within 1e-6 of float64 and of JAX's results."""
    import jax
    import jax.numpy as jnp

    from fct_jax import upgrade

    rng = np.random.default_rng(0)
    old = rng.normal(size=(9000, 96)).astype(np.float32)
    new = old @ rng.normal(size=(96, 64)).astype(np.float32)
    new /= np.linalg.norm(new, axis=1, keepdims=True)
    found = upgrade.fit(old, new, method="ridge")
    moved, _ = found.transform(old, batch_size=1000)
    w = found.weights

    def exact(x, xp):
        mapped = x @ xp.asarray(w["weight"], x.dtype) * w["scale"] + xp.asarray(w["bias"], x.dtype)
        return mapped / xp.linalg.norm(mapped, axis=1, keepdims=True)

    np.testing.assert_allclose(moved, exact(old.astype(np.float64), np), rtol=0, atol=1e-6)
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(moved, exact(jnp.asarray(old), jnp), rtol=0, atol=1e-6)
