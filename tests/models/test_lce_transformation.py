"""LCE's residual transformation, and layers in general, against the golden arrays."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fct_jax.errors import UserError
from fct_jax.models import torch_import
from fct_jax.models.batch_norm import BatchNorm
from fct_jax.models.lce_transformation import LCETransformation
from fct_jax.models.linear import Linear


def close(ours, expected, name):
    limit = 1e-4 * np.abs(expected).max() + 2e-6
    np.testing.assert_allclose(ours, expected, rtol=0, atol=limit, err_msg=name)


def part(arrays, prefix):
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


@pytest.mark.parametrize("blocks", [1, 4])
def test_golden(blocks, golden_advbct):
    everything = golden_advbct.arrays("lce_transformation")
    x, cotangent = everything["x"], everything["cotangent"]
    arrays = part(everything, f"K{blocks}/")
    state, after = part(arrays, "state/"), part(arrays, "state_after/")
    variables = torch_import.lce_transformation(state)
    model = LCETransformation(blocks)

    def run(x, train):
        out, updated = model.apply(variables, x, train=train, mutable=["batch_stats"])
        return jnp.vdot(out, cotangent), (out, updated)

    ours = {}
    for mode in ("eval", "train"):
        gradient, (out, updated) = jax.grad(run, has_aux=True)(x, mode == "train")
        ours[f"out_{mode}"], ours[f"grad_x_{mode}"] = out, gradient
    ours["out_eval_after"] = model.apply({**variables, **updated}, x)
    rest = {k: v for k, v in arrays.items() if not k.startswith("state")}
    assert set(ours) == set(rest)
    for name, expected in rest.items():
        close(ours[name], expected, name)
    expected = torch_import.lce_transformation({**state, **after})["batch_stats"]
    assert len(after) == 2 * len(expected)
    jax.tree.map_with_path(
        lambda path, a, b: close(a, b, str(path)), updated["batch_stats"], expected
    )


class MLP(nn.Module):
    """The golden file's plain network, built from the same layers."""

    @nn.compact
    def __call__(self, x, train):
        x = Linear(24, name="input")(x)
        for i in range(3):
            x = Linear(24, name=f"hidden{i}")(x)
            x = nn.relu(BatchNorm(name=f"bn{i}")(x, not train))
        return Linear(3, name="output")(x)


def test_golden_mlp(golden_advbct):
    arrays = part(golden_advbct.arrays("lce_transformation"), "mlp/")
    state = part(arrays, "state/")
    params, stats = {}, {}
    for torch, name in (("input", "input"), ("output", "output")):
        params[name] = {"kernel": state[f"{torch}.weight"].T, "bias": state[f"{torch}.bias"]}
    for i in range(3):
        fc, bn = f"hiddens.{i}.0", f"hiddens.{i}.1"
        params[f"hidden{i}"] = {"kernel": state[f"{fc}.weight"].T, "bias": state[f"{fc}.bias"]}
        params[f"bn{i}"] = {"scale": state[f"{bn}.weight"], "bias": state[f"{bn}.bias"]}
        stats[f"bn{i}"] = {
            "mean": state[f"{bn}.running_mean"],
            "var": state[f"{bn}.running_var"],
        }
    variables = {"params": params, "batch_stats": stats}
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == sum(
        v.size for k, v in state.items() if not k.endswith("tracked")
    )
    close(MLP().apply(variables, arrays["x"], False), arrays["out_eval"], "out_eval")
    close(MLP().apply(variables, arrays["x"], True), arrays["out_train_dropout0"], "out_train")


def test_no_blocks_is_identity():
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(LCETransformation(0).apply({}, x), x)


def test_batch_of_one():
    x = np.ones((1, 5), np.float32)
    model = LCETransformation(2, inner=3)
    variables = model.init(jax.random.key(0), x)
    assert variables["params"]["block1_fc0"]["kernel"].shape == (5, 3)
    assert np.isfinite(model.apply(variables, x, train=True)).all()


def test_missing_block_is_named(golden_advbct):
    state = part(golden_advbct.arrays("lce_transformation"), "K4/state/")
    state = {k: v for k, v in state.items() if not k.startswith("rbt.1.")}
    with pytest.raises(UserError, match=r"missing rbt\.1\.0\.weight"):
        torch_import.lce_transformation(state)
