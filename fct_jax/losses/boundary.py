"""Backward compatibility through the old classes' centres and radii: LCE and AdvBCT.

Samples do not count if their label is outside the statistics, if the old model never saw their
class, or if the class has fewer than two kept distances (its radius is then meaningless). If no
sample is left, the loss is 0 with zero gradient. ``with_share=True`` returns ``(value, share)``
with the share of the batch that was averaged over. Statistics come from
:func:`fct_jax.class_statistics` and never get a gradient.
"""

import jax
import jax.numpy as jnp

from fct_jax.errors import UserError, unknown
from fct_jax.losses.numerics import (
    angle,
    distance,
    known_labels,
    masked_mean,
    normalize,
    result,
)
from fct_jax.storage.class_statistics import ClassStatistics


def lce(
    embedding: jax.Array,
    labels: jax.Array,
    stats: ClassStatistics,
    classifier: jax.Array,
    *,
    transformed_center: jax.Array | None = None,
    with_share: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Return LCE's two parts, ``(boundary, alignment)``, to be added. Scalars.

    The boundary part is the mean of ``max(arccos(ĉ_y · f̂) - θ_y, 0)``, with angles in radians;
    the alignment part is the mean of ``1 - ĉ_y · ŵ_y``, where w_y is the row of the new classifier
    (C_new, D). Both are averaged over every sample whose class has at least two kept angles.
    ``transformed_center`` (C, D) replaces the centres if a learned transformation moves old
    embeddings to the new space; unlike the statistics it does get a gradient.
    ``stats`` must be of kind "angle"; raises UserError for Euclidean radii.

    Source: Meng et al., "Learning Compatible Embeddings" (LCE), ICCV 2021,
    https://arxiv.org/abs/2108.01958.

    >>> from fct_jax import class_statistics
    >>> old = [[1.0, 0.1], [1.0, -0.1], [0.1, 1.0], [-0.1, 1.0]]
    >>> stats = class_statistics(old, [0, 0, 1, 1], 2, kind="angle")
    >>> [round(float(part), 3) for part in lce([[1.0, 0.5], [0.2, 1.0]], [0, 1], stats, jnp.eye(2))]
    [0.231, 0.0]
    """
    _require_kind(stats, "angle", "lce")
    counts, labels, center, radius = _old_class(labels, stats, stats.radius)
    # The classifier may have fewer classes than the old model's statistics.
    has_row, row = known_labels(labels, classifier.shape[0])
    counts &= has_row
    if transformed_center is not None:
        center = jnp.asarray(transformed_center, jnp.float32)[labels]
    center = normalize(center)
    excess = angle(jnp.sum(normalize(embedding) * center, axis=-1)) - radius
    boundary = masked_mean(jnp.maximum(excess, 0.0), counts)
    own_weight = normalize(jnp.asarray(classifier)[row])
    alignment = masked_mean(1.0 - jnp.sum(center * own_weight, axis=-1), counts)
    return result((boundary, alignment), counts, with_share)


def elastic_radius(radius: jax.Array, elastic: jax.Array, threshold: float = 1.0) -> jax.Array:
    """Return AdvBCT's learned radius ``R ± |R - T| · sigmoid(w)``, between R and T. Any shape.

    The sign is plus where R < T and minus otherwise.

    Source: AdvBCT, CVPR 2023, https://arxiv.org/abs/2305.02610.
    """
    return radius + jax.nn.sigmoid(elastic) * (threshold - radius)


def advbct_boundary(
    embedding: jax.Array,
    labels: jax.Array,
    stats: ClassStatistics,
    elastic: jax.Array | None = None,
    threshold: float = 1.0,
    *,
    radius: str = "max",
    with_share: bool = False,
) -> jax.Array:
    """Return AdvBCT's loss ``max(‖f̂ - c_y‖ - R_y, 0)``, the mean over violators. Scalar.

    Only the *violating* samples are averaged over, and the centre is not normalised. The learned
    weights ``elastic`` (C_new,) turn R into :func:`elastic_radius` with ``threshold`` T. ``radius``
    "max" takes the largest kept distance; "min" takes the smallest, as the published code does
    without elasticity, contrary to its paper. ``stats`` must be of kind "euclidean". Raises
    UserError for angles, an unknown radius, statistics without smallest radii, or fewer elastic
    weights than classes.

    Source: Pan et al., "Boundary-Aware Backward-Compatible Representation via Adversarial
    Learning in Image Retrieval" (AdvBCT), CVPR 2023, https://arxiv.org/abs/2305.02610.

    >>> from fct_jax import class_statistics
    >>> old = [[1.0, 0.1], [1.0, -0.1], [0.1, 1.0], [-0.1, 1.0]]
    >>> stats = class_statistics(old, [0, 0, 1, 1], 2)
    >>> round(float(advbct_boundary(jnp.eye(2), [0, 1], stats)), 3)  # both lie inside
    0.0
    >>> round(float(advbct_boundary(jnp.eye(2), [1, 0], stats)), 3)
    1.311
    """
    _require_kind(stats, "euclidean", "advbct_boundary")
    counts, labels, center, limit = _old_class(labels, stats, _radii(stats, radius))
    if elastic is not None:
        elastic = jnp.asarray(elastic)
        if elastic.shape[0] < stats.center.shape[0]:
            raise UserError(
                f"advbct_boundary: {elastic.shape[0]} elastic weights for "
                f"{stats.center.shape[0]} old classes; give one for each class of the new model"
            )
        limit = elastic_radius(limit, elastic[labels], threshold)
    excess = distance(normalize(embedding), center) - limit
    violates = counts & (excess > 0)
    return result(masked_mean(excess, violates), violates, with_share)


def advbct_point(
    embedding: jax.Array,
    old_embedding: jax.Array,
    labels: jax.Array,
    stats: ClassStatistics,
    *,
    with_share: bool = False,
) -> jax.Array:
    """Return AdvBCT's ablation: be no farther from the class centre than the old point. Scalar.

    The loss is the mean over violators of ``max(‖f̂ - ĉ_y‖ - ‖ô - ĉ_y‖, 0)``. Unlike
    `advbct_boundary` it normalises the centre and, because it needs no radius, also counts classes
    with a single kept distance.

    Source: AdvBCT, CVPR 2023, ablation study (its public code combines it with Hot-refresh).
    """
    counts, _, center, _ = _old_class(labels, stats, stats.radius, least_kept=1)
    center = normalize(center)
    old = jax.lax.stop_gradient(normalize(old_embedding))
    excess = distance(normalize(embedding), center) - distance(old, center)
    violates = counts & (excess > 0)
    return result(masked_mean(excess, violates), violates, with_share)


def _old_class(labels, stats, radii, least_kept=2):
    """Return which samples count, their labels (0 for the others), and their class's statistics."""
    known, labels = known_labels(labels, stats.center.shape[0])
    counts = known & (jnp.asarray(stats.num_kept)[labels] >= least_kept)
    center = jax.lax.stop_gradient(jnp.asarray(stats.center, jnp.float32)[labels])
    radius = jax.lax.stop_gradient(jnp.asarray(radii, jnp.float32)[labels])
    return counts, jnp.where(counts, labels, 0), center, radius


def _radii(stats, which):
    if which == "max":
        return stats.radius
    if which != "min":
        raise unknown("radius", which, ("max", "min"))
    if stats.smallest_radius is None:
        raise UserError(
            'advbct_boundary: radius="min" needs statistics that hold smallest_radius; '
            "compute them with fct_jax.class_statistics"
        )
    return stats.smallest_radius


def _require_kind(stats, kind, loss):
    if stats.kind not in (None, kind):
        raise UserError(
            f'{loss}: the class statistics hold "{stats.kind}" radii; '
            f'compute them with class_statistics(kind="{kind}")'
        )
