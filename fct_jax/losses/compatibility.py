"""Backward compatibility through the old model's classifier or class centres.

Every function takes the new model's raw embeddings (N, D) and labels (N,), where a label outside
the old model's classes means a new class, and averages over the samples that it applies to. If
there are none, the loss is 0 with zero gradient. ``with_share=True`` returns ``(loss, share)``
with the share of the batch that was averaged over. The batch is the global batch; under ``jit``
with sharded arrays this needs no further code.
"""

import jax
import jax.numpy as jnp

from fct_jax.losses.classification import arcface, cosine_logits, cross_entropy
from fct_jax.losses.numerics import MASKED, known_labels, masked_mean, own_class, result


def bct(
    embedding: jax.Array,
    labels: jax.Array,
    old_classifier: jax.Array,
    *,
    with_share: bool = False,
) -> jax.Array:
    """Return the cross-entropy of old classifier (C_old, D) and new embeddings, old classes only.

    Neither side is normalised.

    Source: Shen et al., "Towards Backward-Compatible Representation Learning" (BCT), CVPR 2020,
    https://arxiv.org/abs/2003.11942.

    >>> new, old_classifier = [[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [0.0, 3.0]]
    >>> round(float(bct(new, [0, 7], jnp.asarray(old_classifier))), 4)  # class 7 is new
    0.0486
    """
    known, labels = known_labels(labels, old_classifier.shape[0])
    logits = jnp.asarray(embedding, jnp.float32) @ jax.lax.stop_gradient(old_classifier).T
    return result(masked_mean(cross_entropy(logits, labels), known), known, with_share)


def bct_ract(
    embedding: jax.Array,
    labels: jax.Array,
    old_classifier: jax.Array,
    logits: jax.Array,
    *,
    with_share: bool = False,
) -> jax.Array:
    """Return BCT in which new classes compete too: cross-entropy over old and new logits together.

    The logits ``old_classifier · f`` (N, C_old) are followed by the new classifier's ``logits``
    (N, C_new), in which the sample's own class is masked out; the target is the old class. Only
    samples of old classes count. The published code fails on a batch that mixes old and new
    classes; here the new ones are left out, as in BCT.

    Source: Zhang et al., "Hot-Refresh Model Upgrades with Regression-Alleviating Compatible
    Training" (RACT), ICLR 2022, https://arxiv.org/abs/2201.09724, applied to BCT's classifier.
    """
    known, old_labels = known_labels(labels, old_classifier.shape[0])
    old_logits = jnp.asarray(embedding, jnp.float32) @ jax.lax.stop_gradient(old_classifier).T
    new_logits = jnp.where(own_class(labels, logits.shape[-1]), MASKED, logits)
    both = jnp.concatenate([old_logits, new_logits], axis=-1)
    return result(masked_mean(cross_entropy(both, old_labels), known), known, with_share)


def unibct(
    embedding: jax.Array,
    labels: jax.Array,
    old_centers: jax.Array,
    scale: float = 30.0,
    margin: float = 0.3,
    *,
    with_share: bool = False,
) -> jax.Array:
    """Return the ArcFace cross-entropy of new embeddings and old class centres, old classes only.

    old_centers (C_old, D) and embeddings are normalised here. A centre of zeros marks a class that
    the old model never saw: it is not a candidate, and its samples count as those of a new class
    (the published code stops with an error).

    Source: Zhang et al., "Towards Universal Backward-Compatible Representation Learning"
    (UniBCT), IJCAI 2022, https://arxiv.org/abs/2203.01583.

    >>> new, old_centers = [[1.0, 0.8], [0.9, 1.0]], [[1.0, 0.0], [0.0, 1.0]]
    >>> round(float(unibct(new, [0, 1], old_centers)), 3)
    3.372
    """
    old_centers = jax.lax.stop_gradient(jnp.asarray(old_centers, jnp.float32))
    seen = jnp.any(old_centers != 0, axis=-1)
    known, labels = known_labels(labels, old_centers.shape[0])
    known &= seen[labels]
    logits = arcface(cosine_logits(embedding, old_centers), labels, scale, margin)
    logits = jnp.where(seen[None, :], logits, MASKED)
    return result(masked_mean(cross_entropy(logits, labels), known), known, with_share)
