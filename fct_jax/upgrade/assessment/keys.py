"""A score and a gallery row as one integer, so that one comparison ranks two results.

The smaller key is the better result: a larger score, or of equal scores the lower row. The high
half of a key has the bits of the score, turned so that they ascend as scores descend, and the low
half the row.
"""

import numpy as np
from numba import njit

_LOW = np.int64(0xFFFFFFFF)
_BUT_SIGN = np.int32(0x7FFFFFFF)
_HALF = np.int64(32)


@njit(nogil=True, cache=True)
def key_of(bits, row):
    """Return the key of a float32 score, other than −0, with these int32 bits."""
    return (np.int64(~(bits ^ ((bits >> 31) & _BUT_SIGN))) << _HALF) | np.int64(row)


@njit(nogil=True, cache=True)
def bits_of(key):
    """Return the int32 bits of a key's score."""
    turned = ~np.int32(key >> _HALF)
    return turned ^ ((turned >> 31) & _BUT_SIGN)


NOTHING = key_of(np.float32(-np.inf).view(np.int32), _LOW)  # worse than every result


def decoded(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores float32 and rows int32 of keys; the row of a score of −inf is −1."""
    turned = ~(keys >> _HALF).astype(np.int32)
    scores = (turned ^ ((turned >> 31) & _BUT_SIGN)).view(np.float32)
    return scores, np.where(np.isneginf(scores), -1, (keys & _LOW)).astype(np.int32)
