"""The uncertainty of a map for a vector: a small regressor of the log squared error."""

import numpy as np

from fct_jax.upgrade.maps.linear import fold_sums, ridge

HIDDEN = 256  # rectified random projections
SAMPLE = 20_000  # largest number of pairs that the regressor is fitted on
FOLDS = 5
_SMALLEST = 1e-12  # smaller squared errors are raised to this value
_NORM_FLOOR = 1e-12


def log_squared_error(mapped: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return the logarithm of the squared error's mean over dimensions, (N,)."""
    return np.log(np.maximum(np.mean(np.square(mapped - new), axis=1), _SMALLEST))


def fit_regressor(old, norm, target, seed: int) -> dict[str, np.ndarray]:
    """Fit the regressor and return its arrays, as a map holds them.

    It is a ridge regression of the target on `regressor_features`. Because it has a closed form,
    it is exact, quick and reproducible.

    Args:
      old: (N, do) float32 old vectors.
      norm: (N,) length of each mapped vector before it is scaled to unit length.
      target: (N,) log squared errors of pairs that the map was not fitted on.
      seed: seed of the random projections.
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
        # Predictions stay within the range of the fitted errors.
        "uncertainty_range": np.array([target.min(), target.max()]),
    }


def regressor_features(weights, old: np.ndarray, norm: np.ndarray) -> np.ndarray:
    """Return the features of the uncertainty's regression, (n, do + H + 1).

    They are the standardised old vector, H rectified random projections of it, and the logarithm of
    the length ``norm`` (n, 1) of the mapped vector before it is scaled to unit length.
    """
    standard = (old - weights["uncertainty_mean"]) * weights["uncertainty_scale"]
    hidden = standard @ weights["uncertainty_hidden"] + weights["uncertainty_hidden_bias"]
    length = np.log(np.maximum(norm, _NORM_FLOOR))
    return np.concatenate([standard, np.maximum(hidden, 0), length], axis=1)


def predicted(weights, old: np.ndarray, norm: np.ndarray) -> np.ndarray:
    """Return the regressor's log-variances (n,) for old vectors (n, do).

    They are the product of `regressor_features` and the weights, without the features side by side.
    """
    standard = old - weights["uncertainty_mean"]
    standard *= weights["uncertainty_scale"]
    hidden = standard @ weights["uncertainty_hidden"]
    hidden += weights["uncertainty_hidden_bias"]
    np.maximum(hidden, 0, out=hidden)
    weight, dim = weights["uncertainty_weight"], old.shape[1]
    guess = standard @ weight[:dim] + hidden @ weight[dim:-1]
    guess += np.log(np.maximum(norm[:, 0], _NORM_FLOOR)) * weight[-1] + weights["uncertainty_bias"]
    return np.clip(guess, *weights["uncertainty_range"])
