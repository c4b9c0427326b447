"""The discriminator against the golden arrays of AdvBCT."""

import jax
import numpy as np

from fct_jax.models import torch_import
from fct_jax.models.discriminator import Discriminator


def close(ours, expected, name):
    limit = 1e-4 * np.abs(expected).max() + 2e-6
    np.testing.assert_allclose(ours, expected, rtol=0, atol=limit, err_msg=name)


def part(arrays, prefix):
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def test_golden(golden_advbct):
    arrays = golden_advbct.arrays("adversarial")
    variables = torch_import.discriminator(part(arrays, "disc/"))
    model = Discriminator()

    def losses(params, new, old):
        state = {**variables, "params": params}
        log_new, updated = model.apply(state, new, mutable=["batch_stats"])
        log_old, updated = model.apply({**state, **updated}, old, mutable=["batch_stats"])
        new_part, old_part = -log_new[:, 0].mean(), -log_old[:, 1].mean()
        return new_part + old_part, (log_new, log_old, new_part, old_part, updated["batch_stats"])

    inputs = variables["params"], arrays["feat_new"], arrays["feat_old"]
    (total, outputs), (grad_params, grad_new) = jax.value_and_grad(losses, (0, 1), True)(*inputs)
    log_new, log_old, new_part, old_part, stats = outputs
    close(log_new, arrays["logp_new"], "logp_new")
    close(log_old, arrays["logp_old"], "logp_old")
    close(total, arrays["model_loss"], "model_loss")
    close(new_part, arrays["loss_new_part"], "loss_new_part")
    close(old_part, arrays["loss_old_part"], "loss_old_part")
    close(grad_new, arrays["grad_feat_no_reversal"], "grad_feat_no_reversal")
    evaluated = model.apply(variables, arrays["feat_new"], train=False)
    close(evaluated, arrays["logp_new_eval_bn"], "logp_new_eval_bn")

    after = part(arrays, "disc_after/d_bn1.running_")
    assert set(after) == set(stats["bn1"])
    for name, expected in after.items():
        close(stats["bn1"][name], expected, name)
    # The gradients go through the same table of names as the weights.
    gradients = part(arrays, "grad_disc/")
    statistics = {k: v for k, v in part(arrays, "disc/").items() if "running" in k}
    expected = torch_import.discriminator({**gradients, **statistics})["params"]
    jax.tree.map_with_path(lambda path, a, b: close(a, b, str(path)), grad_params, expected)


def test_one_sample_and_probabilities():
    x = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    model = Discriminator(hidden=4)
    variables = model.init(jax.random.key(0), x)
    assert variables["params"]["fc1"]["kernel"].shape == (7, 4)
    for rows in (1, 5):
        out = model.apply(variables, x[:rows])
        assert out.shape == (rows, 2)
        np.testing.assert_allclose(np.exp(out).sum(1), 1, rtol=1e-5)
