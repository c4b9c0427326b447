"""Shared parts of the compatibility losses' tests: tolerance, statistics and base loss."""

import jax.numpy as jnp
import numpy as np

from fct_jax import losses
from fct_jax.storage.class_statistics import ClassStatistics


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max() + 2e-6)


def statistics(arrays, num_classes, kind, prefix=""):
    """Return ClassStatistics of the ragged lists in the golden file."""
    values, offsets, ids = (
        arrays[prefix + name]
        for name in (
            "theta_values" if kind == "angle" else "radius_values",
            "theta_offsets" if kind == "angle" else "radius_offsets",
            "old_class_ids",
        )
    )
    centers = arrays[prefix + "old_centers"]
    center = np.zeros((num_classes, centers.shape[1]), np.float32)
    radius, smallest = np.zeros((2, num_classes), np.float32)
    kept = np.zeros(num_classes, np.int32)
    for row, class_id in enumerate(ids):
        kept_values = values[offsets[row] : offsets[row + 1]]
        center[class_id] = centers[row]
        radius[class_id], smallest[class_id] = kept_values[-1], kept_values[0]
        kept[class_id] = len(kept_values)
    return ClassStatistics(center, radius, kept, smallest, kind)


def base_loss(kind, feat, w_new, labels):
    return jnp.mean(losses.cross_entropy(losses.base_logits(kind, feat, w_new, labels), labels))
