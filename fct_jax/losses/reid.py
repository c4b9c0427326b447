"""Losses and margin heads of person re-identification.

The losses take embeddings (N, D) and labels (N,); the heads make logits from cosines (N, C), see
:func:`fct_jax.losses.cosine_logits`. AM-softmax is :func:`fct_jax.losses.cosface`.
"""

import math

import jax
import jax.numpy as jnp

from fct_jax.losses.numerics import known_labels, masked_mean, own_class, safe_sqrt

# Squared distances below this count as zero and get no gradient.
_SMALLEST_SQUARED_DISTANCE = 1e-12


def hardest_distances(embedding: jax.Array, labels: jax.Array) -> tuple[jax.Array, ...]:
    """Return each sample's distance to its farthest same-label and nearest other-label sample.

    Distances are Euclidean and within the batch. Returns ``(positive (N,), negative (N,),
    has_negative (N,))``; the sample itself counts as a positive. If the batch holds only one label,
    ``negative`` is meaningless and ``has_negative`` is False.
    """
    embedding = jnp.asarray(embedding, jnp.float32)
    norms = jnp.sum(embedding * embedding, axis=-1)
    squared = norms[:, None] + norms[None, :] - 2.0 * embedding @ embedding.T
    labels = jnp.asarray(labels)
    same = labels[:, None] == labels[None, :]
    # Square roots are taken only of the chosen squared distances.
    positive = jnp.max(jnp.where(same, squared, -jnp.inf), axis=-1)
    has_negative = ~jnp.all(same, axis=-1)
    negative = jnp.min(jnp.where(same, jnp.inf, squared), axis=-1)
    negative = jnp.where(has_negative, negative, 0.0)
    return _root(positive), _root(negative), has_negative


def batch_hard_triplet(
    embedding: jax.Array,
    labels: jax.Array,
    margin: float | None = 0.3,
    hard_factor: float = 0.0,
) -> jax.Array:
    """Return the triplet loss with each sample's hardest positive and negative. Scalar.

    The loss is the mean of ``max(p - n + margin, 0)``, or, without a margin (None), of
    ``log(1 + exp(p - n))``, where p and n are the distances to the hardest positive and negative.
    ``hard_factor`` h first stretches p by 1 + h and shrinks n by 1 - h. Normalise the embeddings
    first to compare directions. Samples without any negative are left out; if none is left, the
    loss is 0. The published code needs equally many samples of each identity; this one does not.

    Source: Hermans et al., "In Defense of the Triplet Loss for Person Re-Identification", 2017,
    https://arxiv.org/abs/1703.07737.

    >>> vectors = [[0.0, 0.0], [0.0, 1.0], [3.0, 0.0]]
    >>> round(float(batch_hard_triplet(vectors, [0, 0, 1], margin=3.0)), 3)
    0.613
    """
    positive, negative, counts = hardest_distances(embedding, labels)
    gap = positive * (1.0 + hard_factor) - negative * (1.0 - hard_factor)
    values = jax.nn.softplus(gap) if margin is None else jnp.maximum(gap + margin, 0.0)
    return masked_mean(values, counts)


def center_loss(embedding: jax.Array, labels: jax.Array, centers: jax.Array) -> jax.Array:
    """Return the mean of ``‖f - c_y‖²`` with learned centers (C, D), known labels only. Scalar.

    Source: Wen et al., "A Discriminative Feature Learning Approach for Deep Face Recognition",
    ECCV 2016.

    >>> float(center_loss([[1.0, 0.0]], [0], [[0.0, 0.0], [5.0, 5.0]]))
    1.0
    """
    centers = jnp.asarray(centers, jnp.float32)
    known, labels = known_labels(labels, centers.shape[0])
    squared = jnp.sum(jnp.square(jnp.asarray(embedding, jnp.float32) - centers[labels]), axis=-1)
    return masked_mean(squared, known)


def margin_contrastive(embedding: jax.Array, labels: jax.Array, margin: float = 0.3) -> jax.Array:
    """Return the cosine contrastive loss over all pairs of unit embeddings. Scalar.

    For cosines s, a sample's loss is the sum of ``1 - s`` over the other samples of its label plus
    the sum of those s above ``margin`` over samples of other labels; the result is the mean over
    the batch. (In the published code a sample is its own pair whenever rounding makes its product
    with itself less than one.)

    Source: Hadsell et al., "Dimensionality Reduction by Learning an Invariant Mapping", CVPR
    2006, in its cosine form.
    """
    embedding = jnp.asarray(embedding, jnp.float32)
    similarity = embedding @ embedding.T
    labels = jnp.asarray(labels)
    same = labels[:, None] == labels[None, :]
    pull = jnp.where(same & ~jnp.eye(len(labels), dtype=bool), 1.0 - similarity, 0.0)
    push = jnp.where(~same & (similarity > margin), similarity, 0.0)
    return jnp.mean(jnp.sum(pull + push, axis=-1))


def arcface_monotonic(
    cosine: jax.Array,
    labels: jax.Array,
    scale: float = 30.0,
    margin: float = 0.5,
    easy_margin: bool = False,
    smoothing: float = 0.0,
) -> jax.Array:
    """Return ArcFace logits (N, C) that stay monotonic if angle plus margin exceeds π.

    The logit at the label is ``scale · cos(θ + margin)`` while ``cos θ > cos(π - margin)``, else
    ``scale · (cos θ - margin · sin(π - margin))``. With ``easy_margin`` the margin applies only
    while ``cos θ > 0``, and the logit is plain ``scale · cos θ`` otherwise. ``smoothing`` e gives
    the label's column the share 1 - e + e/C of the margin and every other column e/C.

    Source: Deng et al., "ArcFace", CVPR 2019, https://arxiv.org/abs/1801.07698, and its code.
    """
    cosine = jnp.asarray(cosine, jnp.float32)
    clamped = jnp.clip(cosine, -1.0, 1.0)
    sine = safe_sqrt((1.0 - clamped) * (1.0 + clamped))
    with_margin = clamped * math.cos(margin) - sine * math.sin(margin)
    if easy_margin:
        with_margin = jnp.where(clamped > 0, with_margin, clamped)
    else:
        beyond = clamped - margin * math.sin(math.pi - margin)
        with_margin = jnp.where(clamped > math.cos(math.pi - margin), with_margin, beyond)
    own = own_class(labels, cosine.shape[-1]).astype(jnp.float32)
    share = (1.0 - smoothing) * own + smoothing / cosine.shape[-1]
    return scale * (share * with_margin + (1.0 - share) * clamped)


def circle(
    cosine: jax.Array, labels: jax.Array, scale: float = 256.0, margin: float = 0.25
) -> jax.Array:
    """Return Circle loss's logits (N, C), for softmax cross-entropy.

    For a cosine s and margin m, the logit is ``scale · a_p · (s - (1 - m))`` at the label and
    ``scale · a_n · (s - m)`` elsewhere, with ``a_p = max(1 + m - s, 0)`` and
    ``a_n = max(s + m, 0)``, which carry no gradient.

    Source: Sun et al., "Circle Loss", CVPR 2020, https://arxiv.org/abs/2002.10857.
    """
    cosine = jnp.asarray(cosine, jnp.float32)
    fixed = jax.lax.stop_gradient(cosine)
    positive = jnp.maximum(1.0 + margin - fixed, 0.0) * (cosine - (1.0 - margin))
    negative = jnp.maximum(fixed + margin, 0.0) * (cosine - margin)
    return scale * jnp.where(own_class(labels, cosine.shape[-1]), positive, negative)


def _root(squared):
    apart = squared > _SMALLEST_SQUARED_DISTANCE
    return jnp.sqrt(jnp.where(apart, squared, _SMALLEST_SQUARED_DISTANCE))
