"""Ids: repeated ones and look-ups against plain Python, also where hashes collide."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fct_jax.storage.ids import Finder, find_rows, repeated, text_keys

TEXTS = st.lists(st.text(max_size=5).filter(lambda t: "\0" not in t), min_size=1, max_size=30)


def as_array(values):
    return np.array(values, dtype=np.str_ if isinstance(values[0], str) else np.int64)


@settings(deadline=None, max_examples=40)
@given(TEXTS | st.lists(st.integers(-5, 5), min_size=1, max_size=30))
def test_repeated_by_counting(values):
    expected = sorted({v for v in values if values.count(v) > 1})
    assert repeated(as_array(values)).tolist() == expected


@pytest.mark.parametrize("collide", [False, True])
@settings(deadline=None, max_examples=25)
@given(values=TEXTS, wanted=TEXTS)
def test_rows_by_looking_for_them(collide, values, wanted):
    values = list(dict.fromkeys(values))
    expected = [values.index(w) if w in values else -1 for w in wanted]
    numbers = (lambda ids: np.zeros(len(ids), np.uint64)) if collide else text_keys
    rows = find_rows(as_array(values), as_array(wanted), numbers)
    assert rows.tolist() == expected
    finder = Finder(as_array(values), block=7, numbers=numbers)
    assert finder(as_array(wanted)).tolist() == expected
    assert repeated(as_array(values + values[:1]), numbers).tolist() == values[:1]


def test_keys_tell_texts_apart_and_do_not_see_the_width():
    names = np.array([f"{i:05d}-{i % 7}" for i in range(20_000)])
    keys = text_keys(names)
    assert len(np.unique(keys)) == len(names)
    np.testing.assert_array_equal(keys, text_keys(names.astype("U20"), block=7001))
    # The same letters in another order have different keys.
    assert len(np.unique(text_keys(np.array(["ab", "ba", "a", "b", "", "aab", "aba"])))) == 7


def test_integers_and_text_never_match():
    assert find_rows(np.array([1, 2]), np.array(["1"])).tolist() == [-1]
    assert find_rows(np.empty(0, np.int64), np.array([1])).tolist() == [-1]
