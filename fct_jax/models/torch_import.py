"""Convert the weights of the PyTorch originals to Flax variables and back.

A ``state_dict`` is a mapping from name to array. Its values may be NumPy arrays or PyTorch tensors,
and PyTorch itself is not needed. The names are those of the published code: FCT's for `resnet` and
`transformation`, AdvBCT's for `compatible`, `discriminator` and `lce_transformation`, and those
that torchvision and timm share for `torchvision_resnet`.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.traverse_util as traverse
import numpy as np

from fct_jax.errors import UserError
from fct_jax.models import torch_names
from fct_jax.models.torch_files import read_state_dict as read_state_dict
from fct_jax.models.torch_names import Entry

Arrays = Mapping[str, Any]
Variables = dict[str, Any]

_NDIM = {"conv": (4,), "linear": (2,), "pointwise": (2, 4), "vector": (1,), "counter": (0,)}


def resnet(state_dict: Arrays) -> Variables:
    """Return the variables of a backbone ("resnet18", …, "wide_resnet101_2") from PyTorch weights.

    Raises:
        UserError: names are missing or unknown (the message lists all of them), or an array has
            the wrong rank.
    """
    state = _strip(state_dict)
    return _to_flax(state, torch_names.resnet(_torch_layout(state)), "ResNet")


def transformation(state_dict: Arrays) -> Variables:
    """Return the variables of "fct", or of "fastfill" if the weights have an uncertainty head.

    Raises:
        UserError: as in `resnet`, or the head has more than one output. The published code can
            make such a head, but its loss then confuses samples with dimensions.
    """
    state = _strip(state_dict)
    uncertainty = any(name.startswith("uncertainty_head.") for name in state)
    variables = _to_flax(state, torch_names.transformation(uncertainty), "transformation")
    if uncertainty:
        outputs = variables["params"]["uncertainty_head"]["bias"].size
        if outputs != 1:
            raise UserError(
                f"transformation weights: uncertainty_head has {outputs} outputs; "
                "only one uncertainty a sample (1 output) is supported"
            )
    return variables


def torchvision_resnet(state_dict: Arrays) -> Variables:
    """Return the trunk of "resnet18_projection", … from torchvision's or timm's weights.

    The ImageNet classifier ``fc`` is dropped; projection and classifier are not among the
    variables and keep their own initial values.

    Raises:
        UserError: as in `resnet`.
    """
    state = {k: v for k, v in _strip(state_dict).items() if not k.startswith("fc.")}
    return _to_flax(state, list(torch_names.trunk(_torch_layout(state))), "torchvision ResNet")


def compatible(state_dict: Arrays) -> Variables:
    """Return the variables of "resnet18_projection", … from an AdvBCT checkpoint.

    The discriminator and the elastic boundary, which only training needs, are dropped.

    Raises:
        UserError: as in `resnet`.
    """
    training_only = ("discriminator.", "eboundary.")
    state = {k: v for k, v in _strip(state_dict).items() if not k.startswith(training_only)}
    table = torch_names.compatible(_torch_layout(state, "convnet."))
    return _to_flax(state, table, "AdvBCT model")


def discriminator(state_dict: Arrays) -> Variables:
    """Return the variables of `Discriminator`; names may lack the leading "discriminator."."""
    state = {k.removeprefix("discriminator."): v for k, v in _strip(state_dict).items()}
    return _to_flax(state, torch_names.discriminator(), "discriminator")


def lce_transformation(state_dict: Arrays) -> Variables:
    """Return the variables of `LCETransformation`, with one block for each "rbt.<block>"."""
    state = _strip(state_dict)
    found = [m for m in (re.match(r"rbt\.(\d+)\.", name) for name in state) if m]
    blocks = 1 + max((int(m[1]) for m in found), default=-1)
    return _to_flax(state, torch_names.lce_transformation(blocks), "LCE transformation")


def resnet_to_torch(variables: Variables) -> dict[str, np.ndarray]:
    """Invert `resnet`: float32 arrays, ready for ``load_state_dict`` once they are tensors."""
    return _to_torch(variables, torch_names.resnet(_flax_layout(variables)), "ResNet")


def transformation_to_torch(variables: Variables) -> dict[str, np.ndarray]:
    """Invert `transformation`."""
    uncertainty = "uncertainty_head" in variables["params"]
    return _to_torch(variables, torch_names.transformation(uncertainty), "transformation")


def compatible_to_torch(variables: Variables) -> dict[str, np.ndarray]:
    """Invert `compatible`."""
    table = torch_names.compatible(_flax_layout(variables))
    return _to_torch(variables, table, "compatible model")


def lce_transformation_to_torch(variables: Variables) -> dict[str, np.ndarray]:
    """Invert `lce_transformation`."""
    found = (re.match(r"block(\d+)_", name) for name in variables["params"])
    blocks = 1 + max((int(m[1]) for m in found if m), default=-1)
    return _to_torch(variables, torch_names.lce_transformation(blocks), "LCE transformation")


def _strip(state_dict: Arrays) -> dict[str, Any]:
    """Remove the "module." that DataParallel puts before every name."""
    if state_dict and all(name.startswith("module.") for name in state_dict):
        return {name.removeprefix("module."): value for name, value in state_dict.items()}
    return dict(state_dict)


def _torch_layout(state: Arrays, prefix: str = "") -> torch_names.ResNetLayout:
    pattern = re.compile(re.escape(prefix) + r"layer([1-4])\.(\d+)\.(.+)")
    found = [m for m in map(pattern.fullmatch, state) if m]
    blocks = [(int(m[1]), int(m[2]), m[3]) for m in found]
    for m in found:  # a block that changes the width has a projection, even if it is missing here
        first = m[0].removesuffix(m[3]) + "conv1.weight"
        if m[3] in ("conv2.weight", "conv3.weight") and first in state:
            last = m[0].removesuffix(m[3]) + "conv3.weight"
            last = last if last in state else m[0]
            if np.shape(state[last])[:1] != np.shape(state[first])[1:2]:
                blocks.append((int(m[1]), int(m[2]), "downsample"))
    return torch_names.resnet_layout(blocks)


def _flax_layout(variables: Variables) -> torch_names.ResNetLayout:
    found = (re.fullmatch(r"layer([1-4])_(\d+)", name) for name in variables["params"])
    return torch_names.resnet_layout(
        (int(m[1]), int(m[2]), part) for m in found if m for part in variables["params"][m[0]]
    )


def _to_flax(state: Arrays, table: list[Entry], what: str) -> Variables:
    required = [entry.torch for entry in table if entry.form != "counter"]
    _same_names(what, state, required, {entry.torch for entry in table})
    flat = {}
    for entry in table:
        if entry.form == "counter":
            continue
        array = to_numpy(state[entry.torch])
        if array.ndim not in _NDIM[entry.form]:
            raise UserError(
                f"{what} weights: {entry.torch} has shape {array.shape}, "
                f"expected {_NDIM[entry.form][0]} axes"
            )
        if entry.form == "conv":
            array = array.transpose(2, 3, 1, 0)
        elif entry.form in ("linear", "pointwise"):
            if array.shape[2:] not in ((), (1, 1)):
                raise UserError(
                    f"{what} weights: {entry.torch} has shape {array.shape}, expected a 1x1 kernel"
                )
            array = array.reshape(array.shape[:2]).T
        flat[entry.path] = np.ascontiguousarray(array)
    return traverse.unflatten_dict(flat)


def _to_torch(variables: Variables, table: list[Entry], what: str) -> dict[str, np.ndarray]:
    flat = {
        path: np.asarray(value, np.float32)
        for path, value in traverse.flatten_dict(dict(variables)).items()
        if path[0] in ("params", "batch_stats")
    }
    wanted = ["/".join(entry.path) for entry in table if entry.path]
    _same_names(what, {"/".join(path) for path in flat}, wanted, set(wanted))
    state = {}
    for entry in table:
        if entry.form == "counter":
            state[entry.torch] = np.zeros((), np.int64)
            continue
        array = flat[entry.path]
        if entry.form == "conv":
            array = array.transpose(3, 2, 0, 1)
        elif entry.form == "linear":
            array = array.T
        elif entry.form == "pointwise":
            array = array.T[:, :, None, None]
        state[entry.torch] = np.array(array, order="C")
    return state


def _same_names(what: str, given, required: list[str], known: set[str]) -> None:
    missing = [name for name in required if name not in given]
    unexpected = sorted(name for name in given if name not in known)
    if missing or unexpected:
        parts = []
        if missing:
            parts.append(f"missing {', '.join(missing)}")
        if unexpected:
            parts.append(f"unknown {', '.join(unexpected)}")
        raise UserError(f"{what} weights do not fit: {'; '.join(parts)}")


def to_numpy(value: Any) -> np.ndarray:
    """Return a NumPy or JAX array, or a PyTorch tensor on any device, as a float32 NumPy array."""
    if hasattr(value, "detach"):  # a tensor; unlike float32, bfloat16 has no NumPy form
        value = value.detach().cpu().float().numpy()
    return np.asarray(value, np.float32)
