"""Sorting through bins, and the buckets between thresholds, against NumPy's sort and search."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fct_jax.evaluate.ranking import PADDING, _find_buckets, _sort_into_bins

SPREADS = {
    "even": lambda rng, size: rng.normal(size=size),
    "heavy tail": lambda rng, size: rng.standard_cauchy(size) ** 3,
    "few values": lambda rng, size: rng.integers(-2, 3, size),
    "one value": lambda rng, size: np.full(size, 0.5),
    "one far away": lambda rng, size: np.where(np.arange(size) == 0, 1e30, rng.normal(size=size)),
    "too close for bins": lambda rng, size: rng.integers(0, 3, size) * 5e-324,
    "neighbours": lambda rng, size: 1 + rng.integers(0, 40, size) * 2.0**-23,
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("spread", SPREADS)
@settings(deadline=None, max_examples=30)
@given(
    size=st.integers(1, 300), others=st.integers(0, 50), bins=st.integers(1, 2000),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_thresholds_and_buckets(dtype, spread, size, others, bins, seed):
    rng = np.random.default_rng(seed)
    values = SPREADS[spread](rng, size).astype(dtype)
    thresholds = np.full(size + PADDING, np.inf, dtype)
    table = np.empty(bins + 3, np.int32)
    _sort_into_bins(values, table, thresholds[:size])
    np.testing.assert_array_equal(thresholds[:size], np.sort(values))

    other = SPREADS[spread](rng, others).astype(dtype)
    around = np.nextafter(values, dtype(-np.inf)), np.nextafter(values, dtype(np.inf))
    keys = np.concatenate([values, *around, other, other * 3, np.array([np.inf], dtype)])
    buckets = np.empty(len(keys), np.int32)
    _find_buckets(thresholds, keys, table, buckets)
    np.testing.assert_array_equal(buckets, np.searchsorted(np.sort(values), keys))
