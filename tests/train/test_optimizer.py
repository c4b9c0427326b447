"""Schedules against the original's, optimizers against PyTorch's and written-out updates."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from fct_jax.errors import UserError
from fct_jax.train.optimizer import build_optimizer, decayed, learning_rate


def config(name="sgd", **changes):
    values = {
        "name": name,
        "lr": 0.1,
        "momentum": 0.875,
        "nesterov": False,
        "weight_decay": 0.05,
        "decay_batch_norm": True,
        "schedule": {"name": "constant"},
    }
    return ml_collections.ConfigDict(values | changes)


def test_golden_schedules(golden_fct):
    schedules = golden_fct.json("schedules")
    for stored in schedules.values():
        params, rates = stored["params"], stored["lr_per_epoch"]
        rate = learning_rate(
            params["algorithm"].removesuffix("_lr"),
            params["lr"],
            params.get("epochs", len(rates)),
            params.get("warmup_length", 0),
            step=params.get("lr_adjust"),
            gamma=params.get("lr_gamma", 0.1),
        )
        assert [rate(epoch) for epoch in range(len(rates))] == pytest.approx(rates, rel=1e-12)


def test_multistep_milestones_and_warmup():
    rate = learning_rate("multistep", 0.1, 30, milestones=(5, 10, 20))
    expected = [0.1] * 5 + [0.01] * 5 + [1e-3] * 10 + [1e-4] * 10
    assert [rate(epoch) for epoch in range(30)] == pytest.approx(expected)
    rate = learning_rate("multistep", 0.1, 30, 2, step=3, gamma=0.5)
    assert [rate(epoch) for epoch in range(7)] == pytest.approx(
        [0.05, 0.1, 0.1, 0.05, 0.05, 0.05, 0.025]
    )


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("cosin", 0.1, 10), {}, "did you mean 'cosine'"),
        (("cosine", 0.1, 5, 5), {}, "5 warm-up epochs"),
        (("multistep", 0.1, 5), {}, "either milestones or step"),
        (("multistep", 0.1, 5), {"step": 1, "milestones": (2,)}, "either milestones or step"),
        (("multistep", 0.1, 5), {"step": 0}, "at least 1"),
    ],
)
def test_wrong_schedules(arguments, options, message):
    with pytest.raises(UserError, match=message):
        learning_rate(*arguments, **options)


def test_unknown_optimizer():
    with pytest.raises(UserError, match="did you mean 'adam'"):
        build_optimizer(config("adamw"), 1, 1)


def test_rate_is_constant_within_an_epoch_and_survives_a_restart():
    cfg = config(
        momentum=0.0, weight_decay=0.0, lr=1.0, schedule={"name": "cosine", "warmup_epochs": 1}
    )
    optimizer, rate = build_optimizer(cfg, 3, 4), learning_rate("cosine", 1.0, 3, 1)
    params = {"kernel": jnp.zeros(2)}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    moved = []
    for step in range(14):
        if step == 6:  # As from a checkpoint: through the host, with a new optimizer.
            state = jax.tree.map(np.asarray, state)
            update = jax.jit(build_optimizer(cfg, 3, 4).update)
        updates, state = update({"kernel": jnp.ones(2)}, state, params)
        moved.append(-float(updates["kernel"][0]))
    expected = [rate(min(step // 4, 2)) for step in range(14)]
    np.testing.assert_allclose(moved, expected, rtol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_written_out(nesterov):
    rng = np.random.default_rng(0)
    p, grads = rng.standard_normal(5), rng.standard_normal((4, 5))
    optimizer = build_optimizer(config(nesterov=nesterov), 1, 4)
    params = {"kernel": jnp.asarray(p, jnp.float32)}
    state = optimizer.init(params)
    buffer = None
    for grad in grads:
        updates, state = optimizer.update({"kernel": jnp.asarray(grad)}, state, params)
        params = optax.apply_updates(params, updates)
        grad = grad + 0.05 * p
        buffer = grad if buffer is None else 0.875 * buffer + grad
        p = p - 0.1 * (grad + 0.875 * buffer if nesterov else buffer)
        np.testing.assert_allclose(params["kernel"], p, rtol=1e-5)


def test_adam_written_out():
    rng = np.random.default_rng(1)
    p, grads = rng.standard_normal(5), rng.standard_normal((4, 5))
    optimizer = build_optimizer(config("adam", lr=0.01), 1, 4)
    params = {"kernel": jnp.asarray(p, jnp.float32)}
    state = optimizer.init(params)
    first, second = np.zeros(5), np.zeros(5)
    for count, grad in enumerate(grads, 1):
        updates, state = optimizer.update({"kernel": jnp.asarray(grad)}, state, params)
        params = optax.apply_updates(params, updates)
        grad = grad + 0.05 * p
        first = 0.9 * first + 0.1 * grad
        second = 0.999 * second + 0.001 * grad**2
        root = np.sqrt(second / (1 - 0.999**count)) + 1e-8
        p = p - 0.01 * first / (1 - 0.9**count) / root
        np.testing.assert_allclose(params["kernel"], p, rtol=1e-5)


PARAMS = {
    "stem": {"kernel": jnp.ones(2), "bias": jnp.ones(2)},
    "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
    "block": {"shortcut": {"norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)}}},
    "elastic": jnp.ones(3),
}


def test_batch_norms_are_spared():
    norm = {"scale": False, "bias": False}
    assert decayed(PARAMS) == {
        "stem": {"kernel": True, "bias": True},
        "norm": norm,
        "block": {"shortcut": {"norm": norm}},
        "elastic": True,
    }


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("decay_batch_norm", [True, False])
def test_decay(name, decay_batch_norm):
    optimizer = build_optimizer(config(name, decay_batch_norm=decay_batch_norm), 1, 1)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(zeros, optimizer.init(PARAMS), PARAMS)
    moved = jax.tree.map(lambda x: bool((x != 0).all()), updates)
    assert moved == (jax.tree.map(lambda _: True, PARAMS) if decay_batch_norm else decayed(PARAMS))
