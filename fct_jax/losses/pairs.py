"""Backward compatibility through pairs of embeddings: Hot-refresh, contrastive, triplet, L2.

New and old embeddings (N, D) of the same N images are raw and normalised here; the old ones never
get a gradient. A sample's positive is its own image's old embedding; its negatives are all
images of *other* labels in the global batch: under ``jit`` with sharded arrays the in-batch
matrices span all devices. Other samples of the same label are neither positive nor negative.

New embeddings that serve as negatives carry no gradient, because the published code gathers them
from all processes without one; ``gather_gradient=True`` lets the gradient flow. ``top_k`` keeps
that many of each sample's hardest negatives, or all if there are fewer; 0 keeps all.
"""

import jax
import jax.numpy as jnp

from fct_jax.losses.numerics import MASKED, distance, normalize

# Squared distances below this count as zero and get no gradient, as in the published code.
_SMALLEST_SQUARED_DISTANCE = 1e-12


def hot_refresh(
    embedding: jax.Array,
    old_embedding: jax.Array,
    labels: jax.Array,
    temperature: float = 0.01,
    top_k: int = 10,
    *,
    gather_gradient: bool = False,
) -> jax.Array:
    """Return Hot-refresh's contrastive loss with old *and* new negatives. Scalar.

    The loss is the softmax cross-entropy, at ``temperature``, of the positive ``f̂_i · ô_i``
    against the ``top_k`` largest ``f̂_i · ô_j`` and the ``top_k`` largest ``f̂_i · f̂_j`` over
    other labels.

    Source: Zhang et al., "Hot-Refresh Model Upgrades with Regression-Alleviating Compatible
    Training in Image Retrieval", ICLR 2022, https://arxiv.org/abs/2201.09724.

    >>> new, old = [[1.0, 0.0], [0.6, 0.8]], [[1.0, 0.0], [0.0, 1.0]]
    >>> round(float(hot_refresh(new, old, [0, 1], temperature=0.1)), 3)
    0.129
    """
    new, old, columns = _pair(embedding, old_embedding, gather_gradient)
    same = _same_label(labels)
    negatives = [_largest(new @ old.T, same, top_k), _largest(new @ columns.T, same, top_k)]
    return _contrast(new, old, negatives, temperature)


def contrastive(
    embedding: jax.Array,
    old_embedding: jax.Array,
    labels: jax.Array,
    temperature: float = 0.01,
    top_k: int = 10,
) -> jax.Array:
    """Return :func:`hot_refresh` with old negatives alone. Scalar.

    Source: the baseline of "Hot-Refresh Model Upgrades …", ICLR 2022.

    >>> new, old = [[1.0, 0.0], [0.6, 0.8]], [[1.0, 0.0], [0.0, 1.0]]
    >>> round(float(contrastive(new, old, [0, 1], temperature=0.1)), 3)
    0.063
    """
    new, old, _ = _pair(embedding, old_embedding, False)
    return _contrast(new, old, [_largest(new @ old.T, _same_label(labels), top_k)], temperature)


def triplet(
    embedding: jax.Array,
    old_embedding: jax.Array,
    labels: jax.Array,
    margin: float = 0.8,
    top_k: int = 10,
) -> jax.Array:
    """Return a triplet loss whose negatives are the nearest old embeddings of other labels. Scalar.

    The loss is the mean over samples i and their ``top_k`` nearest j of
    ``max(‖f̂_i - ô_i‖ - ‖f̂_i - ô_j‖ + margin, 0)``. The divisor is N · min(top_k, N), so missing
    negatives count as zeros, as published.

    Source: the triplet baseline of "Hot-Refresh Model Upgrades …", ICLR 2022.

    >>> new, old = [[1.0, 0.0], [0.6, 0.8]], [[1.0, 0.0], [0.0, 1.0]]
    >>> round(float(triplet(new, old, [0, 1], top_k=1)), 3)
    0.269
    """
    new, old, _ = _pair(embedding, old_embedding, False)
    return _hinge(new, old, old, _same_label(labels), margin, top_k)


def triplet_ract(
    embedding: jax.Array,
    old_embedding: jax.Array,
    labels: jax.Array,
    margin: float = 0.8,
    top_k: int = 10,
    *,
    gather_gradient: bool = False,
) -> jax.Array:
    """Return :func:`triplet` plus the same with the nearest *new* embeddings as negatives. Scalar.

    Source: "Hot-Refresh Model Upgrades …" (RACT), ICLR 2022, applied to the triplet loss.
    """
    new, old, columns = _pair(embedding, old_embedding, gather_gradient)
    same = _same_label(labels)
    against_old = _hinge(new, old, old, same, margin, top_k)
    return against_old + _hinge(new, old, columns, same, margin, top_k)


def l2(embedding: jax.Array, old_embedding: jax.Array) -> jax.Array:
    """Return the mean over all N · D entries of ``(f̂ - ô)²``. Scalar.

    Source: the direct-alignment baseline of "Towards Backward-Compatible Representation
    Learning", CVPR 2020, https://arxiv.org/abs/2003.11942.

    >>> float(l2([[2.0, 0.0]], [[0.0, 1.0]]))
    1.0
    """
    new, old, _ = _pair(embedding, old_embedding, False)
    return jnp.mean(jnp.square(new - old))


def _pair(embedding, old_embedding, gather_gradient):
    """Return normalised new and old embeddings, and the new ones in their role as negatives."""
    new = normalize(embedding)
    old = jax.lax.stop_gradient(normalize(old_embedding))
    return new, old, new if gather_gradient else jax.lax.stop_gradient(new)


def _same_label(labels):
    labels = jnp.asarray(labels)
    return labels[:, None] == labels[None, :]


def _largest(scores, excluded, top_k):
    """Return each row's ``top_k`` largest scores; excluded columns come last and are masked."""
    scores = jnp.where(excluded, MASKED, scores)
    top_k = min(top_k, scores.shape[-1])
    return jax.lax.top_k(scores, top_k)[0] if top_k > 0 else scores


def _contrast(new, old, negatives, temperature):
    positive = jnp.sum(new * old, axis=-1, keepdims=True)
    logits = jnp.concatenate([positive, *negatives], axis=-1) / temperature
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - logits[:, 0])


def _hinge(new, old, candidates, same, margin, top_k):
    squared = (
        jnp.sum(new * new, axis=-1)[:, None]
        + jnp.sum(candidates * candidates, axis=-1)[None, :]
        - 2.0 * new @ candidates.T
    )
    # Square roots are taken only of the hardest squared distances, so that none is of zero.
    nearest = -_largest(-squared, same, top_k)
    far_enough = nearest > _SMALLEST_SQUARED_DISTANCE
    negative = jnp.sqrt(jnp.where(far_enough, nearest, _SMALLEST_SQUARED_DISTANCE))
    positive = distance(new, old)[:, None]
    return jnp.mean(jnp.maximum(positive - negative + margin, 0.0))
