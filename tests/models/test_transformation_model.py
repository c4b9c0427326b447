"""FCT's and FastFill's transformations against the golden arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from fct_jax.errors import UserError
from fct_jax.models import build, torch_import

KINDS = {"plain": "fct", "sigma1": "fastfill", "sigmaD": "fct"}


def close(ours, expected, name):
    limit = 1e-5 * max(np.abs(expected).max(), 1e-3)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=limit, err_msg=name)


def part(arrays, prefix):
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


@pytest.mark.parametrize("kind", KINDS)
def test_golden(kind, golden_fct):
    dims = golden_fct.json("transformation")["dims"]
    arrays = golden_fct.arrays("transformation")
    state = part(arrays, f"{kind}/state/")
    head = {k: v for k, v in state.items() if k.startswith("uncertainty_head")}
    if kind == "sigmaD":
        # A vector of uncertainties is refused; its embedding can still be compared.
        with pytest.raises(UserError, match="12 outputs"):
            torch_import.transformation(state)
        state = {k: v for k, v in state.items() if k not in head}
    variables = torch_import.transformation(state)
    model = build(KINDS[kind], embedding_dim=dims["new"], inner_dim=dims["inner"])
    inputs = arrays["old"], arrays["side"]
    evaluated = model.apply(variables, *inputs)
    trained, updated = model.apply(variables, *inputs, train=True, mutable=["batch_stats"])
    for mode, (embedding, log_variance) in (("eval", evaluated), ("train", trained)):
        expected = arrays[f"{kind}/out_{mode}"]
        close(embedding, expected[:, : dims["new"]], mode)
        if kind == "plain":
            assert log_variance is None and expected.shape[1] == dims["new"]
        elif kind == "sigma1":
            assert log_variance.shape == (dims["n"],)
            close(log_variance, expected[:, -1], mode)
        else:
            vector = embedding @ head["uncertainty_head.weight"].T + head["uncertainty_head.bias"]
            close(vector, expected[:, dims["new"] :], mode)

    after = torch_import.transformation_to_torch({**variables, **updated})
    buffers = part(arrays, f"{kind}/buffers_after_train_forward/")
    assert set(buffers) == {k for k in after if "running" in k or "tracked" in k}
    for name, expected in buffers.items():
        if not name.endswith("num_batches_tracked"):  # Flax keeps no counter
            close(after[name], expected, name)


def test_every_array_was_read(golden_fct):
    keys = set(golden_fct.arrays("transformation")) - {"old", "side"}
    assert {key.split("/")[0] for key in keys} == set(KINDS)
    assert {key.split("/")[1] for key in keys} == {
        "state",
        "out_eval",
        "out_train",
        "buffers_after_train_forward",
    }


def test_hidden_widths_and_default_inner():
    model = build("fastfill", embedding_dim=12)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8)), jnp.zeros((1, 6)))
    kernels = {
        path[0]: leaf.shape
        for path, leaf in flatten_dict(variables["params"]).items()
        if path[-1] == "kernel"
    }
    assert kernels == {
        "p1_0": (8, 16),
        "p1_1": (16, 24),
        "p2_0": (6, 12),
        "p2_1": (12, 24),
        "mixer_0": (48, 2048),
        "mixer_1": (2048, 2048),
        "mixer_2": (2048, 12),
        "uncertainty_head": (12, 1),
    }
    biases = {path[0] for path in flatten_dict(variables["params"]) if len(path) == 2}
    assert biases == {"mixer_2", "uncertainty_head"}


def example(name, dtype="float32"):
    model = build(name, embedding_dim=4, inner_dim=16, dtype=dtype)
    old, side = np.random.default_rng(0).normal(size=(2, 6, 5)).astype(np.float32)
    return model, model.init(jax.random.key(0), old, side), old, side


def test_without_side_information_the_old_embedding_is_used():
    model, variables, old, _ = example("fct")
    np.testing.assert_array_equal(
        model.apply(variables, old)[0], model.apply(variables, old, old)[0]
    )


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
def test_batch_of_one(train):
    model, variables, old, side = example("fastfill")

    def loss(params):
        (embedding, log_variance), updated = model.apply(
            {**variables, "params": params}, old[:1], side[:1], train=train, mutable=["batch_stats"]
        )
        assert embedding.shape == (1, 4) and log_variance.shape == (1,)
        return embedding.sum() + log_variance.sum(), updated

    gradients, updated = jax.grad(loss, has_aux=True)(variables["params"])
    for leaf in jax.tree.leaves((gradients, updated)):
        assert np.isfinite(leaf).all()


def test_uncertainty_reaches_the_embedding():
    model, variables, old, side = example("fastfill")
    gradient = jax.grad(lambda p: model.apply({**variables, "params": p}, old, side)[1].sum())(
        variables["params"]
    )
    assert np.abs(gradient["mixer_2"]["kernel"]).max() > 0


def test_bfloat16_is_close():
    model, variables, old, side = example("fastfill")
    half, _, _, _ = example("fastfill", "bfloat16")
    for a, b in zip(
        half.apply(variables, old, side), model.apply(variables, old, side), strict=True
    ):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=0.05 * np.abs(b).max() + 0.02)
