"""tools/import_torch.py: files that are damaged, hostile, unknown or unexpected."""

import pickle
import subprocess
import sys
import zipfile

import pytest
import safetensors.numpy
from patience import LONG
from torch_tools import (
    SIZE,
    TOOLS,
    WithHead,
    assert_same_images,
    backbone,
    compatible,
    run_tool,
    save_script,
    saved,
    torch,
    transformation,
)

from fct_jax.errors import UserError
from tools import import_torch
from tools.pytorch import models as torch_models


@pytest.fixture
def refused(tmp_path):
    """Return a function that gives the error of an import and checks that no run is left."""

    def run(file, *options) -> str:
        with pytest.raises(UserError) as error:
            import_torch.run([str(file), "--out", str(tmp_path / "run"), *SIZE, *options])
        assert [path.name for path in tmp_path.iterdir() if "run" in path.name] == []
        assert "\n" not in str(error.value)
        return str(error.value)

    return run


@pytest.mark.slow
def test_wrong_last_nonlin_is_refused(tmp_path, refused):
    save_script(torch_models.FeatureExtractor(backbone(last_nonlin=False)), tmp_path / "m.pt")
    message = refused(tmp_path / "m.pt", "--last_nonlin", "true")
    assert "differ from those of the PyTorch model by" in message and "nothing was" in message


@pytest.mark.slow
def test_head_that_makes_the_embedding_is_refused(tmp_path, refused):
    save_script(WithHead(backbone(), head_is_output=True).eval(), tmp_path / "simclr.pt")
    message = refused(tmp_path / "simclr.pt")
    assert "differ" in message and "projection_head.2.bias" in message


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
    """The archive holds a Python pickle in place of TorchScript's."""
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


class Double(torch.nn.Module):
    def forward(self, x):
        return 2 * x


@pytest.mark.slow
def test_archive_that_does_something_else(tmp_path, refused):
    save_script(torch.nn.ReLU(), tmp_path / "m.pt")
    assert "holds no weights" in refused(tmp_path / "m.pt")
    save_script(backbone().layer1, tmp_path / "m.pt")
    assert "unknown architecture" in refused(tmp_path / "m.pt")
    doubled = torch.nn.Sequential(torch_models.FeatureExtractor(backbone()), Double())
    save_script(doubled, tmp_path / "m.pt")
    assert "differ from those of the PyTorch model by 5.0e-01" in refused(tmp_path / "m.pt")


def test_options_of_other_models(tmp_path, refused):
    file = saved(tmp_path, compatible().state_dict())
    for option in (("--last_nonlin", "false"), ("--normalize_embedding",)):
        message = refused(file, *option)
        assert f"{option[0]} is for FCT's backbones; the weights are of resnet18_proj" in message


def test_lce_transformations_that_do_not_fit(tmp_path, refused):
    state = torch_models.LCETransformation(12, 2).state_dict()
    state["rbt.0.3.bias"] = torch.zeros(5)
    assert "rbt.0.3.bias (5,), expected (16,)" in refused(saved(tmp_path, state))
    del state["rbt.0.3.bias"], state["rbt.1.0.weight"]
    assert "missing rbt.0.3.bias, rbt.1.0.weight" in refused(saved(tmp_path, state))
    del state["rbt.0.0.weight"]
    assert "missing rbt.0.0.weight" in refused(saved(tmp_path, state))
    file = saved(tmp_path, torch_models.LCETransformation(12, 2).state_dict())
    assert "takes old embeddings alone" in refused(file, "--side", "nothing")


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="exists already"):
        import_torch.run([str(tmp_path / "m.pth"), "--out", str(tmp_path / "run")])
    file = saved(tmp_path, backbone().state_dict())
    with pytest.raises(UserError, match="cannot write"):
        import_torch.run([str(file), "--out", str(file / "run"), *SIZE])


def test_without_torch(tmp_path, capsys, refused, monkeypatch):
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
        arguments = (tmp_path / "m.safetensors", "--out", tmp_path / "out", *SIZE)
        text = run_tool(import_torch, capsys, *arguments)
    assert "not compared with PyTorch" in text
    assert_same_images(tmp_path / "out", module)


def test_command_line(tmp_path):
    """Run as a file, from any directory, the tool prints one line for a mistake."""
    command = [sys.executable, TOOLS / "import_torch.py"]
    arguments = ["nothing.pt", "--out", "run"]
    done = subprocess.run(
        [*command, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=LONG,
    )
    assert done.returncode == 1 and done.stderr == "error: no weights file nothing.pt\n"
