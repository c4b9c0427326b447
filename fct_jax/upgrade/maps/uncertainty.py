"""How wrong a map is for a vector: a small regressor of the log squared error."""

import numpy as np

from fct_jax.upgrade.maps.linear import fold_sums, ridge
from fct_jax.upgrade.maps.map import regressor_features

HIDDEN = 256  # rectified random projections
SAMPLE = 20_000  # pairs that the regressor is fitted on, at most
FOLDS = 5
_SMALLEST = 1e-12  # a squared error below counts as this one


def log_squared_error(mapped: np.ndarray, new: np.ndarray) -> np.ndarray:
    """(N,): the logarithm of the mean over dimensions of the squared error."""
    return np.log(np.maximum(np.mean(np.square(mapped - new), axis=1), _SMALLEST))


def fit_regressor(old, norm, target, seed: int) -> dict[str, np.ndarray]:
    """Weights of the regressor, as a map holds them.

    A ridge regression of the target on the features of ``maps.regressor_features``, in which
    nothing is trained step by step, so that it is exact, quick and the same everywhere.

    Args:
      old: (N, do) float32 old vectors.
      norm: (N,) length of each mapped vector before it is scaled to unit length.
      target: (N,) log squared errors of pairs that the map had not been fitted on.
      seed: of the random projections.
    """
    old = np.asarray(old, np.float32)
    dim = old.shape[1]
    rng = np.random.default_rng(seed)
    spread = float(old.std(axis=0).mean()) or 1.0
    weights = {
        "uncertainty_mean": old.mean(axis=0),
        "uncertainty_scale": np.float32(1 / spread),
        "uncertainty_hidden": rng.normal(size=(dim, HIDDEN)).astype(np.float32) / dim**0.5,
        "uncertainty_hidden_bias": rng.uniform(-1, 1, HIDDEN).astype(np.float32),
    }
    features = regressor_features(weights, old, norm[:, None])
    fold = rng.permutation(len(old)) % min(FOLDS, len(old))
    fitted, _ = ridge(*fold_sums(features, target[:, None], fold, int(fold.max()) + 1))
    return {
        **weights,
        "uncertainty_weight": fitted.weight[:, 0],
        "uncertainty_bias": fitted.bias[0],
        # No guess beyond what was seen.
        "uncertainty_range": np.array([target.min(), target.max()]),
    }
