"""One device and a grid of four train alike; a classifier can be split over devices."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tiny_runs
from safetensors.numpy import load_file

from fct_jax import sharding
from fct_jax.errors import UserError
from fct_jax.train.loop import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    train(tiny_runs.backbone(), folder / "old")
    train(tiny_runs.backbone(data__classes=""), folder / "new")
    return folder


def train_on(devices, folder, runs, model=1):
    """{task: losses along 20 steps}, {task: weights after them}."""
    folder.mkdir()
    script = tiny_runs.REPOSITORY / "tests" / "train_on_devices.py"
    done = subprocess.run(
        [sys.executable, script, folder, runs, str(model)],
        cwd=tiny_runs.REPOSITORY,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    losses = json.loads((folder / "losses.json").read_text())
    weights = {name: load_file(folder / name / "model" / "weights.safetensors") for name in losses}
    return losses, weights


def test_four_devices_agree_with_one(runs, tmp_path):
    """Two ways over the batch, two over the classifier; AdvBCT looks across the whole batch."""
    alone, alone_weights = train_on(1, tmp_path / "1", runs)
    losses, weights = train_on(4, tmp_path / "4", runs, model=2)
    assert losses.keys() == alone.keys() == {"fastfill", "advbct"}
    np.testing.assert_allclose(losses["fastfill"], alone["fastfill"], rtol=1e-4)
    for key, value in weights["fastfill"].items():
        scale = max(np.abs(value).max(), 1e-3)
        expected = alone_weights["fastfill"][key]
        np.testing.assert_allclose(value, expected, atol=1e-3 * scale, err_msg=key)
    # A backbone this small amplifies rounding tenfold a step: its first steps are compared.
    np.testing.assert_allclose(losses["advbct"][:3], alone["advbct"][:3], rtol=1e-4)


def test_batch_and_mesh_must_fit():
    mesh = sharding.make_mesh()
    sharding.check_batch_size(3, mesh)
    with pytest.raises(UserError, match="nearest: 1"):
        sharding.check_batch_size(0, mesh)
    with pytest.raises(UserError, match="data=-1, model=7 does not fit 1 devices"):
        sharding.make_mesh(model=7)
