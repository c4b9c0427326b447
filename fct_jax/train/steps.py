"""The compiled training step, the same for every task."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fct_jax.train.accumulate import WHOLE, MicroBatches
from fct_jax.train.state import State


def compile_steps(
    task,
    optimizer,
    seed: int,
    micro_batches: MicroBatches = WHOLE,
    remat: bool = False,
    platform: str | None = None,
    mesh=None,
) -> "Steps":
    """Compile ``(state, data, frozen, call, steps, freeze=) -> (state, metric sums)``.

    A call of several steps runs them inside one loop on the device; ``steps``, which may be
    fewer than the call can hold, may vary without a new compilation.

    Args:
      task: see ``loop.py``.
      optimizer: as ``build_optimizer`` returns it.
      seed: seed of the steps' randomness.
      micro_batches: how a batch is split into micro-batches.
      remat: whether the task's model recomputes activations in the backward pass.
      platform: "cpu", "gpu" or "tpu", for which the program is compiled; None: this process's own.
      mesh: the devices that share a batch; None: a single device.
    """
    platform = platform or jax.default_backend()
    key = jax.random.key(seed + 1)  # not the key of the initial parameters
    count = micro_batches.count

    def add(sums, i, params, step, data, frozen, element, key, freeze):
        """Add micro-batch ``i`` to (gradient sums, running statistics); return them and metrics."""
        gradients, batch_stats = sums
        pick_key, loss_key = jax.random.split(jax.random.fold_in(key, step))
        batch = micro_batches.part(task.feed.pick(data, element, pick_key), i)
        loss_key = micro_batches.key(loss_key, i)

        def objective(params):
            variables = {"params": params, "batch_stats": batch_stats}
            return task.loss(variables, frozen, batch, step, loss_key, freeze)

        (loss, (batch_stats, metrics)), more = jax.value_and_grad(objective, has_aux=True)(params)
        return (jax.tree.map(jnp.add, gradients, more), batch_stats), {"loss": loss, **metrics}

    def apply(state: State, sums, metrics):
        """Apply the mean gradient; the first axis of ``metrics`` is the micro-batch."""
        gradients, batch_stats = sums
        gradients = jax.tree.map(lambda x: x / count, gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p + u, state.params, updates)
        means = jax.tree.map(lambda x: jnp.mean(x, 0), metrics)
        return State(state.step + 1, params, batch_stats, opt_state), means

    def update(state: State, *rest):
        sums = jax.tree.map(jnp.zeros_like, state.params), state.batch_stats
        if count == 1:
            sums, metrics = add(sums, 0, state.params, state.step, *rest)
            return apply(state, sums, jax.tree.map(lambda x: x[None], metrics))
        sums, metrics = jax.lax.scan(
            lambda sums, i: add(sums, i, state.params, state.step, *rest), sums, jnp.arange(count)
        )
        return apply(state, sums, metrics)

    compiled = functools.partial(
        jax.jit,
        donate_argnums=0,
        static_argnames="freeze",
        compiler_options=compiler_options(remat, platform),
    )

    @compiled
    def run(state, data, frozen, call, steps, *, key, freeze):
        if _room(call) == 1:
            return update(state, data, frozen, _element(call, 0), key, freeze)

        def body(i, carry):
            state, sums = carry
            state, metrics = update(state, data, frozen, _element(call, i), key, freeze)
            return state, jax.tree.map(jnp.add, sums, metrics)

        shapes = jax.eval_shape(
            lambda s: update(s, data, frozen, _element(call, 0), key, freeze)[1], state
        )
        zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        return jax.lax.fori_loop(0, steps, body, (state, zeros))

    @compiled
    def run_part(sums, i, params, step, data, frozen, call, *, key, freeze):
        return add(sums, i, params, step, data, frozen, _element(call, 0), key, freeze)

    @functools.partial(jax.jit, donate_argnums=0)
    def run_apply(state, sums, metrics):
        return apply(state, sums, jax.tree.map(lambda *x: jnp.stack(x), *metrics))

    def run_in_parts(state, data, frozen, call, steps, *, key, freeze):
        """Run a call of one step, with one program for each micro-batch."""
        sums = jax.tree.map(jnp.zeros_like, state.params), state.batch_stats
        metrics = []
        for i in range(count):
            sums, more = run_part(
                sums, i, state.params, state.step, data, frozen, call, key=key, freeze=freeze
            )
            metrics.append(more)
        # The state's statistics were donated with the first sums.
        return run_apply(state._replace(batch_stats={}), sums, metrics)

    # The key is an argument, so that cached compilations serve every seed.
    whole = functools.partial(run, key=key)
    if count == 1 or platform != "cpu":
        return Steps(whole, whole, run, key, mesh)
    # XLA runs convolutions inside a loop on one CPU core, several times slower.
    return Steps(whole, functools.partial(run_in_parts, key=key), run, key, mesh)


class Steps(NamedTuple):
    """The compiled step of a task: ``steps(state, data, frozen, call, steps, freeze=)``.

    Attributes:
      several: runs a call of several steps.
      one: runs a call of one step.
      program: the jitted function behind ``several``, with the further argument ``key``.
      key: key of the steps' randomness.
      mesh: the devices that share a batch, or None.
    """

    several: Callable
    one: Callable
    program: Any
    key: jax.Array
    mesh: Any = None

    def __call__(self, state, data, frozen, call, steps, *, freeze):
        """Run a call; see `compile_steps`."""
        run = self.one if _room(call) == 1 else self.several
        with self._devices():
            return run(state, data, frozen, call, steps, freeze=freeze)

    def lower(self, state, data, frozen, call, *, freeze: bool, platform: str):
        """Lower the program of a call for a platform; the arguments may be shapes."""
        key = jax.ShapeDtypeStruct(self.key.shape, self.key.dtype)
        steps = jax.ShapeDtypeStruct((), "int32")
        with self._devices():
            traced = self.program.trace(state, data, frozen, call, steps, key=key, freeze=freeze)
            return traced.lower(lowering_platforms=(platform,))

    def _devices(self):
        """Return a context that tells a step which devices its batch is split over."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)


def compiler_options(remat: bool, platform: str | None = None) -> dict | None:
    """Return options for ``jax.jit`` that make XLA on CPUs recompute activations.

    By default XLA merges the second computation with the first, and keeps all activations.
    """
    again = remat and (platform or jax.default_backend()) == "cpu"
    return {"xla_disable_hlo_passes": "cse_barrier_expander"} if again else None


def _room(call) -> int:
    """Return the number of steps a call can hold."""
    return jax.tree.leaves(call)[0].shape[0]


def _element(call, i):
    """Return the data of step ``i`` of a call."""
    return jax.tree.map(lambda array: array[i], call)
