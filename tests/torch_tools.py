"""What the tests of tools/import_torch.py and tools/export_torch.py share."""

import sys
import warnings
from pathlib import Path

import numpy as np

TOOLS = Path(__file__).parent.parent / "tools"
sys.path.append(str(TOOLS.parent))

SIZE = ("--size", "32")


def torch_models():
    """The module; imported late, because it needs PyTorch."""
    from tools import torch_models

    return torch_models


def randomize(module, seed: int = 0):
    """In inference mode, with values (and so running statistics) that no initialisation gives."""
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


def backbone(seed: int = 0, arch: str = "resnet18", num_classes: int | None = 5, **kwargs):
    """A small ResNet of the published code."""
    kwargs = {"embedding_dim": 16, "width": 4, **kwargs}
    return randomize(torch_models().ResNet(arch, num_classes, **kwargs), seed)


def save_script(module, path, example=None):
    """A TorchScript archive; traced where there are example inputs."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        made = torch.jit.script(module) if example is None else torch.jit.trace(module, example)
        torch.jit.save(made, str(path))


def run_tool(tool, capsys, *arguments) -> str:
    """Standard output of a tool that succeeds."""
    tool.run([str(argument) for argument in arguments])
    return capsys.readouterr().out
