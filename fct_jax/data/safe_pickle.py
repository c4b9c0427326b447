"""Load untrusted pickles without executing code from them.

A pickle is a program. The CIFAR archives are pickles, so they are read by an unpickler that knows
dicts, lists, strings, bytes, numbers and NumPy arrays of numbers, and nothing else.
"""

import math
import pickle
from typing import Any, BinaryIO, ClassVar

import numpy as np

from fct_jax.errors import UserError


def load(file: BinaryIO, encoding: str = "bytes") -> Any:
    """Read one pickle of plain data.

    Args:
      file: binary file, positioned at the pickle's start.
      encoding: how to decode strings of Python 2: "bytes" keeps bytes, "latin1" gives str.

    Returns:
      The object; arrays are instances of np.ndarray.

    Raises:
      UserError: the pickle contains anything but plain data, or is damaged.
    """
    try:
        return _Unpickler(file, encoding=encoding).load()
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        name = getattr(file, "name", "pickle")
        raise UserError(f"cannot read {name}: damaged pickle ({error})") from error


class _Dtype:
    """Stands for np.dtype while loading: only plain numbers."""

    def __init__(self, code: str | bytes, *_):
        code = code.decode("ascii") if isinstance(code, bytes) else code
        # A kind and the bytes of an item, such as "u1": no objects, fields or strings.
        if not (isinstance(code, str) and code[:1] in tuple("biufc") and code[1:].isdigit()):
            raise UserError(f"pickle refused: array of type {code!r}, only numbers are read")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple):
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        self.dtype = self.dtype.newbyteorder(order)


class _Array(np.ndarray):
    """An array whose state is checked before NumPy uses it."""

    def __setstate__(self, state: tuple):
        _, shape, dtype, fortran, data = state
        data = data.encode("latin1") if isinstance(data, str) else data
        shape = _checked_shape(shape, dtype, data)
        super().__setstate__((1, shape, dtype.dtype, bool(fortran), bytes(data)))


def _checked_shape(shape: tuple, dtype: _Dtype, data: bytes) -> tuple[int, ...]:
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray):
        raise UserError("pickle refused: array without a plain type or data")
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if any(not isinstance(length, int) or length < 0 for length in shape):
        raise UserError(f"pickle refused: array of shape {shape}")
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise UserError(f"pickle refused: array of shape {shape} with {len(data)} bytes")
    return shape


def _reconstruct(*_) -> _Array:
    return np.empty(0, np.uint8).view(_Array)


def _from_buffer(data: bytes, dtype: _Dtype, shape: tuple, order: str) -> np.ndarray:
    shape = _checked_shape(shape, dtype, data)
    return np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: _Dtype, data: bytes | str) -> np.generic:
    data = data.encode("latin1") if isinstance(data, str) else data
    _checked_shape((), dtype, data)
    return np.frombuffer(data, dtype.dtype)[0]


def _encode(text: str, encoding: str) -> bytes:
    """Make bytes as Python 3 writes them for Python 2."""
    if encoding != "latin1" or not isinstance(text, str):
        raise UserError(f"pickle refused: text encoded as {encoding!r}")
    return text.encode("latin1")


def _empty_bytes(*arguments) -> bytes:
    """Make b"" as Python 3 writes it for Python 2; arguments could request any amount of memory."""
    if arguments:
        raise UserError("pickle refused: it calls bytes")
    return b""


class _NdArray:
    """Stands for np.ndarray, which occurs only as an argument of _reconstruct."""


_ALLOWED = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _NdArray,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _empty_bytes,
}
for _core in ("numpy.core", "numpy._core"):  # the names before and since NumPy 2
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _ALLOWED[f"{_core}.multiarray", "scalar"] = _scalar
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = _from_buffer


class _Unpickler(pickle._Unpickler):
    """Python's unpickler, since the one in C lets a pickle allocate any amount of memory."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise UserError(
                f"pickle refused: it asks for {module}.{name}; only dicts, lists, strings, bytes, "
                "numbers and NumPy arrays are read"
            ) from None

    def load_build(self) -> None:
        """Set the state of arrays and their types only, never of functions or classes."""
        if not isinstance(self.stack[-2], _Dtype | _Array):
            raise UserError("pickle refused: it changes an object that is no array")
        super().load_build()

    dispatch: ClassVar = pickle._Unpickler.dispatch | {pickle.BUILD[0]: load_build}
