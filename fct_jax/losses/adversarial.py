"""AdvBCT's adversarial part: a discriminator must not tell new embeddings from old ones.

New embeddings pass through :func:`gradient_reversal` before the discriminator, old ones do not;
the new and the old batch go through the discriminator separately.

Sources: "Boundary-Aware Backward-Compatible Representation via Adversarial Learning" (AdvBCT),
CVPR 2023, https://arxiv.org/abs/2305.02610; for the reversal layer Ganin and Lempitsky,
"Unsupervised Domain Adaptation by Backpropagation", ICML 2015, https://arxiv.org/abs/1409.7495.
"""

import jax
import jax.numpy as jnp


def adversarial(new_log_probs: jax.Array, old_log_probs: jax.Array) -> jax.Array:
    """Return the negative log-likelihood of "new" (0) for new, "old" (1) for old vectors. Scalar.

    new_log_probs (N, 2) and old_log_probs (M, 2) are the discriminator's log-probabilities; each
    batch is averaged on its own, and the two means are added.
    """
    return -jnp.mean(new_log_probs[:, 0]) - jnp.mean(old_log_probs[:, 1])


def gradient_reversal(x: jax.Array, strength: jax.Array | float) -> jax.Array:
    """Return ``x``; its gradient is multiplied by ``-strength`` (a number, traced or not)."""
    return _reverse(x, jnp.asarray(strength, x.dtype))


@jax.custom_vjp
def _reverse(x, strength):
    return x


def _reverse_forward(x, strength):
    return x, strength


def _reverse_backward(strength, gradient):
    return -strength * gradient, jnp.zeros_like(strength)


_reverse.defvjp(_reverse_forward, _reverse_backward)


def adversarial_strength(progress: jax.Array | float) -> jax.Array:
    """Return the reversal strength ``2 / (1 + exp(-10 p)) - 1`` for progress p in [0, 1).

    It starts at exactly 0 and never reaches 1, as published. Progress is
    ``(batch + epoch · batches) / (epochs · batches)``.

    >>> round(float(adversarial_strength(0.5)), 3)
    0.987
    """
    # Equal to tanh(5 p), which stays exact near zero.
    return jnp.tanh(5.0 * jnp.asarray(progress, jnp.float32))


def adversarial_weight(epoch: jax.Array | float, epochs: int) -> jax.Array:
    """Return the loss's weight in epoch 0 … epochs-1: ``(epochs - epoch + 1) / epochs``.

    It starts above one, at (epochs + 1) / epochs, and ends at 2 / epochs, as published.
    """
    return (epochs - jnp.asarray(epoch, jnp.float32) + 1.0) / epochs
