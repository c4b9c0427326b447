"""Sorting on disk, against sorting in memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fct_jax.storage import sorting, spilled

_VALUES = st.sampled_from([-np.inf, -1.5, -0.0, 0.0, 1e-300, 2.0, np.inf])


def sorted_in_memory(keys):
    return np.lexsort([-key for key in keys[::-1]])


@given(
    data=st.lists(st.tuples(_VALUES, _VALUES), min_size=1, max_size=300),
    block=st.integers(1, 40),
    most=st.integers(1, 2),
)
def test_rows_are_those_of_a_stable_sort(monkeypatch_small, data, block, most):
    keys = list(np.array(data).T[:most])
    found = sorting.descending(lambda a, b: [k[a:b] for k in keys], len(data), block)
    np.testing.assert_array_equal(found, sorted_in_memory(keys))


@pytest.fixture(scope="module")
def monkeypatch_small():
    """Make samples and blocks so small that few items need several files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorting, "_RUNS", 4)
        patch.setattr(sorting, "_RUN", 1)
        patch.setattr(spilled, "_LARGE", 256)
        yield


@pytest.mark.parametrize("zeros", [0.0, 0.9, 1.0])
def test_many_items_without_traffic(zeros):
    rng = np.random.default_rng(0)
    keys = [rng.standard_normal(50_000).round(3), rng.standard_normal(50_000)]
    keys[0][rng.random(50_000) < zeros] = -np.inf
    found = sorting.descending(lambda a, b: [k[a:b] for k in keys], 50_000, 2_000)
    np.testing.assert_array_equal(found, sorted_in_memory(keys))


def test_large_arrays_lie_in_files(monkeypatch):
    small, large = spilled.empty((3, 2), np.float32), spilled.empty(100, np.int64, large=800)
    assert type(small) is np.ndarray and isinstance(large, np.memmap)
    large[:] = np.arange(100)
    np.testing.assert_array_equal(large[::3], np.arange(0, 100, 3))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spilled.os, "posix_fallocate", full)
    assert type(spilled.empty(100, np.int64, large=800)) is np.ndarray
