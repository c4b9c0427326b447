"""The exported StableHLO program runs without this package and gives the same embeddings."""

import subprocess
import sys

import numpy as np
import pytest
import tiny_runs
from patience import LONG

import fct_jax
from fct_jax.train.loop import train

ALONE = """
import sys
import jax, numpy as np, safetensors.numpy
from jax import export

run, given, found = sys.argv[1:]
weights = safetensors.numpy.load_file(f"{run}/model/weights.safetensors")
program = export.deserialize(open(f"{run}/model/program.stablehlo", "rb").read())
with np.load(given) as inputs:
    result = program.call(weights, *(inputs[name] for name in inputs.files))
np.savez(found, *(np.asarray(part) for part in jax.tree.leaves(result)))
assert not any(name.startswith(("fct_jax", "flax")) for name in sys.modules)
assert set(program.platforms) >= {"cpu", "cuda", "tpu"}
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    train(tiny_runs.backbone(), folder / "old")
    train(tiny_runs.backbone(data__classes=""), folder / "new")
    train(tiny_runs.transformation(folder / "old", folder / "new", "fastfill"), folder / "fastfill")
    return folder


def run_alone(run, folder, *inputs):
    np.savez(folder / "given.npz", *inputs)
    subprocess.run(
        [sys.executable, "-c", ALONE, run, folder / "given.npz", folder / "found.npz"],
        check=True,
        cwd=folder,
        timeout=LONG,
    )
    with np.load(folder / "found.npz") as found:
        return [found[name] for name in found.files]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 7])
def test_backbone(runs, tmp_path, count):
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    (found,) = run_alone(runs / "new", tmp_path, images)
    np.testing.assert_allclose(found, fct_jax.load_model(runs / "new").embed(images), atol=1e-5)


@pytest.mark.slow
def test_transformation(runs, tmp_path):
    model = fct_jax.load_model(runs / "fastfill")
    old = np.random.default_rng(0).standard_normal((5, 8), np.float32)
    embeddings, log_variance = run_alone(runs / "fastfill", tmp_path, old, old)
    expected = model.transform(old)
    np.testing.assert_allclose(embeddings, expected[0], atol=1e-5)
    np.testing.assert_allclose(log_variance, expected[1], atol=1e-5)
