"""Shared parts of the tests of tools/import_torch.py and tools/export_torch.py.

Without PyTorch, test files that import this one are skipped.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from fct_jax.frozen.model import load_model

torch = pytest.importorskip("torch", reason="PyTorch is optional")

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.append(str(TOOLS.parent))

from tools.pytorch import models as torch_models  # noqa: E402

MEAN, STD = np.float32((0.485, 0.456, 0.406)), np.float32((0.229, 0.224, 0.225))

SIZE = ("--size", "32")


def randomize(module, seed: int = 0):
    """Return the module in inference mode, with weights and statistics unlike any initial ones."""
    rng = np.random.default_rng(seed)
    state = module.state_dict()
    for name, value in state.items():
        if value.ndim > 1:
            fan_in = value[0].numel()
            drawn = rng.normal(size=value.shape) * np.sqrt(2 / fan_in)
        elif name.endswith(("weight", "running_var")):
            drawn = rng.uniform(0.7, 1.3, value.shape)
        else:
            drawn = 0.1 * rng.normal(size=value.shape)
        if value.is_floating_point():
            value.copy_(value.new_tensor(drawn))
    return module.eval()


def backbone(seed: int = 0, arch: str = "resnet18", num_classes: int = 5, **kwargs):
    """Return a small ResNet of the published code."""
    kwargs = {"embedding_dim": 16, "width": 4, **kwargs}
    return randomize(torch_models.ResNet(arch, num_classes, **kwargs), seed)


def transformation(uncertainty=False, dims=(16, 12, 8)):
    made = torch_models.Transformation(*dims, inner_dim=24, uncertainty=uncertainty)
    return randomize(made, 5)


def compatible():
    return randomize(torch_models.ProjectionResNet("resnet18", 7, 12, width=4))


class WithHead(torch.nn.Module):
    """A SimCLR model: the loss sees the output of a head, the embedding is the head's input."""

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


def saved(tmp_path, state):
    torch.save(state, tmp_path / "m.pth")
    return tmp_path / "m.pth"


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


def save_script(module, path, example=None):
    """Save a TorchScript archive, traced if there are example inputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        made = torch.jit.script(module) if example is None else torch.jit.trace(module, example)
        torch.jit.save(made, str(path))


def run_tool(tool, capsys, *arguments) -> str:
    """Return the standard output of a tool, which must succeed."""
    tool.run([str(argument) for argument in arguments])
    return capsys.readouterr().out
