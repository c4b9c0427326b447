"""Runs our own code in float64, whose rounding is too small to matter on any machine."""

import contextlib
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

ROUNDING = 2.0**-24  # relative rounding of one float32 operation


@contextlib.contextmanager
def double_precision():
    """Context in which the package's float32 is float64, whichever dtype models were built with.

    Compile functions within the context: functions traced outside it contain float32.
    """
    with (
        jax.enable_x64(True),
        mock.patch.object(jnp, "float32", jnp.float64),
        nn.intercept_methods(_widen_module),
    ):
        yield


def _widen_module(method, args, kwargs, context):
    if getattr(context.module, "dtype", None) == np.float32:
        object.__setattr__(context.module, "dtype", np.float64)
    return method(*args, **kwargs)


def widened(tree):
    """Return the tree with float64 leaves; integers stay."""
    return jax.tree.map(lambda x: np.asarray(x).astype(np.float64) if _floats(x) else x, tree)


def _floats(x) -> bool:
    return np.asarray(x).dtype.kind == "f"
