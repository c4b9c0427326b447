"""FCT's and FastFill's objectives against arrays of the original code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fct_jax.errors import UserError
from fct_jax.losses import (
    alignment,
    cross_entropy,
    label_smoothed_cross_entropy,
    uncertainty_weighted,
)

CASES = ("s1", "sD", "square")


def close(actual, expected, tolerance=1e-5):
    scale = max(np.abs(expected).max(), 1e-6)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def objective(combo, recycled, log_variance, case):
    """Return the loss that a combination in the JSON file stands for."""
    per_sample = jnp.zeros(recycled.shape[0])
    if similarity := combo.get("similarity_loss"):
        values = alignment(recycled, case["new_feature"], similarity["name"])
        per_sample += similarity.get("mu_similarity", 1.0) * values
    if discriminative := combo.get("discriminative_loss"):
        logits = recycled @ case["classifier"].T
        smoothing = discriminative.get("label_smoothing", 0.0)
        values = label_smoothed_cross_entropy(logits, case["targets"], smoothing)
        per_sample += discriminative["mu_disc"] * values
    if uncertainty := combo.get("uncertainty_loss"):
        return uncertainty_weighted(per_sample, log_variance, uncertainty["mu_uncertainty"])
    return jnp.mean(per_sample)


@pytest.mark.parametrize("name", CASES)
def test_objectives(golden_fct, name):
    arrays, info = golden_fct.arrays("losses"), golden_fct.json("losses")
    inputs = ("new_feature", "recycled_feature", "sigma", "targets", "classifier")
    case = {key: arrays[f"{name}/{key}"] for key in inputs}
    one_number = case["sigma"].shape[1] == 1
    sigma = case["sigma"][:, 0] if one_number else case["sigma"]
    checked = set(inputs)
    for key, combo in info["combos"].items():

        def loss(recycled, log_variance, combo=combo):
            return objective(combo, recycled, log_variance, case)

        if "uncertainty_loss" in combo and not one_number:
            # The original mixes samples and dimensions up here, or fails.
            with pytest.raises(UserError, match="one number per sample"):
                loss(case["recycled_feature"], sigma)
            checked |= {f"{key}/{part}" for part in ("value", "grad_recycled", "grad_sigma")}
            continue
        step = jax.jit(jax.value_and_grad(loss, (0, 1)))
        value, (grad_recycled, grad_sigma) = step(case["recycled_feature"], sigma)
        for part, actual in (
            ("value", value),
            ("grad_recycled", grad_recycled),
            ("grad_sigma", np.reshape(grad_sigma, case["sigma"].shape)),
        ):
            close(actual, arrays[f"{name}/{key}/{part}"])
            checked.add(f"{key}/{part}")
    stored = {key.removeprefix(f"{name}/") for key in arrays if key.startswith(f"{name}/")}
    assert stored <= checked


def test_every_case_is_known(golden_fct):
    assert {key.split("/")[0] for key in golden_fct.arrays("losses")} == {*CASES, "ls"}


def test_label_smoothing(golden_fct):
    arrays = golden_fct.arrays("losses")
    logits, targets = arrays["ls/logits"], arrays["ls/targets"]
    for smoothing in ("0.0", "0.1", "0.3"):

        def mean(logits, smoothing=float(smoothing)):
            return jnp.mean(label_smoothed_cross_entropy(logits, targets, smoothing))

        per_sample = label_smoothed_cross_entropy(logits, targets, float(smoothing))
        close(per_sample, arrays[f"ls/{smoothing}/none"])
        close(mean(logits), arrays[f"ls/{smoothing}/mean"])
        close(jax.grad(mean)(logits), arrays[f"ls/{smoothing}/grad_logits_of_mean"])
    close(jnp.mean(cross_entropy(logits, targets)), arrays["ls/ce_mean"])
    # Accuracies in percent, from the rank of the label's logit.
    rank = np.sum(logits > logits[np.arange(len(logits)), targets][:, None], axis=1)
    close(100 * np.mean(rank < 1), arrays["ls/acc_top1"])
    close(100 * np.mean(rank < 5), arrays["ls/acc_top5"])
