"""The adversarial part and a whole AdvBCT step against arrays of the original code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses_golden import base_loss, close, statistics

from fct_jax import losses

DISCRIMINATOR = [f"{k}.{part}" for k in ("d_fc1", "d_bn1", "d_fc2") for part in ("weight", "bias")]


def discriminate(weights, x):
    """Apply the published discriminator with batch statistics, written out: (N, D) -> (N, 2)."""
    x = x @ weights["d_fc1.weight"].T + weights["d_fc1.bias"]
    x = (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5)
    x = jax.nn.relu(x * weights["d_bn1.weight"] + weights["d_bn1.bias"])
    return jax.nn.log_softmax(x @ weights["d_fc2.weight"].T + weights["d_fc2.bias"])


def weights_of(arrays):
    return {name: jnp.asarray(arrays[f"disc/{name}"]) for name in DISCRIMINATOR}


def adversarial_loss(feat, weights, feat_old, strength):
    new = discriminate(weights, losses.gradient_reversal(feat, strength))
    return losses.adversarial(new, discriminate(weights, feat_old))


def test_loss_and_reversed_gradients(golden_advbct):
    arrays = golden_advbct.arrays("adversarial")
    new, old, weights = arrays["feat_new"], arrays["feat_old"], weights_of(arrays)
    log_new, log_old = arrays["logp_new"], arrays["logp_old"]
    close(losses.adversarial(log_new, log_old), arrays["model_loss"])
    zeros = np.zeros_like(log_new)
    close(losses.adversarial(log_new, zeros), arrays["loss_new_part"])
    close(losses.adversarial(zeros, log_old), arrays["loss_old_part"])

    step = jax.jit(jax.value_and_grad(adversarial_loss, (0, 1)))
    for strength, expected in zip(arrays["alphas"], arrays["grad_feat_per_alpha"], strict=True):
        value, (grad_feat, grad_weights) = step(new, weights, old, strength)
        close(value, arrays["model_loss"])
        close(grad_feat, expected)
        for name in DISCRIMINATOR:
            close(grad_weights[name], arrays[f"grad_disc/{name}"])
    # A strength of -1 undoes the reversal.
    close(step(new, weights, old, -1.0)[1][0], arrays["grad_feat_no_reversal"])


def test_schedules(golden_advbct):
    arrays = golden_advbct.arrays("adversarial")
    epoch, batch, batches, epochs = arrays["schedule_int"].T
    progress = (batch + epoch * batches) / (epochs * batches)
    close(progress, arrays["schedule_p"])
    close(losses.adversarial_strength(progress), arrays["schedule_alpha"])
    weight = losses.adversarial_weight(epoch, epochs)
    close(weight, arrays["schedule_model_loss_weight"])
    close(losses.adversarial_strength(arrays["alpha_table_p"]), arrays["alpha_table_alpha"])
    assert losses.adversarial_strength(0.0) == 0.0


@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_whole_step(golden_advbct, threshold):
    arrays = golden_advbct.arrays("adversarial")
    labels, old = arrays["step/labels"], arrays["step/feat_old"]
    num_old = int(arrays["step/old_class_ids"].max()) + 1
    stats = statistics(arrays, num_old, "euclidean", prefix="step/")
    epoch, epochs, batch, batches = arrays["step/epoch_nepoch_batchidx_len"]
    strength = losses.adversarial_strength((batch + epoch * batches) / (epochs * batches))
    weight = losses.adversarial_weight(epoch, int(epochs))

    def total(feat, w_new, elastic, discriminator):
        base = base_loss("softmax", feat, w_new, labels)
        boundary, share = losses.advbct_boundary(
            feat, labels, stats, elastic, threshold, with_share=True
        )
        model = adversarial_loss(feat, discriminator, old, strength)
        parts = {"base_loss": base, "comp_loss": boundary, "model_loss": model}
        return base + boundary + weight * model, (parts, share)

    step = jax.jit(jax.value_and_grad(total, (0, 1, 2, 3), has_aux=True))
    (value, (found, share)), (feat, w_new, elastic, discriminator) = step(
        arrays["step/feat"], arrays["step/w_new"], arrays["step/eb_weight"], weights_of(arrays)
    )
    found |= {"total_loss": value, "alpha": strength, "model_loss_weight": weight}
    found |= {"violators": jnp.round(share * len(labels))}
    found |= {"grad_feat": feat, "grad_w_new": w_new, "grad_eb_weight": elastic}
    found |= {f"grad_disc.{name}": discriminator[name] for name in DISCRIMINATOR}
    prefix = f"step_t{threshold}/"
    stored = {key.removeprefix(prefix) for key in arrays if key.startswith(prefix)}
    assert stored == set(found)
    for name in stored:
        close(found[name], arrays[prefix + name])


@pytest.mark.parametrize("strength", [0, 1, 0.5, np.float32(0.25)])
def test_gradient_reversal_takes_any_number(strength):
    x = jnp.arange(6.0).reshape(2, 3)
    assert (losses.gradient_reversal(x, strength) == x).all()
    gradient = jax.grad(lambda x: (losses.gradient_reversal(x, strength) * x).sum())(x)
    np.testing.assert_allclose(gradient, x - strength * x)
