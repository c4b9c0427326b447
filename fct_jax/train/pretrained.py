"""Starts training from the weights of a torchvision or timm file."""

import functools

import jax
from flax import traverse_util

from fct_jax.errors import UserError
from fct_jax.models import torch_import


@functools.lru_cache(1)
def _trunk(path: str) -> dict:
    return torch_import.torchvision_resnet(torch_import.read_state_dict(path))


def check_readable(path: str) -> None:
    """Raise UserError unless the file holds a residual network; an empty path is allowed."""
    if path:
        _trunk(path)


def with_pretrained(variables, path: str):
    """Return variables with the trunk of a ``.pth`` or ``.safetensors`` file.

    The embedding's projection and the classifier stay as they were; with an empty ``path`` all
    variables do. Raises UserError for a file that cannot be read or that holds another
    architecture.
    """
    if not path:
        return variables
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    given = traverse_util.flatten_dict(_trunk(path), sep="/")
    for name, value in given.items():
        if name not in flat or flat[name].shape != value.shape:
            there = f"shape {flat[name].shape}" if name in flat else "no such weight"
            raise UserError(
                f"config.pretrained={path} does not fit config.model: {name} has shape "
                f"{value.shape} there, but the model has {there}"
            )
        flat[name] = jax.device_put(value, flat[name].sharding)
    return traverse_util.unflatten_dict(flat, sep="/")
