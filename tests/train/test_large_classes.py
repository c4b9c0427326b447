"""Classifiers over 10⁵ classes, split over devices, of a number that no device count divides."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from patience import LONG
from safetensors.numpy import load_file

from fct_jax.runtime import sharding
from fct_jax.train import large_classes
from fct_jax.train.large_classes import with_padded_classes
from fct_jax.train.loop import train
from tools import check_devices

CLASSES = (100_003, 81_313, 93_431)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    script = Path(__file__).parents[1] / "helpers" / "train_large_classes.py"
    done = subprocess.run(
        [sys.executable, script, folder],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "8"},
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("classes", CLASSES)
def test_four_parts_train_like_a_whole_one(results, classes):
    found = results[str(classes)]
    assert found["shape"] == [8, classes]
    np.testing.assert_allclose(found["seen"]["losses"], found["alone"]["losses"], rtol=1e-4)
    assert found["difference"] < 1e-4


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("classes", CLASSES)
def test_kernel_centres_and_momentum_lie_in_four_parts(results, classes):
    shards = results[str(classes)]["seen"]["shards"]
    moments = {100_003: 1, 81_313: 2, 93_431: 1}[classes]  # number of moments in SGD, Adam and LARS
    assert len([name for name in shards if "classifier" in name]) == 1 + moments
    assert any("centers" in name for name in shards)
    assert set(shards.values()) == {4}


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("classes", CLASSES)
def test_a_step_never_gathers_the_classes(results, classes):
    """Devices exchange far less than the kernel, and less than a sample's logits."""
    found = results[str(classes)]["seen"]["collectives"]
    assert len(found) > 2
    summed = [size for kind, size in found if kind == "all-reduce"]  # over "data"
    assert max(size for kind, size in found if kind != "all-reduce") < classes / 8
    assert max(summed) <= 8 * (classes // 4 + 384)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("classes", CLASSES)
def test_a_checkpoint_restores_on_another_mesh(results, classes):
    assert results[str(classes)]["alone"]["restored"] < 1e-4


class Task:
    """A task with only parameters."""

    frozen = "anything"

    def __init__(self, classes):
        self._classes = classes

    def init(self, key):
        kernel = jax.random.normal(key, (2, self._classes))
        return {"params": {"classifier": {"kernel": kernel}}, "batch_stats": {}}

    def loss(self, variables, scale):
        return scale * jnp.sum(variables["params"]["classifier"]["kernel"])

    def export(self, variables):
        return variables["params"]["classifier"]

    def evaluate(self, variables, cut):
        return self.export(cut(variables))

    def finish(self, workdir, fingerprint, variables):
        self.finished = workdir, fingerprint, variables["params"]["classifier"]["kernel"].shape


def test_padding_is_seen_outside_alone():
    task = Task(1025)
    padded = with_padded_classes(task, sharding.make_mesh())
    variables = padded.init(jax.random.key(0))
    kernel = variables["params"]["classifier"]["kernel"]
    assert kernel.shape == (2, 1152) and (kernel[:, 1025:] == 0).all()
    own = task.init(jax.random.key(0))["params"]["classifier"]["kernel"]
    np.testing.assert_array_equal(kernel[:, :1025], own)
    assert padded.frozen == "anything"
    gradient = jax.grad(padded.loss)(variables, 3.0)["params"]["classifier"]["kernel"]
    assert (gradient[:, :1025] == 3).all() and (gradient[:, 1025:] == 0).all()
    for given in (variables, jax.device_get(variables)):
        assert padded.export(given)["kernel"].shape == (2, 1025)
        assert padded.evaluate(given)["kernel"].shape == (2, 1025)
    padded.finish("dir", "print", variables)
    assert task.finished == ("dir", "print", (2, 1025))


@pytest.mark.parametrize("classes", [10, 1000, 1152])
def test_small_and_whole_classifiers_stay_as_they_are(classes):
    task = Task(classes)
    assert with_padded_classes(task, sharding.make_mesh()) is task


def test_a_mesh_that_divides_no_classes_says_so(capsys):
    mesh = SimpleNamespace(shape={"data": 1, "model": 3})
    with_padded_classes(Task(10), mesh)
    assert "config.mesh.model=3 does not divide 10 classes" in capsys.readouterr().out
    with_padded_classes(Task(9), mesh)
    assert not capsys.readouterr().out


@pytest.mark.slow
def test_a_run_with_padded_classes_leaves_the_same_model(tmp_path, monkeypatch):
    """The model is the same after training, evaluation, checkpoint and export."""

    def model(name):
        config = check_devices.cases(tmp_path)["backbone"]
        config.epochs, config.evaluate_every_epochs = 3, 3
        train(config, tmp_path / name)
        return load_file(tmp_path / name / "model" / "weights.safetensors")

    expected = model("plain")
    monkeypatch.setattr(large_classes, "LARGE", 4)
    monkeypatch.setattr(large_classes, "MULTIPLE", 12)
    found = model("padded")
    assert found["params/classifier/kernel"].shape == (16, 10)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
