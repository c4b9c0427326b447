"""Our own code in float64: its rounding is too small to matter, whatever the machine."""

import contextlib
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

ROUNDING = 2.0**-24  # of one float32 operation, relative


@contextlib.contextmanager
def double_precision():
    """The package's float32 is float64 here, whatever dtype its models were built with.

    Compile functions within the context: what was traced outside has float32 in it.
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
    """The same values with float64 leaves; integers stay."""
    return jax.tree.map(lambda x: np.asarray(x).astype(np.float64) if _floats(x) else x, tree)


def _floats(x) -> bool:
    return np.asarray(x).dtype.kind == "f"
