"""Classification losses: cross-entropy, margin logits, distillation of old logits.

Embeddings and logits are float arrays, labels integers; losses are float32.
"""

import jax
import jax.numpy as jnp

from fct_jax.errors import UserError, unknown
from fct_jax.losses.numerics import normalize, own_class, safe_sqrt


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the softmax cross-entropy of each sample: logits (N, C), labels (N,) -> (N,).

    A label outside [0, C) gives NaN, so that a wrong number of classes does not go unnoticed.

    >>> round(float(cross_entropy([[0.0, 0.0]], [1])[0]), 3)
    0.693
    """
    return label_smoothed_cross_entropy(logits, labels, smoothing=0.0)


def label_smoothed_cross_entropy(
    logits: jax.Array, labels: jax.Array, smoothing: float = 0.1
) -> jax.Array:
    """Return the cross-entropy (N,) with ``smoothing`` of the target spread over all classes.

    The loss is ``(1 - smoothing) · (-log p_y) + smoothing · mean_c(-log p_c)``; the label's own
    class also gets its part of the spread share. logits (N, C), labels (N,) -> (N,). A label
    outside [0, C) gives NaN.

    Source: Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016, section 7,
    https://arxiv.org/abs/1512.00567.
    """
    log_probs = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32), axis=-1)
    num_classes = log_probs.shape[-1]
    labels = jnp.asarray(labels)
    # A negative label would otherwise index from the end.
    labels = jnp.where(labels < 0, num_classes, labels)
    own = jnp.take_along_axis(log_probs, labels[:, None], axis=-1, mode="fill")[:, 0]
    return -(1.0 - smoothing) * own - smoothing * jnp.mean(log_probs, axis=-1)


def cosine_logits(embedding: jax.Array, classifier: jax.Array) -> jax.Array:
    """Return cosines (N, C) of embeddings (N, D) and classifier rows (C, D), for the margins."""
    return normalize(embedding) @ normalize(classifier).T


def arcface(cosine: jax.Array, labels: jax.Array, scale: float, margin: float) -> jax.Array:
    """Return ``scale · cos(θ_y + margin)`` at the label and ``scale · cos θ`` elsewhere, (N, C).

    cosine (N, C), labels (N,), margin in radians -> logits (N, C). A label outside [0, C), such
    as -1, gets no margin. No threshold is applied when θ + margin exceeds π. Cosines beyond ±1
    are clamped, with finite gradients (the published code gives NaN).

    Source: Deng et al., "ArcFace", CVPR 2019, eq. 3, https://arxiv.org/abs/1801.07698.

    >>> round(float(arcface([[1.0, 0.0]], [0], scale=30.0, margin=0.3)[0, 0]), 2)
    28.66
    """
    cosine = jnp.asarray(cosine, jnp.float32)
    clamped = jnp.clip(cosine, -1.0, 1.0)
    sine = safe_sqrt((1.0 - clamped) * (1.0 + clamped))
    with_margin = clamped * jnp.cos(margin) - sine * jnp.sin(margin)
    return scale * jnp.where(own_class(labels, cosine.shape[-1]), with_margin, cosine)


def cosface(cosine: jax.Array, labels: jax.Array, scale: float, margin: float) -> jax.Array:
    """Return ``scale · (cos θ_y - margin)`` at the label and ``scale · cos θ`` elsewhere, (N, C).

    cosine (N, C), labels (N,) -> logits (N, C). A label outside [0, C) gets no margin.

    Source: Wang et al., "CosFace", CVPR 2018, eq. 4, https://arxiv.org/abs/1801.09414
    (AM-softmax is the same function).

    >>> cosface(jnp.eye(2), [0, 1], scale=30.0, margin=0.5).tolist()
    [[15.0, 0.0], [0.0, 15.0]]
    """
    cosine = jnp.asarray(cosine, jnp.float32)
    own = own_class(labels, cosine.shape[-1])
    return scale * (cosine - margin * own.astype(cosine.dtype))


def lwf(logits: jax.Array, old_logits: jax.Array, temperature: float = 2.0) -> jax.Array:
    """Return the loss of learning without forgetting: keep the old model's soft answers. Scalar.

    The loss is the mean over the batch of the cross-entropy from ``softmax(old_logits / T)`` to
    ``softmax(logits / T)``. Both arguments have shape (N, C_old): ``logits`` are the new model's
    for the old classes (slice a larger classifier first), ``old_logits`` the frozen model's, which
    get no gradient. Raises UserError if the shapes differ.

    Source: Li and Hoiem, "Learning without Forgetting", ECCV 2016, eq. 2 and 3 (T = 2),
    https://arxiv.org/abs/1606.09282; its renormalised powers of probabilities are the softmax
    of logits over T.

    >>> logits = jnp.array([[1.0, 0.0]])
    >>> round(float(lwf(logits, logits)), 3)  # the entropy of the old answers
    0.663
    """
    _same_shape(logits, old_logits)
    old, _, new_log = _softened(logits, old_logits, temperature)
    return -jnp.mean(jnp.sum(old * new_log, axis=-1))


def focal_distillation(
    logits: jax.Array,
    old_logits: jax.Array,
    labels: jax.Array,
    alpha: float = 1.0,
    beta: float = 5.0,
    temperature: float = 100.0,
    kind: str = "kl",
) -> jax.Array:
    """Return a distillation loss in which samples that the old model gets right count more. Scalar.

    The loss is the mean over the batch of ``(alpha + beta · 1[argmax old_logits = label]) · d``,
    where d depends on the kind:

    - "kl": ``T² · KL(softmax(old_logits / T) ‖ softmax(logits / T))``,
    - "l2": ``½ ‖logits - old_logits‖²``.

    logits and old_logits (N, C_old) are those of :func:`lwf`, labels has shape (N,). The old model
    is never right about a class that it does not know, so such samples have weight alpha. No
    gradient reaches ``old_logits``. Raises UserError if the shapes differ or the kind is unknown.

    Source: Yan et al., "Positive-Congruent Training", CVPR 2021 (focal distillation, with its
    alpha and beta); the factor T² keeps the gradient's size independent of the temperature, as
    in Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
    """
    _same_shape(logits, old_logits)
    if kind == "kl":
        old, old_log, new_log = _softened(logits, old_logits, temperature)
        difference = temperature**2 * jnp.sum(old * (old_log - new_log), axis=-1)
    elif kind == "l2":
        gap = jnp.asarray(logits, jnp.float32) - jax.lax.stop_gradient(old_logits)
        difference = 0.5 * jnp.sum(jnp.square(gap), axis=-1)
    else:
        raise unknown("focal distillation", kind, ("kl", "l2"))
    old_is_right = jnp.argmax(old_logits, axis=-1) == jnp.asarray(labels)
    return jnp.mean((alpha + beta * old_is_right) * difference)


def _softened(logits, old_logits, temperature):
    """Return old probabilities, their logarithms and the new log-probabilities at a temperature."""
    old = jax.lax.stop_gradient(jnp.asarray(old_logits, jnp.float32)) / temperature
    old_log = jax.nn.log_softmax(old, axis=-1)
    new_log = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32) / temperature, axis=-1)
    return jnp.exp(old_log), old_log, new_log


def _same_shape(logits, old_logits) -> None:
    if logits.shape != old_logits.shape:
        raise UserError(
            f"distillation: new logits {logits.shape} and old logits {old_logits.shape} differ; "
            "give the new logits of the old classes alone"
        )
