"""The training state, which holds arrays only."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fct_jax.runtime import sharding


class State(NamedTuple):
    """Everything a step reads and writes; saved whole in a checkpoint.

    Attributes:
      step: () int32, updates made so far; the randomness of a step is folded from it.
      params: trained parameters.
      batch_stats: running BatchNorm statistics.
      opt_state: the optimizer's state.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def variables(self) -> dict:
        """Return the variables as a module's ``apply`` takes them."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def shapes_of(task, optimizer) -> State:
    """Return the shapes of the state's arrays, without allocating them."""

    def fresh(key) -> State:
        return _first(task, optimizer, key)

    return jax.eval_shape(fresh, jax.random.key(0))


def _first(task, optimizer, key) -> State:
    variables = task.init(key)
    params = variables["params"]
    return State(jnp.int32(0), params, variables.get("batch_stats", {}), optimizer.init(params))


def fresh_state(task, optimizer, seed: int, mesh) -> State:
    """Return the state before the first step, made on the devices in its sharding.

    Args:
      task: see ``loop.py``.
      optimizer: as ``build_optimizer`` returns it.
      seed: seed of the parameters, which are the same on every mesh.
      mesh: as ``sharding.make_mesh`` returns it.
    """

    def fresh(key) -> State:
        return _first(task, optimizer, key)

    key = jax.random.key(seed)
    shardings = sharding.of_state(jax.eval_shape(fresh, key), mesh)
    return jax.jit(fresh, out_shardings=shardings)(key)
