"""A small training state, different for each step."""

import jax.numpy as jnp
import numpy as np

from fct_jax.train.state import State


def make_state(step):
    rng = np.random.default_rng(step)
    params = {"layer": {"kernel": jnp.asarray(rng.standard_normal((64, 32)), jnp.float32)}}
    return State(jnp.int32(step), params, {"mean": jnp.full(3, step, jnp.float32)}, (params,))
