"""Pickles of plain data come back equal; nothing else gets through, and nothing runs."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny_data import cifar_content, python2_pickle

from fct_jax.data import safe_pickle
from fct_jax.errors import UserError

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=10,
)
kinds = st.sampled_from(["u1", "<i2", ">i4", "<i8", "<f2", "<f4", ">f8", "b1", "<c8"])


@settings(max_examples=60, deadline=None)
@given(plain, st.integers(0, 5))
def test_plain_data_comes_back(value, protocol):
    assert safe_pickle.load(io.BytesIO(pickle.dumps(value, protocol))) == value


@settings(max_examples=60, deadline=None)
@given(kinds.flatmap(lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, min_side=0))))
def test_arrays_come_back(array):
    for protocol in range(2, 6):
        for value in (array, np.asfortranarray(array)):
            raw = pickle.dumps(value, protocol)
            loaded = safe_pickle.load(io.BytesIO(raw))
            assert loaded.dtype == pickle.loads(raw).dtype  # NumPy may change the byte order
            np.testing.assert_array_equal(loaded, array)


def test_numpy_scalars_come_back():
    assert safe_pickle.load(io.BytesIO(pickle.dumps([np.float32(1.5), np.int64(-3)]))) == [1.5, -3]


def test_python_2_pickle():
    content = cifar_content(30, 0)
    raw = python2_pickle(content)
    loaded = safe_pickle.load(io.BytesIO(raw))
    assert set(loaded) == {key.encode() for key in content}
    assert loaded[b"fine_labels"] == content["fine_labels"]
    assert loaded[b"filenames"][3] == b"image_3.png"
    np.testing.assert_array_equal(loaded[b"data"], content["data"])
    as_text = safe_pickle.load(io.BytesIO(raw), encoding="latin1")
    assert as_text["batch_label"] == content["batch_label"]
    np.testing.assert_array_equal(as_text["data"], content["data"])
    # The same bytes mean the same to Python's own unpickler.
    reference = pickle.loads(raw, encoding="bytes")
    np.testing.assert_array_equal(reference[b"data"], loaded[b"data"])


class Evil:
    """Creates a file when Python unpickles it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {b"data": [x]}])
def test_code_is_refused_and_does_not_run(tmp_path, protocol, wrap):
    victim = tmp_path / "touched"
    evil = wrap(Evil(os.system, f"touch {victim}"))
    raw = pickle.dumps(evil, protocol)
    with pytest.raises(UserError, match=r"pickle refused: it asks for \w+\.system"):
        safe_pickle.load(io.BytesIO(raw))
    assert not victim.exists()
    pickle.loads(raw)
    assert victim.exists()  # the attack is real


ARRAY = pickle.dumps(np.arange(6, dtype=np.int64), 2)


@pytest.mark.parametrize(
    "raw",
    [
        pickle.dumps(np.array([{}, "x"], dtype=object), 2),
        pickle.dumps(np.array([(1, 2)], dtype="i4,i4"), 2),
        pickle.dumps(np.array(["text"]), 2),
        pickle.dumps(Evil(eval, "1"), 2),
        pickle.dumps(Evil(getattr, Path, "home"), 4),
        pickle.dumps(Evil(bytes, 10), 2),
        pickle.dumps({1: slice(1)}, 4),
        pickle.dumps(1j, 2),
        ARRAY.replace(b"K\x06\x85", b"K\x07\x85"),  # another length than the bytes have
        ARRAY.replace(b"K\x06\x85", b"J\xff\xff\xff\xff\x85"),  # a negative length
        b"\x80\x02cnumpy\nndarray\n}X\x01\x00\x00\x00aK\x01sb.",  # set an attribute of a class
        b"\x80\x02c_codecs\nencode\n}X\x01\x00\x00\x00aK\x01sb.",  # … of a function
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
        b"\x80\x02Pname\n.",
        b"\x80\x02\x82\x01.",  # an extension code
        b"",
        b"not a pickle",
        ARRAY[:-20],
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x00.",  # bytes of an impossible length
    ],
)
def test_anything_else_is_refused(raw):
    with pytest.raises(UserError, match="pickle"):
        safe_pickle.load(io.BytesIO(raw))


def test_claimed_memory_is_not_taken():
    # Python's own unpickler would make a table of 2**31 entries for this.
    raw = b"\x80\x02K\x07r\xff\xff\xff\x7f."
    assert safe_pickle.load(io.BytesIO(raw)) == 7
