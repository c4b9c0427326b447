"""Conversion of float16 to float32."""

import numpy as np
import pytest

from fct_jax.storage.halves import as_single

EVERY = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


@pytest.mark.parametrize("given", [EVERY, EVERY[np.isfinite(EVERY)], EVERY[:0]])
def test_every_half_becomes_what_numpy_makes_of_it(given):
    found, expected = as_single(given), given.astype(np.float32)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_other_arrays():
    single = np.ones((2, 3), np.float32)
    assert as_single(single) is single
    half = np.arange(12, dtype=np.float16).reshape(3, 4)
    for given in (half, half.T, half[:, ::2], half.astype(">f2"), half.astype(int), half.tolist()):
        found = as_single(given)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, np.asarray(given))
    read_only = half.copy()
    read_only.flags.writeable = False
    np.testing.assert_array_equal(as_single(read_only), half)
