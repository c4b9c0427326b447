"""tools/import_torch.py: files as PyTorch writes them -> runs with the same embeddings."""

import argparse
import json
import pickle
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import safetensors.numpy
import torch_tools
from torch_tools import SIZE, backbone, randomize, run_tool, save_script

torch = pytest.importorskip("torch", reason="PyTorch is optional")

from fct_jax.errors import UserError  # noqa: E402
from fct_jax.frozen import Embedder, load_model  # noqa: E402
from fct_jax.models import RESNETS  # noqa: E402
from tools import import_torch, torch_models  # noqa: E402
from tools.torch_archives import read_weights  # noqa: E402
from tools.torch_parts import read_parts  # noqa: E402

MEAN, STD = np.float32((0.485, 0.456, 0.406)), np.float32((0.229, 0.224, 0.225))


@pytest.fixture
def convert(tmp_path, capsys):
    """Imports a file with options into a new run, and returns (run, what was printed)."""

    def run(file, *options):
        out = tmp_path / "run"
        return out, run_tool(import_torch, capsys, file, "--out", out, *SIZE, *options)

    return run


@pytest.fixture
def refused(tmp_path):
    """The error of an import, after which nothing is there."""

    def run(file, *options) -> str:
        with pytest.raises(UserError) as error:
            import_torch.run([str(file), "--out", str(tmp_path / "run"), *SIZE, *options])
        assert [path.name for path in tmp_path.iterdir() if "run" in path.name] == []
        assert "\n" not in str(error.value)
        return str(error.value)

    return run


def images(count=3, size=32):
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), np.uint8)


def by_torch(module, pixels):
    x = ((pixels / np.float32(255) - MEAN) / STD).transpose(0, 3, 1, 2)
    with torch.no_grad():
        out = module(torch.from_numpy(np.ascontiguousarray(x, np.float32)))
    out = out[-1] if isinstance(out, tuple) else out
    return out.numpy().reshape(len(pixels), -1)


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def assert_same_images(run, module):
    assert_close(load_model(run).run(images()), by_torch(module, images()))


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


def test_linear_last_block_is_seen_in_an_archive(tmp_path, convert):
    module = backbone(last_nonlin=False)
    save_script(torch_models.FeatureExtractor(module), tmp_path / "m.pt")
    run, _ = convert(tmp_path / "m.pt")
    assert load_model(run).description["kwargs"]["last_nonlin"] is False
    assert_same_images(run, module)
    assert load_model(run).embed(images()).min() < 0


def test_wrong_last_nonlin_is_refused(tmp_path, refused):
    save_script(torch_models.FeatureExtractor(backbone(last_nonlin=False)), tmp_path / "m.pt")
    message = refused(tmp_path / "m.pt", "--last_nonlin", "true")
    assert "differ from those of the PyTorch model by" in message and "nothing was" in message


def test_traced_and_wrapped_archive(tmp_path, convert):
    """An archive around an archive, with options that weights do not tell."""
    module = backbone(small_stem=True, normalize_embedding=True)
    wrapped = torch_models.FeatureExtractor(module)
    outer = torch.nn.Sequential(OrderedDict(module=wrapped)).eval()
    save_script(outer, tmp_path / "m.pt", torch.zeros(2, 3, 32, 32))
    run, _ = convert(tmp_path / "m.pt", "--normalize_embedding")
    assert_same_images(run, module)


class WithHead(torch.nn.Module):
    """A SimCLR model: what is contrasted goes through a head, the embedding comes before it."""

    def __init__(self, encoder, head_is_output: bool = False):
        super().__init__()
        self.encoder = encoder
        self.projection_head = torch.nn.Sequential(
            torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16)
        )
        self.head_is_output = head_is_output

    def forward(self, x):
        embedding = self.encoder(x)[1].flatten(1)
        projected = self.projection_head(embedding)
        return projected if self.head_is_output else embedding


def test_side_model_with_projection_head(tmp_path, convert):
    module = WithHead(backbone(num_classes=None)).eval()
    save_script(module, tmp_path / "simclr.pt")
    run, text = convert(tmp_path / "simclr.pt")
    assert_same_images(run, module)
    assert load_model(run).classifier is None
    assert "left out: projection_head.0.weight" in text


def test_head_that_makes_the_embedding_is_refused(tmp_path, refused):
    save_script(WithHead(backbone(), head_is_output=True).eval(), tmp_path / "simclr.pt")
    message = refused(tmp_path / "simclr.pt")
    assert "differ" in message and "projection_head.2.bias" in message


def transformation(uncertainty=False, dims=(16, 12, 8)):
    made = torch_models.Transformation(*dims, inner_dim=24, uncertainty=uncertainty)
    return randomize(made, 5)


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
    assert model.old_fingerprint is None  # unknown: matches any model


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


@pytest.mark.parametrize(("with_side", "traced"), [(False, False), (True, True)])
def test_transformed_old_model(with_side, traced, tmp_path, convert):
    """Old model, side model and transformation in one archive make three runs."""
    old = torch_models.FeatureExtractor(backbone(last_nonlin=False))
    side = torch_models.FeatureExtractor(backbone(1, embedding_dim=8)) if with_side else old
    h = transformation(True, (16, 12, 8 if with_side else 16))
    module = torch_models.TransformedOldModel(old, side, h).eval()
    example = torch.zeros(2, 3, 32, 32) if traced else None
    save_script(module, tmp_path / "transformed.pt", example)
    run, _ = convert(tmp_path / "transformed.pt", "--embedding_dim", "12")
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
    """As yacs's: a dict with attributes that pickle keeps."""

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


def compatible(**kwargs):
    kwargs = {"num_classes": 7, "embedding_dim": 12, "width": 4, **kwargs}
    return randomize(torch_models.ProjectionResNet("resnet18", **kwargs))


def test_checkpoint_of_advbct(tmp_path, convert, yacs):
    """With all that its trainer keeps beside the weights, and what only training needs."""
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


@pytest.mark.parametrize(("ending", "classes"), [("pth", 6), ("safetensors", None)])
def test_torchvision_and_timm(ending, classes, tmp_path, convert):
    """A classifier with bias, or none; no counters, as some files have it."""
    form = {"classifier": "linear with bias", "embedding_dim": None}
    module = backbone(num_classes=classes, **form)
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
    assert (classifier is None) == (classes is None) == ("left out: fc.bias" not in text)
    if classes:
        np.testing.assert_array_equal(classifier, state["fc.weight"])


def test_preprocessing_options(tmp_path, capsys):
    torch.save(backbone().state_dict(), tmp_path / "m.pth")
    numbers = ["0.5", "0.4", "0.3"]
    options = ["--size", "24", "--resize", "28", "--mean", *numbers, "--std", *numbers]
    run_tool(import_torch, capsys, tmp_path / "m.pth", "--out", tmp_path / "run", *options)
    stored = json.loads((tmp_path / "run/model/model.json").read_text())["preprocessing"]
    assert stored["size"] == 24 and stored["resize"] == 28
    assert stored["mean"] == stored["std"] == [0.5, 0.4, 0.3]
    assert isinstance(load_model(tmp_path / "run"), Embedder)


def saved(tmp_path, state):
    torch.save(state, tmp_path / "m.pth")
    return tmp_path / "m.pth"


def test_all_wrong_names_are_listed(tmp_path, refused):
    state = backbone().state_dict()
    del state["layer2.0.bn1.weight"], state["conv1.weight"]
    state["attention.weight"] = state["fc.extra"] = torch.zeros(1)
    message = refused(saved(tmp_path, state))
    assert "missing conv1.weight, layer2.0.bn1.weight" in message
    assert "unknown attention.weight, fc.extra" in message
    state = transformation().state_dict()
    state["p3.0.conv.weight"] = torch.zeros(1)
    assert "unknown p3.0.conv.weight" in refused(saved(tmp_path, state))
    state = compatible().state_dict()
    del state["bn.running_mean"]
    assert "missing bn.running_mean" in refused(saved(tmp_path, state))


def test_all_wrong_shapes_are_listed(tmp_path, refused):
    state = backbone().state_dict()
    state["layer1.0.bn1.bias"] = torch.zeros(3)
    state["layer2.1.conv1.weight"] = torch.zeros(8, 8, 5, 5)
    message = refused(saved(tmp_path, state))
    assert "layer1.0.bn1.bias (3,), expected (4,)" in message
    assert "layer2.1.conv1.weight (8, 8, 5, 5), expected (8, 8, 3, 3)" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--arch", "resnet50"), "the weights are of resnet18, not --arch resnet50"),
        (("--arch", "resnt50"), "did you mean 'resnet50'"),
        (("--embedding_dim", "128"), "the weights have embedding_dim 16, not --embedding_dim 128"),
        (("--num_classes", "6"), "the weights have num_classes 5, not --num_classes 6"),
        (("--width", "64"), "the weights have width 4, not --width 64"),
        (("--resize", "8"), "smaller than the crop"),
        (("--sise", "8"), "unrecognized arguments"),
    ],
)
def test_other_than_expected(options, message, tmp_path, refused):
    assert message in refused(saved(tmp_path, backbone().state_dict()), *options)


def test_unknown_architectures(tmp_path, refused):
    message = refused(saved(tmp_path, {"patch_embed.weight": torch.zeros(2)}))
    assert "unknown architecture (names begin with patch_embed.weight" in message
    state = backbone().state_dict()  # as deep as a ResNet-34
    state["layer3.5.conv1.weight"] = torch.zeros(1)
    message = refused(saved(tmp_path, state))
    assert "a ResNet of basic blocks (2, 2, 6, 2); known: resnet18" in message
    two = {f"{k}.{n}": v for k in "ab" for n, v in backbone().state_dict().items()}
    assert "more than one network: names begin with a., b." in refused(saved(tmp_path, two))


def test_not_finite_weights_are_refused(tmp_path, refused):
    state = backbone().state_dict()
    state["bn1.bias"][0] = torch.nan
    assert "differ" in refused(saved(tmp_path, state))


class Hostile:
    def __reduce__(self):
        return pytest.fail, ("code of the file was run",)


def test_hostile_files_run_no_code(tmp_path, refused):
    state = dict(backbone().state_dict())
    for name in ("m.pth", "m.pt", "m.pth.tar"):
        torch.save({"model": state, "config": Hostile()}, tmp_path / name)
        assert "cannot read" in refused(tmp_path / name)
        (tmp_path / name).write_bytes(pickle.dumps({"a": Hostile()}, 2))
        assert "cannot read" in refused(tmp_path / name)


def test_hostile_archive_runs_no_code(tmp_path, refused):
    """Python's pickle in the place of TorchScript's."""
    save_script(torch_models.FeatureExtractor(backbone()), tmp_path / "good.pt")
    with (
        zipfile.ZipFile(tmp_path / "good.pt") as good,
        zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad,
    ):
        for name in good.namelist():
            hostile = name.endswith("/data.pkl")
            bad.writestr(name, pickle.dumps(Hostile(), 2) if hostile else good.read(name))
    assert "cannot read" in refused(tmp_path / "bad.pt")


def test_damaged_files(tmp_path, refused):
    save_script(torch_models.FeatureExtractor(backbone()), tmp_path / "whole.pt")
    torch.save(backbone().state_dict(), tmp_path / "whole.pth")
    tensors = {k: v.numpy() for k, v in backbone().state_dict().items()}
    safetensors.numpy.save_file(tensors, tmp_path / "whole.safetensors")
    for ending in ("pt", "pth", "safetensors"):
        content = (tmp_path / f"whole.{ending}").read_bytes()
        for kept in (len(content) // 2, 100, 0):
            (tmp_path / f"cut.{ending}").write_bytes(content[:kept])
            message = refused(tmp_path / f"cut.{ending}")
            assert "cannot read" in message and f"cut.{ending}" in message
    assert "no weights file" in refused(tmp_path / "nothing.pt")


def test_archive_that_does_something_else(tmp_path, refused):
    save_script(torch.nn.ReLU(), tmp_path / "m.pt")
    assert "holds no weights" in refused(tmp_path / "m.pt")
    save_script(backbone().layer1, tmp_path / "m.pt")
    assert "unknown architecture" in refused(tmp_path / "m.pt")
    doubled = torch.nn.Sequential(torch_models.FeatureExtractor(backbone()), Double())
    save_script(doubled, tmp_path / "m.pt")
    assert "differ from those of the PyTorch model by 5.0e-01" in refused(tmp_path / "m.pt")


class Double(torch.nn.Module):
    def forward(self, x):
        return 2 * x


def test_options_of_other_models(tmp_path, refused):
    file = saved(tmp_path, compatible().state_dict())
    for option in (("--last_nonlin", "false"), ("--normalize_embedding",)):
        message = refused(file, *option)
        assert f"{option[0]} is for FCT's backbones; the weights are of resnet18_proj" in message


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="exists already"):
        import_torch.run([str(tmp_path / "m.pth"), "--out", str(tmp_path / "run")])
    file = saved(tmp_path, backbone().state_dict())
    with pytest.raises(UserError, match="cannot write"):
        import_torch.run([str(file), "--out", str(file / "run"), *SIZE])


def test_without_torch(tmp_path, convert, refused, monkeypatch):
    """Archives and pickled files say what they need; .safetensors are imported unchecked."""
    module = backbone()
    save_script(torch_models.FeatureExtractor(module), tmp_path / "m.pt")
    file = saved(tmp_path, module.state_dict())
    tensors = {k: v.numpy() for k, v in module.state_dict().items()}
    safetensors.numpy.save_file(tensors, tmp_path / "m.safetensors")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        for path in (tmp_path / "m.pt", file):
            assert "needs PyTorch (pip install torch)" in refused(path)
        run, text = convert(tmp_path / "m.safetensors")
    assert "not compared with PyTorch" in text
    assert_same_images(run, module)


def test_command_line(tmp_path):
    """As a file, from any directory: one line for a mistake."""
    command = [sys.executable, torch_tools.TOOLS / "import_torch.py"]
    arguments = ["nothing.pt", "--out", "run"]
    done = subprocess.run(
        [*command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stderr == "error: no weights file nothing.pt\n"


def test_help(capsys):
    with pytest.raises(SystemExit) as done:
        import_torch.run(["--help"])
    text = capsys.readouterr().out
    assert done.value.code == 0 and "--embedding_dim" in text and "TorchScript" in text
