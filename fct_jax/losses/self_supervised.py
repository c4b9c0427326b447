"""The contrastive loss of SimCLR, between two augmented views of each image."""

import jax
import jax.numpy as jnp
import optax

from fct_jax.losses.numerics import MASKED, normalize


def nt_xent(
    first: jax.Array, second: jax.Array, temperature: float = 0.1, with_accuracy: bool = False
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Return the normalised, temperature-scaled cross-entropy over the whole (global) batch.

    Each of the 2N vectors has to find the other view of its image among the 2N - 1 others, by
    cosine similarity divided by ``temperature``; the loss is the mean of the 2N softmax
    cross-entropies. A batch of one image has no negatives: its loss is 0 with zero gradient.

    Args:
      first: (N, D) projections of one view of N images, of any length.
      second: (N, D) projections of another view of the same images.
      temperature: above 0; published: 0.1 on ImageNet, 0.5 on CIFAR.
      with_accuracy: also return the share of vectors whose most similar other vector is of the
        same image.

    Source: "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020,
    eq. 1, https://arxiv.org/abs/2002.05709.

    >>> round(float(nt_xent(jnp.eye(2), jnp.eye(2), temperature=0.5)), 3)
    0.24
    """
    count = len(first)
    vectors = normalize(jnp.concatenate([first, second]))
    logits = jnp.matmul(vectors, vectors.T, precision="highest") / temperature
    logits = jnp.where(jnp.eye(2 * count, dtype=bool), MASKED, logits)
    partner = (jnp.arange(2 * count) + count) % (2 * count)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, partner).mean()
    return (loss, jnp.mean(jnp.argmax(logits, -1) == partner)) if with_accuracy else loss
