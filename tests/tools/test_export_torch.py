"""tools/export_torch.py: runs -> PyTorch weights with the same embeddings."""

import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
import tiny_runs
from patience import LONG
from torch_tools import (
    SIZE,
    TOOLS,
    backbone,
    compatible,
    randomize,
    run_tool,
    save_script,
    torch,
    transformation,
)

from fct_jax.errors import UserError
from fct_jax.frozen.model import load_model
from fct_jax.train.loop import train
from tools import export_torch, import_torch
from tools.pytorch import models as torch_models
from tools.pytorch.parts import to_torch


def modules():
    """Return a module of every kind with the options that its import needs."""
    return {
        "backbone": (backbone(), ()),
        "linear last": (backbone(last_nonlin=False), ("--last_nonlin", "false")),
        "no classifier": (backbone(classifier="none"), ()),
        "projection": (compatible(), ()),
        "lce": (randomize(torch_models.LCETransformation(12, 2)), ()),
        "fct": (transformation(), ()),
        "fastfill": (transformation(True), ()),
    }


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Return a function that imports a module of `modules` into a run, once each."""
    found, folder = {}, tmp_path_factory.mktemp("imported")

    def run(kind, capsys):
        if kind not in found:
            module, options = modules()[kind]
            torch.save(module.state_dict(), folder / f"{kind}.pth")
            arguments = (folder / f"{kind}.pth", "--out", folder / kind, *SIZE, *options)
            run_tool(import_torch, capsys, *arguments)
            found[kind] = folder / kind
        return found[kind]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("kind", list(modules()))
def test_round_trip(kind, ending, imported, tmp_path, capsys):
    """Import and export give the names, shapes and values that the module had."""
    run = imported(kind, capsys)
    file = tmp_path / f"weights.{ending}"
    text = run_tool(export_torch, capsys, run, "--out", file)
    assert "agree with PyTorch's to" in text and load_model(run).fingerprint in text
    if ending == "pth":
        state = torch.load(file, weights_only=True)
    else:
        state = {k: torch.from_numpy(v) for k, v in safetensors.numpy.load_file(file).items()}
    module, _ = modules()[kind]
    expected = module.state_dict()
    assert set(state) == set(expected)
    for name, value in expected.items():
        assert state[name].dtype == value.dtype
        assert torch.equal(state[name], value), name
    module.load_state_dict(state, strict=True)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.slow
def test_trained_run(tmp_path, capsys):
    """A run trained by fct_jax, with its own options, gives equal embeddings in PyTorch."""
    config = tiny_runs.backbone(
        model__name="resnet18",
        model__small_stem=True,
        model__last_nonlin=False,
        model__normalize_embedding=True,
        epochs=1,
    )
    config.optimizer.schedule.warmup_epochs = 0
    train(config, tmp_path / "run")
    run_tool(export_torch, capsys, tmp_path / "run", "--out", tmp_path / "w.pth")
    module = torch_models.ResNet(
        "resnet18", 10, 8, last_nonlin=False, normalize_embedding=True, small_stem=True, width=4
    ).eval()
    model = load_model(tmp_path / "run")
    module.load_state_dict(torch.load(tmp_path / "w.pth", weights_only=True))
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    pixels = np.asarray(model.preprocessing.on_device(images)).transpose(0, 3, 1, 2)
    with torch.no_grad():
        theirs = module(torch.from_numpy(pixels.copy()))[1].numpy()[:, :, 0, 0]
    np.testing.assert_allclose(model.embed(images), theirs, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_export_of_a_script_imports_as_equal_run(tmp_path, capsys):
    save_script(torch_models.FeatureExtractor(backbone()), tmp_path / "m.pt")
    run_tool(import_torch, capsys, tmp_path / "m.pt", "--out", tmp_path / "a", *SIZE)
    run_tool(export_torch, capsys, tmp_path / "a", "--out", tmp_path / "w.safetensors")
    run_tool(import_torch, capsys, tmp_path / "w.safetensors", "--out", tmp_path / "b", *SIZE)
    first, second = (
        safetensors.numpy.load_file(tmp_path / run / "model" / "weights.safetensors")
        for run in "ab"
    )
    assert set(first) == set(second)
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])


def test_refusals(imported, tmp_path, capsys):
    run = str(imported("fct", capsys))

    def refused(*arguments):
        with pytest.raises(UserError) as error:
            export_torch.run([str(argument) for argument in arguments])
        assert "\n" not in str(error.value)
        return str(error.value)

    (tmp_path / "there.pth").write_text("mine")
    assert "exists already" in refused(run, "--out", tmp_path / "there.pth")
    assert (tmp_path / "there.pth").read_text() == "mine"
    assert "must end in .pth or .safetensors" in refused(run, "--out", tmp_path / "w.onnx")
    assert "no exported model" in refused(tmp_path, "--out", tmp_path / "w.pth")
    assert "--out" in refused(run)
    with pytest.raises(UserError, match="a model 'other' has no form in PyTorch"):
        to_torch({"name": "other"}, {})
    assert "cannot write" in refused(run, "--out", tmp_path / "there.pth" / "w.safetensors")


@pytest.mark.slow
def test_other_embeddings_are_not_written(imported, tmp_path, capsys, monkeypatch):
    """A difference between the two implementations is noticed."""
    run = imported("backbone", capsys)
    linear = torch_models.ResNet.features
    monkeypatch.setattr(torch_models.ResNet, "features", lambda self, x: 1.001 * linear(self, x))
    with pytest.raises(UserError, match="differ .* by 1.0e-03 .* nothing was written"):
        export_torch.run([str(run), "--out", str(tmp_path / "w.pth")])
    assert list(tmp_path.iterdir()) == []


def test_without_torch(imported, tmp_path, capsys, monkeypatch):
    run = imported("backbone", capsys)
    monkeypatch.setitem(sys.modules, "torch", None)
    text = run_tool(export_torch, capsys, run, "--out", tmp_path / "w.safetensors")
    assert "not compared with PyTorch" in text
    assert "conv1.weight" in safetensors.numpy.load_file(tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="needs PyTorch .* .safetensors does not"):
        export_torch.run([str(run), "--out", str(tmp_path / "w.pth")])


@pytest.mark.slow
def test_command_line(tmp_path):
    command = [sys.executable, TOOLS / "export_torch.py"]
    done = subprocess.run(
        [*command, "nothing", "--out", "w.pth"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=LONG,
    )
    assert done.returncode == 1
    assert done.stderr == "error: no exported model in nothing (not a run)\n"
