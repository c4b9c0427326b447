"""The compiled training step, the same for every task."""

import functools

import jax
import jax.numpy as jnp

from fct_jax.train.state import State


def compile_steps(task, optimizer, seed: int):
    """The compiled call ``(state, data, frozen, call, steps, freeze=) -> (state, metric sums)``.

    A call of several steps runs them inside one loop on the device; ``steps``, which may be
    fewer than the call has room for, varies without compiling again.
    """
    key = jax.random.key(seed + 1)  # not the key of the initial parameters

    def update(state: State, data, frozen, element, key, freeze):
        pick_key, loss_key = jax.random.split(jax.random.fold_in(key, state.step))
        batch = task.feed.pick(data, element, pick_key)

        def objective(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            return task.loss(variables, frozen, batch, state.step, loss_key, freeze)

        (loss, (batch_stats, metrics)), gradients = jax.value_and_grad(objective, has_aux=True)(
            state.params
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p + u, state.params, updates)
        return State(state.step + 1, params, batch_stats, opt_state), {"loss": loss, **metrics}

    @functools.partial(jax.jit, donate_argnums=0, static_argnames="freeze")
    def run(state, data, frozen, call, steps, *, key, freeze):
        def element(i):
            return jax.tree.map(lambda array: array[i], call)

        if jax.tree.leaves(call)[0].shape[0] == 1:
            return update(state, data, frozen, element(0), key, freeze)

        def body(i, carry):
            state, sums = carry
            state, metrics = update(state, data, frozen, element(i), key, freeze)
            return state, jax.tree.map(jnp.add, sums, metrics)

        shapes = jax.eval_shape(
            lambda s: update(s, data, frozen, element(0), key, freeze)[1], state
        )
        zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        return jax.lax.fori_loop(0, steps, body, (state, zeros))

    # The key is an argument, so that a compilation cache serves every seed.
    return functools.partial(run, key=key)
