"""The objectives of a transformation: FCT's alignment and FastFill's uncertainty weighting."""

import jax
import jax.numpy as jnp

from fct_jax.errors import UserError, unknown

LOG_VARIANCE_LIMIT = 20.0

_EPSILON = 1e-12


def alignment(pred: jax.Array, target: jax.Array, kind: str = "mse") -> jax.Array:
    """Return how far transformed embeddings lie from the new model's: (N, D), (N, D) -> (N,).

    ``kind`` is "mse" for the mean over D of squared differences, "l1" for the mean over D of
    absolute differences, or "cosine" for ``1 - a·b / sqrt((|a|² + 1e-12)(|b|² + 1e-12))``, which
    is 1 for a zero vector. FCT's loss is the mean of the "mse" values. Raises UserError if the
    shapes differ or the kind is unknown.

    Source: FCT, CVPR 2022, https://arxiv.org/abs/2112.02805, and FastFill, ICLR 2023,
    https://arxiv.org/abs/2303.04766.

    >>> alignment([[1.0, 0.0], [2.0, 2.0]], [[1.0, 0.0], [0.0, 0.0]]).tolist()
    [0.0, 4.0]
    """
    pred = jnp.asarray(pred, jnp.float32)
    target = jnp.asarray(target, jnp.float32)
    if pred.shape != target.shape or pred.ndim != 2:
        raise UserError(
            f"alignment: transformed embeddings {pred.shape} and targets {target.shape} must "
            "have the same shape (samples, dimension)"
        )
    if kind == "mse":
        return jnp.mean(jnp.square(pred - target), axis=-1)
    if kind == "l1":
        return jnp.mean(jnp.abs(pred - target), axis=-1)
    if kind == "cosine":
        # Two roots instead of one, because the product overflows for norms above 1e9.
        norm = jnp.sqrt(jnp.sum(pred * pred, axis=-1) + _EPSILON)
        target_norm = jnp.sqrt(jnp.sum(target * target, axis=-1) + _EPSILON)
        return 1.0 - jnp.sum(pred * target, axis=-1) / norm / target_norm
    raise unknown("alignment", kind, ("mse", "l1", "cosine"))


def uncertainty_weighted(
    per_sample: jax.Array, log_variance: jax.Array, mu: float = 0.5
) -> jax.Array:
    """Return FastFill's objective ``mean_i(½ · exp(-s_i) · l_i + mu · s_i)``. Scalar.

    per_sample l (N,) is the loss of each sample, log_variance s (N,) its predicted uncertainty.

    The published code does not bound s, so exp(-s) overflows for s below -88. Here the exponential
    uses s clamped to ±20, so the value is finite for any finite s. Inside ±20 value and
    gradient are exact; outside, the gradient is that at the bound, which leads s back inside.

    Raises UserError, when traced, unless log_variance is one number per sample: the published
    code multiplies a vector-valued log-variance along the wrong axis.

    Source: "FastFill: Efficient Compatible Model Update", ICLR 2023,
    https://arxiv.org/abs/2303.04766.

    >>> round(float(uncertainty_weighted([4.0, 0.0], [1.0, -1.0])), 3)
    0.368
    """
    per_sample = jnp.asarray(per_sample, jnp.float32)
    log_variance = jnp.asarray(log_variance, jnp.float32)
    if per_sample.ndim != 1 or log_variance.shape != per_sample.shape:
        raise UserError(
            f"uncertainty_weighted: log-variance {log_variance.shape} must be one number per "
            f"sample, like the losses {per_sample.shape}"
        )
    precision = jnp.exp(-_clamp(log_variance))
    return jnp.mean(0.5 * precision * per_sample) + mu * jnp.mean(log_variance)


@jax.custom_jvp
def _clamp(log_variance):
    """Clip to ±LOG_VARIANCE_LIMIT; the gradient passes as if it did not clip."""
    return jnp.clip(log_variance, -LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)


@_clamp.defjvp
def _clamp_jvp(primals, tangents):
    return _clamp(*primals), tangents[0]
