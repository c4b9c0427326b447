"""Models by name."""

import dataclasses
import typing
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from fct_jax.errors import UserError, unknown
from fct_jax.models.basis import BasisChange
from fct_jax.models.lce_transformation import GalleryTransformation
from fct_jax.models.projection import ProjectionResNet
from fct_jax.models.resnet import BasicBlock, Bottleneck, ResNet
from fct_jax.models.transformation import Transformation
from fct_jax.runtime import plugins

# architecture -> attributes that it fixes
RESNETS: dict[str, dict] = {
    "resnet18": {"block": BasicBlock, "depths": (2, 2, 2, 2), "expansion": 1},
    "resnet50": {"block": Bottleneck, "depths": (3, 4, 6, 3), "expansion": 4},
    "resnet101": {"block": Bottleneck, "depths": (3, 4, 23, 3), "expansion": 4},
}
for _name in ("resnet50", "resnet101"):
    RESNETS[f"wide_{_name}_2"] = {**RESNETS[_name], "base_width": 128}

# name -> module and the attributes that the name fixes
MODELS: dict[str, tuple[Callable[..., nn.Module], dict]] = {
    **{name: (ResNet, fixed) for name, fixed in RESNETS.items()},
    **{f"{name}_projection": (ProjectionResNet, fixed) for name, fixed in RESNETS.items()},
    "fct": (Transformation, {"uncertainty": False}),
    "fastfill": (Transformation, {"uncertainty": True}),
    "lce": (GalleryTransformation, {}),
    "bt2": (BasisChange, {}),
}

_SIZES = (
    *("num_classes", "embedding_dim", "inner_dim", "width", "blocks", "inner", "last_stride"),
    *("old_dim", "extra"),
)


def build(name: str, **kwargs) -> nn.Module:
    """Return the model ``name`` with the given attributes.

    ``name`` is a key of `MODELS`, an entry point of the group "fct_jax.models", or ``module:name``
    of a Flax module or of a row like those of `MODELS` (docs/plugins.md).

    Backbones take ``num_classes``, ``embedding_dim=128``, ``last_nonlin=True``,
    ``normalize_embedding=False``, ``small_stem=False``, ``last_stride=2``, ``width=64``, ``dtype``,
    ``remat=False``; those with "_projection" have ``embedding_dim=256`` and neither ``last_nonlin``
    nor ``normalize_embedding``. Transformations take ``embedding_dim``, ``inner_dim=2048``,
    ``dtype``, ``remat``.

    Raises:
        UserError: the name or an attribute is unknown (the message gives the nearest known one),
            an attribute is missing, a size is not a positive integer, or the dtype is not valid.
    """
    module, fixed = _find(name)
    options = _options(module, fixed)
    for key, value in kwargs.items():
        if key not in options:
            raise unknown(f"option of model {name!r}:", key, options)
        _check(name, options[key], value)
    missing = [
        key
        for key, field in options.items()
        if field.default is dataclasses.MISSING and key not in kwargs
    ]
    if missing:
        raise UserError(f"model {name!r} needs {', '.join(missing)}")
    return module(**fixed, **kwargs)


def options_of(name: str) -> set[str]:
    """Return the names of a model's attributes. Raises UserError if the model is unknown."""
    return set(_options(*_find(name)))


def _find(name: str) -> tuple[type[nn.Module], dict]:
    found = plugins.find(MODELS, name, "model", "models")
    module, fixed = found if isinstance(found, tuple) else (found, {})
    if not (isinstance(module, type) and issubclass(module, nn.Module)):
        raise UserError(
            f"model {name!r} must be a class of flax.linen modules, or (class, attributes), "
            f"not {found!r}"
        )
    return module, fixed


def _options(module: type[nn.Module], fixed: dict) -> dict[str, dataclasses.Field]:
    return {
        field.name: field
        for field in dataclasses.fields(module)
        if field.name not in ("parent", "name", *fixed)
    }


def _check(name: str, field: dataclasses.Field, value) -> None:
    if field.name in _SIZES:
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool) and value > 0
        optional = value is None and type(None) in typing.get_args(field.type)
        if not (whole or optional):
            raise UserError(
                f"{field.name} of model {name!r} must be a positive integer, not {value!r}"
            )
    if field.name == "dtype":
        try:
            floating = jnp.issubdtype(jnp.dtype(value), jnp.floating)
        except TypeError:
            floating = False
        if not floating:
            raise UserError(
                f"dtype of model {name!r} must be 'float32', 'bfloat16' or 'float16', not {value!r}"
            )
