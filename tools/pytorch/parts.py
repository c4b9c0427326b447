"""Recognises the networks of PyTorch weights from names and shapes alone."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fct_jax import models
from fct_jax.errors import UserError
from fct_jax.models import torch_import

ARCHITECTURES = (
    *models.RESNETS,
    *(f"{name}_projection" for name in models.RESNETS),
    "fct",
    "fastfill",
    "lce",
)

_BLOCK = re.compile(r"(|.*?\.)layer([1-4])\.(\d+)\.")
_LCE = re.compile(r"(|.*?\.)rbt\.\d+\.\d+\.")
_TRANSFORMATION = re.compile(r"(|.*?\.)(?:p1|p2|mixer)\.\d+\.conv\.")
_IN_TRUNK = re.compile(r"(conv1|bn1|layer[1-4]\.\d+\.((conv|bn)\d|downsample\.[01]))\.\w+")
_CLASSIFIER = ("fc.weight", "fc.bias")
# In files with several networks, such as FCT's and AdvBCT's, names have these prefixes.
_JOINED = (
    {"old": "old_model.", "side": "side_info_model.", "transformation": "transformation."},
    {"old": "base.", "transformation": "T."},
)


class Part(NamedTuple):
    """One network.

    Attributes:
      description: ``kind``, ``name``, ``kwargs`` and ``dim`` as in ``model.json``, and for a
        transformation also ``old_dim`` and ``side_dim``.
      variables: {"params": …, "batch_stats": …}.
      state: the network's PyTorch weights, under the names of ``models.py``.
      classifier: the form of a ResNet's classifier; see ``models.CLASSIFIERS``.
      left_out: names that are not part of the network.
    """

    description: dict
    variables: dict
    state: dict[str, Any]
    classifier: str = "conv"
    left_out: tuple[str, ...] = ()


def read_parts(state: Mapping[str, Any], extra: bool) -> dict[str, Part]:
    """Return networks by role: "model" alone, or "transformation", "old" and perhaps "side".

    Args:
      state: name -> array. A wrapper's prefix ("module.", "model.", …) does not matter.
      extra: whether names besides a backbone's are left out instead of being an error (such as the
        projection head of an archive, whose output can be compared).

    Raises:
      UserError: if the network is unknown, names are missing or unknown, or arrays have a wrong
        shape; the message lists all of these.
    """
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    for beginnings in _JOINED:
        whole = {role: _below(state, beginning) for role, beginning in beginnings.items()}
        if whole["old"] and whole["transformation"]:
            break
    else:
        return {"model": _read_part(state, extra)}
    others = sorted(name for name in state if not name.startswith(tuple(beginnings.values())))
    if others:
        raise UserError(f"transformed old model: unknown {', '.join(others)}")
    if not whole.get("side") or _equal(whole["old"], whole["side"]):
        whole.pop("side", None)  # without side information the original puts the old model here
    return {role: _read_part(part, extra) for role, part in whole.items()}


def to_torch(description: dict, variables) -> dict[str, np.ndarray]:
    """Return a run's weights under the published names. Raises UserError for unpublished models."""
    if description["name"] not in ARCHITECTURES:
        raise UserError(
            f"a model {description['name']!r} has no form in PyTorch; "
            f"known: {', '.join(ARCHITECTURES)}"
        )
    if description["name"] == "lce":
        return torch_import.lce_transformation_to_torch(variables)
    if description["kind"] == "transformation":
        return torch_import.transformation_to_torch(variables)
    if description["name"].endswith("_projection"):
        return torch_import.compatible_to_torch(variables)
    if "classifier" in variables["params"]:
        return torch_import.resnet_to_torch(variables)
    empty = {"classifier": {"kernel": np.zeros((description["dim"], 0), np.float32)}}
    state = torch_import.resnet_to_torch({**variables, "params": {**variables["params"], **empty}})
    return {name: value for name, value in state.items() if name != "fc.weight"}


def _read_part(state: Mapping[str, Any], extra: bool) -> Part:
    kinds = ((_TRANSFORMATION, _transformation), (_LCE, _lce), (_BLOCK, _backbone))
    for pattern, read in kinds:
        prefixes = sorted({found[1] for found in map(pattern.match, state) if found})
        if len(prefixes) > 1:
            raise UserError(f"more than one network: names begin with {', '.join(prefixes)}")
        if prefixes:
            part = read(state, prefixes[0], extra)
            _check_shapes(part)
            return part
    begin = ", ".join(sorted(state)[:3])
    raise UserError(
        f"unknown architecture (names begin with {begin}, …); known: {', '.join(ARCHITECTURES)}"
    )


def _transformation(state: Mapping[str, Any], prefix: str, extra: bool) -> Part:
    del extra  # nothing is left out, or the uncertainty would be lost
    state = _unwrapped(state, prefix)
    variables = torch_import.transformation(state)
    new_dim = np.shape(state["mixer.2.conv.weight"])[0]
    description = {
        "kind": "transformation",
        "name": "fastfill" if "uncertainty_head.weight" in state else "fct",
        "kwargs": {
            "embedding_dim": new_dim,
            "inner_dim": np.shape(state["mixer.0.conv.weight"])[0],
        },
        "dim": new_dim,
        "old_dim": np.shape(state["p1.0.conv.weight"])[1],
        "side_dim": np.shape(state["p2.0.conv.weight"])[1],
    }
    return Part(description, variables, state)


def _lce(state: Mapping[str, Any], prefix: str, extra: bool) -> Part:
    del extra
    state = _unwrapped(state, prefix)
    variables = torch_import.lce_transformation(state)
    inner, dim = np.shape(state["rbt.0.0.weight"])
    blocks = 1 + max(int(name.split(".")[1]) for name in state)
    description = {
        "kind": "transformation",
        "name": "lce",
        "kwargs": {"blocks": blocks, "inner": inner},
        **dict.fromkeys(("dim", "old_dim", "side_dim"), dim),
    }
    return Part(description, variables, state)


def _backbone(state: Mapping[str, Any], prefix: str, extra: bool) -> Part:
    if prefix.endswith("convnet."):
        return _compatible(_unwrapped(state, prefix.removesuffix("convnet.")))
    state = _unwrapped(state, prefix)
    left_out = ()
    if extra:
        left_out = tuple(n for n in state if not (_IN_TRUNK.fullmatch(n) or n in _CLASSIFIER))
        state = {name: value for name, value in state.items() if name not in left_out}
    _check_depths(state)
    classifier, bias = "none", {}
    if any(name.startswith("fc.") for name in state):
        # Our classifiers have no bias; embeddings do not depend on it.
        bias = {"fc.bias": state.pop("fc.bias")} if "fc.bias" in state else {}
        variables = torch_import.resnet(state)
        classifier = "linear with bias" if bias else "linear"
        if not bias and np.ndim(state["fc.weight"]) == 4:
            classifier = "conv"
    else:
        variables = torch_import.torchvision_resnet(state)
    name, options, dim = _resnet_details(state)
    head = {"num_classes": 1, "has_classifier": False}
    if classifier != "none":
        head = {"num_classes": np.shape(state["fc.weight"])[0]}
    description = {
        "kind": "backbone",
        "name": name,
        "kwargs": {**head, "embedding_dim": dim, **options},
        "dim": dim,
    }
    return Part(description, variables, {**state, **bias}, classifier, (*left_out, *bias))


def _compatible(state: dict[str, Any]) -> Part:
    _check_depths(_below(state, "convnet."))
    variables = torch_import.compatible(state)
    name, options, _ = _resnet_details(_below(state, "convnet."))
    num_classes, dim = np.shape(state["projection_cls.weight"])
    description = {
        "kind": "backbone",
        "name": f"{name}_projection",
        "kwargs": {"num_classes": num_classes, "embedding_dim": dim, **options},
        "dim": dim,
    }
    left_out = tuple(n for n in state if n.startswith(("discriminator.", "eboundary.")))
    state = {name: value for name, value in state.items() if name not in left_out}
    return Part(description, variables, state, left_out=left_out)


def _depths(state: Mapping[str, Any]) -> tuple[int, ...]:
    found = [m for m in map(_BLOCK.match, state) if m]
    return tuple(1 + max((int(m[3]) for m in found if m[2] == s), default=-1) for s in "1234")


def _block(state: Mapping[str, Any]) -> int:
    """Return the number of convolutions in a block."""
    return 3 if any(".conv3." in name for name in state) else 2


def _check_depths(state: Mapping[str, Any]) -> None:
    """Raise UserError for a trunk deeper than any known one, whose names would fill the message."""
    depths, expansion = _depths(state), 4 if _block(state) == 3 else 1
    known = {f["depths"] for f in models.RESNETS.values() if f["expansion"] == expansion}
    if not any(all(n <= m for n, m in zip(depths, k, strict=True)) for k in known):
        raise _unknown_resnet(state)


def _resnet_details(state: Mapping[str, Any]) -> tuple[str, dict, int]:
    """Return name, options and feature size of a trunk whose names are known to be complete."""
    width, kernel = np.shape(state["conv1.weight"])[0], np.shape(state["conv1.weight"])[-1]
    convolutions, depths = _block(state), _depths(state)
    inner = np.shape(state["layer1.0.conv2.weight"])[0]
    base_width = 64 * inner / width if convolutions == 3 else 64
    for name, fixed in models.RESNETS.items():
        same = fixed["depths"] == depths and fixed["expansion"] == (4 if convolutions == 3 else 1)
        if same and fixed.get("base_width", 64) == base_width:
            dim = np.shape(state[f"layer4.{depths[3] - 1}.conv{convolutions}.weight"])[0]
            return name, {"small_stem": kernel == 3, "width": width}, dim
    raise _unknown_resnet(state)


def _unknown_resnet(state: Mapping[str, Any]) -> UserError:
    block = "bottleneck" if _block(state) == 3 else "basic"
    depths = ", ".join(map(str, _depths(state)))
    return UserError(
        f"unknown architecture: a ResNet of {block} blocks ({depths}); "
        f"known: {', '.join(models.RESNETS)}"
    )


def _check_shapes(part: Part) -> None:
    wrong = []
    for name, expected in expected_shapes(part.description).items():
        shape = np.shape(part.state.get(name, np.zeros(expected)))
        if _without_kernel(shape) != _without_kernel(expected):
            wrong.append(f"{name} {tuple(shape)}, expected {expected}")
    if wrong:
        raise UserError(f"{part.description['name']}: arrays of a wrong shape: {'; '.join(wrong)}")


def expected_shapes(description: dict) -> dict[str, tuple[int, ...]]:
    """Return PyTorch name -> shape of every weight of a network."""
    module = models.build(description["name"], **description["kwargs"])
    inputs = (jnp.zeros((1, 32, 32, 3)),)
    if description["kind"] == "transformation":
        inputs = tuple(jnp.zeros((1, description[key])) for key in ("old_dim", "side_dim"))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    return {name: array.shape for name, array in to_torch(description, zeros).items()}


def _without_kernel(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a 1×1 convolution as a matrix, its other form."""
    return tuple(shape[:2]) if tuple(shape[2:]) == (1, 1) else tuple(shape)


def _unwrapped(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items()}


def _below(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {n.removeprefix(prefix): value for n, value in state.items() if n.startswith(prefix)}


def _equal(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    return left.keys() == right.keys() and all(
        np.array_equal(torch_import.to_numpy(left[n]), torch_import.to_numpy(right[n]))
        for n in left
    )
