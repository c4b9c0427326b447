"""BatchNorm against a float64 loop, and on the smallest batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fct_jax.models.batch_norm import BatchNorm


def oracle(x, scale, bias, mean, var, train):
    """Return output and new running statistics, one channel at a time in float64."""
    x = x.astype(np.float64)
    out, means, variances = np.empty_like(x), [], []
    for c in range(x.shape[-1]):
        values = x[..., c].ravel()
        m, v = (values.mean(), values.var()) if train else (mean[c], var[c])
        out[..., c] = (x[..., c] - m) / np.sqrt(v + 1e-5) * scale[c] + bias[c]
        unbiased = values.var(ddof=1) if values.size > 1 else 0.0
        means.append(0.9 * mean[c] + 0.1 * values.mean() if train else mean[c])
        variances.append(0.9 * var[c] + 0.1 * unbiased if train else var[c])
    return out, np.array(means), np.array(variances)


def random_case(shape, seed, offset=0.0):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=shape) * 3 + offset).astype(np.float32)
    scale, bias, mean = rng.normal(size=(3, shape[-1])).astype(np.float32)
    var = rng.uniform(0.5, 2, shape[-1]).astype(np.float32)
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": mean, "var": var},
    }
    return x, variables, (scale, bias, mean, var)


@settings(max_examples=15, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple),
    seed=st.integers(0, 1000),
    train=st.booleans(),
)
def test_against_loop(shape, seed, train):
    x, variables, numbers = random_case(shape, seed)
    out, updated = BatchNorm().apply(
        variables, x, use_running_average=not train, mutable=["batch_stats"]
    )
    expected, mean, var = oracle(x, *numbers, train)
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-3)
    stats = updated["batch_stats"]
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5, atol=1e-5)


def test_large_mean_keeps_its_digits():
    x, variables, numbers = random_case((64, 4, 4, 3), 0, offset=3000.0)
    out = BatchNorm().apply(variables, x, use_running_average=False)
    expected, _, _ = oracle(x, *numbers, True)
    np.testing.assert_allclose(out, expected, rtol=0, atol=5e-3)


def test_gradient_in_both_modes():
    x, variables, _ = random_case((6, 2, 3, 4), 1)
    for frozen in (True, False):

        def loss(x, frozen=frozen):
            out = BatchNorm().apply(variables, x, use_running_average=frozen)
            return jnp.sum(jnp.sin(out))

        direction = np.random.default_rng(2).normal(size=x.shape).astype(np.float32)
        slope = jnp.vdot(jax.grad(loss)(x), direction)
        difference = (loss(x + 1e-2 * direction) - loss(x - 1e-2 * direction)) / 2e-2
        np.testing.assert_allclose(slope, difference, rtol=2e-2, atol=2e-2)


def test_one_value_a_channel_is_finite():
    x, variables, (_, bias, _, var) = random_case((1, 5), 3)

    def loss(x):
        out, updated = BatchNorm().apply(
            variables, x, use_running_average=False, mutable=["batch_stats"]
        )
        return out.sum(), (out, updated["batch_stats"])

    gradient, (out, stats) = jax.grad(loss, has_aux=True)(x)
    np.testing.assert_allclose(out, bias[None], atol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.9 * var, rtol=1e-6)
    assert np.isfinite(gradient).all()


def test_statistics_stay_float32_under_bfloat16():
    x, variables, numbers = random_case((512, 3), 4)
    half = x.astype(jnp.bfloat16)
    out, updated = BatchNorm(dtype=jnp.bfloat16).apply(
        variables, half, use_running_average=False, mutable=["batch_stats"]
    )
    assert out.dtype == jnp.bfloat16
    _, mean, var = oracle(np.asarray(half, np.float32), *numbers, True)
    stats = updated["batch_stats"]
    assert stats["mean"].dtype == stats["var"].dtype == jnp.float32
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5)


def test_initial_values_do_not_see_the_batch():
    x = random_case((4, 3), 5)[0]
    variables = BatchNorm().init(jax.random.key(0), x, use_running_average=False)
    for collection, name, value in (
        ("params", "scale", 1),
        ("params", "bias", 0),
        ("batch_stats", "mean", 0),
        ("batch_stats", "var", 1),
    ):
        np.testing.assert_array_equal(variables[collection][name], np.full(3, value))


def test_same_as_torch():
    torch = pytest.importorskip("torch")
    x, variables, (scale, bias, mean, var) = random_case((5, 3, 2, 4), 6)
    theirs = torch.nn.BatchNorm2d(4)
    state = {"weight": scale, "bias": bias, "running_mean": mean, "running_var": var}
    theirs.load_state_dict({name: torch.from_numpy(v.copy()) for name, v in state.items()}, False)
    expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2))).detach().numpy()
    out, updated = BatchNorm().apply(
        variables, x, use_running_average=False, mutable=["batch_stats"]
    )
    np.testing.assert_allclose(out, expected.transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["var"], theirs.running_var, rtol=1e-5)
