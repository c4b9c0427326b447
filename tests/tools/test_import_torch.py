"""tools/import_torch.py: files as PyTorch writes them -> runs with the same embeddings."""

import argparse
import json
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
import safetensors.numpy
from torch_tools import (
    SIZE,
    WithHead,
    assert_close,
    assert_same_images,
    backbone,
    by_torch,
    compatible,
    images,
    randomize,
    run_tool,
    save_script,
    saved,
    torch,
    transformation,
)

from fct_jax.errors import UserError
from fct_jax.frozen.model import Embedder, load_model
from fct_jax.models import RESNETS
from tools import import_torch
from tools.pytorch import models as torch_models
from tools.pytorch.archives import read_weights
from tools.pytorch.parts import read_parts


@pytest.fixture
def convert(tmp_path, capsys):
    """Return a function that imports a file into a new run and returns (run, printed text)."""

    def run(file, *options):
        out = tmp_path / "run"
        return out, run_tool(import_torch, capsys, file, "--out", out, *SIZE, *options)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_script_of_a_backbone(arch, tmp_path, convert):
    module = backbone(arch=arch)
    save_script(torch_models.FeatureExtractor(module), tmp_path / "old.pt")
    run, text = convert(
        tmp_path / "old.pt", "--arch", arch, "--embedding_dim", "16", "--num_classes", "5"
    )
    assert_same_images(run, module)
    model = load_model(run)
    np.testing.assert_array_equal(model.classifier, module.fc.weight.detach()[:, :, 0, 0])
    assert model.description["name"] == arch and model.dim == 16
    assert model.description["kwargs"]["last_nonlin"] is True
    assert f"model {model.fingerprint}" in text and "agree with PyTorch's to" in text


@pytest.mark.parametrize("arch", list(RESNETS))
def test_every_architecture_is_told_by_its_weights(arch):
    with torch.device("meta"):
        state = torch_models.ResNet(arch, 5, 16, width=8).state_dict()
    state = {name: np.zeros(value.shape, np.float32) for name, value in state.items()}
    found = read_parts(state, extra=False)["model"].description
    assert found["name"] == arch and found["dim"] == 16
    assert found["kwargs"] == {
        "num_classes": 5,
        "embedding_dim": 16,
        "small_stem": False,
        "width": 8,
    }


@pytest.mark.slow
def test_linear_last_block_is_seen_in_an_archive(tmp_path, convert):
    module = backbone(last_nonlin=False)
    save_script(torch_models.FeatureExtractor(module), tmp_path / "m.pt")
    run, _ = convert(tmp_path / "m.pt")
    assert load_model(run).description["kwargs"]["last_nonlin"] is False
    assert_same_images(run, module)
    assert load_model(run).embed(images()).min() < 0


@pytest.mark.slow
def test_traced_and_wrapped_archive(tmp_path, convert):
    """An archive wraps an archive, and has options that the weights do not tell."""
    module = backbone(small_stem=True, normalize_embedding=True)
    wrapped = torch_models.FeatureExtractor(module)
    outer = torch.nn.Sequential(OrderedDict(module=wrapped)).eval()
    save_script(outer, tmp_path / "m.pt", torch.zeros(2, 3, 32, 32))
    run, _ = convert(tmp_path / "m.pt")
    assert_same_images(run, module)
    assert load_model(run).description["kwargs"]["normalize_embedding"] is True


@pytest.mark.slow
def test_side_model_with_projection_head(tmp_path, convert):
    module = WithHead(backbone(classifier="none")).eval()
    save_script(module, tmp_path / "simclr.pt")
    run, text = convert(tmp_path / "simclr.pt")
    assert_same_images(run, module)
    assert load_model(run).classifier is None
    assert "left out: projection_head.0.weight" in text


@pytest.mark.parametrize("uncertainty", [False, True])
def test_script_of_a_transformation(uncertainty, tmp_path, convert):
    module = transformation(uncertainty)
    save_script(module, tmp_path / "h.pt")
    run, _ = convert(tmp_path / "h.pt", "--arch", "fastfill" if uncertainty else "fct")
    rng = np.random.default_rng(2)
    old, side = (rng.normal(size=(5, dim)).astype(np.float32) for dim in (16, 8))
    with torch.no_grad():
        out = module(*(torch.from_numpy(x)[:, :, None, None] for x in (old, side)))
    expected = out.numpy().reshape(5, -1)
    model = load_model(run)
    embedding, log_variance = model.transform(old, side)
    assert_close(embedding, expected[:, :12])
    if uncertainty:  # features first, then sigma
        assert_close(log_variance, expected[:, 12])
    else:
        assert log_variance is None
    assert model.needs_side and model.description["old_dim"] == 16 and model.dim == 12
    assert model.old_fingerprint is None  # an unknown fingerprint matches any model


def test_golden_transformation(golden_fct, tmp_path, convert):
    arrays = golden_fct.arrays("transformation")
    prefix = "sigma1/state/"
    state = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    safetensors.numpy.save_file(state, tmp_path / "h.safetensors")
    run, _ = convert(tmp_path / "h.safetensors")
    embedding, log_variance = load_model(run).transform(arrays["old"], arrays["side"])
    ours = np.concatenate([embedding, log_variance[:, None]], 1)
    expected = arrays["sigma1/out_eval"]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def lce(blocks=2, dim=12):
    return randomize(torch_models.LCETransformation(dim, blocks, inner=6), 3)


@pytest.mark.parametrize("blocks", [1, 4])
def test_golden_lce_transformation(blocks, golden_advbct, tmp_path, convert):
    arrays = golden_advbct.arrays("lce_transformation")
    prefix = f"K{blocks}/state/"
    state = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    torch.save({k: torch.from_numpy(np.asarray(v)) for k, v in state.items()}, tmp_path / "t.pth")
    run, text = convert(tmp_path / "t.pth", "--arch", "lce")
    model = load_model(run)
    moved, uncertainty = model.transform(arrays["x"])
    expected = arrays[f"K{blocks}/out_eval"]
    np.testing.assert_allclose(moved, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert uncertainty is None and not model.needs_side and "side" not in text


@pytest.mark.slow
@pytest.mark.parametrize("form", ["script", "checkpoint"])
def test_lce_with_its_old_model(form, tmp_path, convert):
    """An old model and the transformation of its embeddings make two runs."""
    old = compatible()
    module = torch_models.ModelWithTransformation(old, lce()).eval()
    file = tmp_path / ("m.pt" if form == "script" else "checkpoint.pth.tar")
    if form == "script":
        save_script(module, file)
    else:
        state = {f"module.{name}": value for name, value in module.state_dict().items()}
        torch.save({"model": state, "epoch": 3}, file)
    run, _ = convert(file, "--embedding_dim", "12")
    assert_same_images(run / "old", old)
    model = load_model(run)
    assert model.old_fingerprint == load_model(run / "old").fingerprint
    moved, _ = model.transform(load_model(run / "old").embed(images()))
    assert_close(moved, by_torch(module, images()))


@pytest.mark.slow
def test_transformation_knows_its_runs(tmp_path, capsys):
    def convert(name, module, *options):
        save_script(module, tmp_path / f"{name}.pt")
        out = tmp_path / name
        run_tool(import_torch, capsys, tmp_path / f"{name}.pt", "--out", out, *SIZE, *options)
        return out

    old = convert("old", torch_models.FeatureExtractor(backbone()))
    new = convert("new", torch_models.FeatureExtractor(backbone(1, embedding_dim=12)))
    module = transformation(dims=(16, 12, 16))
    h = load_model(convert("h", module, "--old", old, "--new", new))
    assert h.old_fingerprint == load_model(old).fingerprint
    assert h.new_fingerprint == load_model(new).fingerprint
    assert not h.needs_side and h.side_fingerprint is None
    with pytest.raises(UserError, match="--old .* gives embeddings of 12, but 16 are needed"):
        convert("h2", module, "--old", new)
    with pytest.raises(UserError, match="--new is for a transformation"):
        convert("b", torch_models.FeatureExtractor(backbone()), "--new", new)


@pytest.mark.slow
@pytest.mark.parametrize(("with_side", "traced"), [(False, False), (True, True)])
def test_transformed_old_model(with_side, traced, tmp_path, convert, capsys):
    """Old model, side model and transformation in one archive make three runs."""
    old = torch_models.FeatureExtractor(backbone(last_nonlin=False))
    side = torch_models.FeatureExtractor(backbone(1, embedding_dim=8)) if with_side else old
    h = transformation(True, (16, 12, 8 if with_side else 16))
    module = torch_models.TransformedOldModel(old, side, h).eval()
    example = torch.zeros(2, 3, 32, 32) if traced else None
    save_script(module, tmp_path / "transformed.pt", example)
    run, _ = convert(tmp_path / "transformed.pt", "--embedding_dim", "12")
    # The old model alone, from another kind of file, is the same model.
    alone = saved(tmp_path, old.model.state_dict())
    options = ("--out", tmp_path / "alone", *SIZE, "--last_nonlin", "false")
    run_tool(import_torch, capsys, alone, *options)
    assert load_model(tmp_path / "alone").fingerprint == load_model(run / "old").fingerprint
    model = load_model(run)
    assert model.old_fingerprint == load_model(run / "old").fingerprint
    assert model.needs_side == with_side == (run / "side").is_dir()
    assert_same_images(run / "old", old)
    found = {"old": load_model(run / "old").embed(images())}
    if with_side:
        assert_same_images(run / "side", side)
        found["side"] = load_model(run / "side").embed(images())
        assert model.side_fingerprint == load_model(run / "side").fingerprint
    embedding, log_variance = model.transform(**found)
    ours = np.concatenate([embedding, log_variance[:, None]], 1)
    assert_close(ours, by_torch(module, images()))


class CfgNode(dict):
    """Like yacs's CfgNode: a dict with attributes that pickle keeps."""

    def __init__(self, **values):
        super().__init__(values)
        self.__dict__["__immutable__"] = True


@pytest.fixture
def yacs(monkeypatch):
    module = types.ModuleType("yacs.config")
    module.CfgNode = CfgNode
    monkeypatch.setattr(CfgNode, "__module__", "yacs.config")
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)


@pytest.mark.slow
def test_checkpoint_of_advbct(tmp_path, convert, yacs):
    """It has all that its trainer stores with the weights, and parts that only training needs."""
    module = compatible()
    state = {f"module.{name}": value for name, value in module.state_dict().items()}
    state["module.discriminator.d_fc1.weight"] = torch.zeros(100, 12)
    state["module.eboundary.weight"] = torch.zeros(7)
    checkpoint = {
        "epoch": 30,
        "arch": "DistributedDataParallel",
        "model": state,
        "best_acc1": np.float64(0.5),
        "optimizer": torch.optim.SGD(module.parameters(), lr=0.1).state_dict(),
        "grad_scaler": {},
        "config": CfgNode(TRAIN=CfgNode(EPOCHS=30)),
        "args": argparse.Namespace(rank=0),
    }
    torch.save(checkpoint, tmp_path / "checkpoint_epoch30.pth.tar")
    options = ("--arch", "resnet18", "--embedding_dim", "12", "--resize", "40")
    run, text = convert(tmp_path / "checkpoint_epoch30.pth.tar", *options)
    assert_same_images(run, module)
    model = load_model(run)
    assert model.description["name"] == "resnet18_projection"
    assert model.preprocessing.size == 32 and model.preprocessing.resize == 40
    np.testing.assert_array_equal(model.classifier, module.projection_cls.weight.detach())
    assert "left out: discriminator.d_fc1.weight, eboundary.weight" in text
    torch.save({"state_dict": state}, tmp_path / "other.pth.tar")
    assert set(read_weights(tmp_path / "other.pth.tar").state) == set(state)


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "classes"), [("pth", 6), ("safetensors", None)])
def test_torchvision_and_timm(ending, classes, tmp_path, convert):
    """Files have a classifier with bias or none, and some lack counters."""
    form = "linear with bias" if classes else "none"
    module = backbone(num_classes=classes or 1, classifier=form, embedding_dim=None)
    state = {k: v for k, v in module.state_dict().items() if not k.endswith("batches_tracked")}
    if ending == "pth":
        torch.save(state, tmp_path / "m.pth")
    else:
        safetensors.numpy.save_file(
            {k: v.numpy() for k, v in state.items()}, tmp_path / "m.safetensors"
        )
    options = ("--width", "4", "--embedding_dim", "32", "--arch", "resnet18")
    run, text = convert(tmp_path / f"m.{ending}", *options)
    assert_same_images(run, module)
    classifier = load_model(run).classifier
    assert "assumed to end in a ReLU" in text
    assert (classifier is None) == (classes is None) == ("left out: fc.bias" not in text)
    if classes:
        np.testing.assert_array_equal(classifier, state["fc.weight"])


@pytest.mark.slow
def test_preprocessing_options(tmp_path, capsys):
    torch.save(backbone().state_dict(), tmp_path / "m.pth")
    numbers = ["0.5", "0.4", "0.3"]
    options = ["--size", "24", "--resize", "28", "--mean", *numbers, "--std", *numbers]
    run_tool(import_torch, capsys, tmp_path / "m.pth", "--out", tmp_path / "run", *options)
    stored = json.loads((tmp_path / "run/model/model.json").read_text())["preprocessing"]
    assert stored["size"] == 24 and stored["resize"] == 28
    assert stored["mean"] == stored["std"] == [0.5, 0.4, 0.3]
    assert isinstance(load_model(tmp_path / "run"), Embedder)


def test_help(capsys):
    with pytest.raises(SystemExit) as done:
        import_torch.run(["--help"])
    text = capsys.readouterr().out
    assert done.value.code == 0 and "--embedding_dim" in text and "TorchScript" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("small", "size", "warned"), [(True, 224, True), (False, 32, True), (False, 224, False)]
)
def test_the_size_of_the_images_is_asked_for(small, size, warned, tmp_path, capsys):
    """Weights do not tell the size and agree with PyTorch at any; a wrong one costs quality."""
    file, out = saved(tmp_path, backbone(small_stem=small).state_dict()), tmp_path / "run"
    stem = "small stem" if small else "large stem"
    with pytest.raises(UserError, match=f"--size is missing: .*{stem}.*nothing was written"):
        import_torch.run([str(file), "--out", str(out)])
    assert not out.exists()
    import_torch.run([str(file), "--out", str(out), "--size", str(size)])
    assert load_model(out).preprocessing.size == size
    error = capsys.readouterr().err
    assert (f"warning: the weights have a {stem}" in error) == warned
    with pytest.raises(UserError, match="--size must be at least 1 pixel, not -3"):
        import_torch.run([str(file), "--out", str(tmp_path / "other"), "--size", "-3"])


def test_a_transformation_needs_no_size(tmp_path, capsys):
    file = saved(tmp_path, transformation(False, (16, 12, 16)).state_dict())
    assert "embeddings agree" in run_tool(import_torch, capsys, file, "--out", tmp_path / "run")
