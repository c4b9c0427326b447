"""The types in which vectors are stored: floats, a byte or a bit for each dimension.

int8: ``vector = code × scale + offset``, with a scale and an offset for each dimension, which
divide the range of sampled values into 254 equal steps, from −127 to 127. Values outside the range
are clipped. A row without a vector has the code −128 everywhere.

binary: 1 for each value above 0, packed as `numpy.packbits` does (uint8; the first dimension is the
highest bit), which is sentence-transformers' ``ubinary`` and what Faiss's binary indexes take.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from fct_jax.errors import UserError, unknown

SAMPLE = 20_000  # vectors of a gallery from which scales are learnt
_MOST, _NONE = 127, -128  # largest code of int8, and the code of a row without a vector


@dataclasses.dataclass(frozen=True)
class Scales:
    """The size of a step of int8, and the value of its code 0, of each dimension.

    scale, offset: (D,) float32.
    """

    scale: np.ndarray
    offset: np.ndarray

    @classmethod
    def of(cls, *samples: np.ndarray | None) -> "Scales":
        """Return the scales for the range of samples (n, D) of vectors, None for no sample.

        A dimension that is constant in the samples gets the middle scale of the others, so that
        later vectors that vary there are clipped, and counted. Raises UserError without vectors.
        """
        there = [np.asarray(s, np.float64) for s in samples if s is not None and len(s)]
        if not there:
            raise UserError(
                "int8 needs vectors to learn its scales from, but no row has a usable one"
            )
        low = np.min([sample.min(axis=0) for sample in there], axis=0)
        high = np.max([sample.max(axis=0) for sample in there], axis=0)
        scale = ((high - low) / (2 * _MOST)).astype(np.float32)
        usual = np.float32(np.median(scale[scale > 0]) if (scale > 0).any() else 1)
        return cls(np.where(scale > 0, scale, usual), ((high + low) / 2).astype(np.float32))

    @classmethod
    def of_json(cls, values: dict) -> "Scales":
        return cls(*(np.array(values[key], np.float32) for key in ("scale", "offset")))

    def to_json(self) -> dict:
        return {"scale": self.scale.tolist(), "offset": self.offset.tolist()}


@dataclasses.dataclass(frozen=True)
class StoredType:
    """A type in which vectors are stored.

    Attributes:
      name: its name, as a user gives it.
      dtype: NumPy type of the stored numbers.
      width: bytes of a dimension.
      encode: returns what is stored of vectors (n, D) float32. Raises FloatingPointError for values
        that are too large.
      decode: returns vectors (n, D) float32 of what is stored.
      scaled: whether both need `Scales`, as a second argument, which is otherwise None.
      metric: the only metric of the stored vectors; None: that of the gallery.
    """

    name: str
    dtype: np.dtype
    width: float
    encode: Callable[[np.ndarray, Scales | None], np.ndarray]
    decode: Callable[[np.ndarray, Scales | None], np.ndarray]
    scaled: bool = False
    metric: str | None = None

    @property
    def exact(self) -> bool:
        """Return whether vectors are stored as floats."""
        return self.dtype.kind == "f"

    def values(self, dim: int) -> int:
        """Return the number of stored numbers of a vector. Raises UserError if it is not whole."""
        found = dim * self.width / self.dtype.itemsize
        if found % 1:
            raise UserError(
                f"dtype={self.name} packs eight dimensions into a byte, but the new vectors have "
                f"{dim}, which eight does not divide"
            )
        return int(found)


def floats(dtype) -> StoredType:
    """Return the stored type of floats of a NumPy type."""
    dtype = np.dtype(dtype)

    def encode(vectors: np.ndarray, scales: Scales | None) -> np.ndarray:
        with np.errstate(over="raise", under="ignore"):
            return vectors.astype(dtype, copy=False)

    def decode(values: np.ndarray, scales: Scales | None) -> np.ndarray:
        return values.astype(np.float32, copy=False)

    return StoredType(dtype.name, dtype, dtype.itemsize, encode, decode)


def _to_int8(vectors: np.ndarray, scales: Scales) -> np.ndarray:
    steps = np.rint((vectors - scales.offset) / scales.scale)
    codes = np.clip(steps, -_MOST, _MOST).astype(np.int8)
    codes[~vectors.any(axis=1)] = _NONE
    return codes


def _from_int8(codes: np.ndarray, scales: Scales) -> np.ndarray:
    found = codes * scales.scale + scales.offset
    found[codes[:, 0] == _NONE] = 0
    return found


def _to_bits(vectors: np.ndarray, scales: Scales | None) -> np.ndarray:
    return np.packbits(vectors > 0, axis=1)


def _from_bits(codes: np.ndarray, scales: Scales | None) -> np.ndarray:
    signs = 2 * np.unpackbits(codes, axis=1).astype(np.float32) - 1
    return signs / np.float32(np.sqrt(signs.shape[1]))


TYPES: dict[str, StoredType] = {
    kind.name: kind
    for kind in (
        floats(np.float32),
        floats(np.float16),
        StoredType("int8", np.dtype(np.int8), 1, _to_int8, _from_int8, scaled=True),
        StoredType("binary", np.dtype(np.uint8), 1 / 8, _to_bits, _from_bits, metric="cosine"),
    )
}


def stored_type(name: str) -> StoredType:
    """Return the row of a name in `TYPES`. Raises UserError if there is none."""
    if name not in TYPES:
        raise unknown("dtype", name, TYPES)
    return TYPES[name]


class Coding:
    """The stored type of one gallery, with its scales.

    Attributes:
      type: the `StoredType`.
      scales: its `Scales`; None if the type has none, or while they are unknown.
    """

    def __init__(self, kind: StoredType, scales: Scales | None = None):
        self.type, self.scales = kind, scales

    @classmethod
    def of_meta(cls, meta: dict, name: str) -> "Coding | None":
        """Return the coding that a gallery's description names; None: it holds plain numbers.

        Raises UserError, with the gallery's ``name``, if the description is damaged.
        """
        found = meta.get("stored")
        if not isinstance(found, dict):
            return None
        try:
            kind = stored_type(found["type"])
            return cls(kind, Scales.of_json(found) if kind.scaled else None)
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{name}: its description does not say how vectors are stored; "
                'it needs "stored" with "type", and for int8 "scale" and "offset"'
            ) from None

    def to_meta(self) -> dict:
        """Return what a gallery's description says about its coding; {} for floats."""
        if self.type.exact:
            return {}
        scales = {} if self.scales is None else self.scales.to_json()
        return {"stored": {"type": self.type.name, **scales}}

    @property
    def known(self) -> bool:
        """Return whether the coding can be used: it needs no scales, or has them."""
        return self.scales is not None or not self.type.scaled

    def dim_of(self, values: int, meta: dict, name: str) -> int:
        """Return D of the vectors, of which each is stored as ``values`` numbers.

        Raises UserError if the description gives another size.
        """
        dim = meta.get("dimension")
        if not isinstance(dim, int) or self.type.values(dim) != values:
            raise UserError(
                f"{name} holds {values} numbers for each vector, but its description says "
                f"{dim} dimensions stored as {self.type.name}"
            )
        if self.scales is not None and {self.scales.scale.shape, self.scales.offset.shape} != {
            (dim,)
        }:
            raise UserError(f"{name}: its description has not one scale and offset a dimension")
        return dim

    def take(self, meta: dict, name: str) -> None:
        """Take the scales that a gallery's description has, if it has any.

        Raises UserError as `of_meta` does.
        """
        found = Coding.of_meta(meta, name)
        if found is not None:
            self.scales = found.scales

    def learn(self, *samples: np.ndarray | None) -> None:
        """Take the scales for samples (n, D) of the vectors, if the type has any."""
        if self.type.scaled:
            self.scales = Scales.of(*samples)

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """Return what is stored of vectors (n, D). Raises FloatingPointError as its type does."""
        return self.type.encode(vectors, self.scales)

    def decode(self, values: np.ndarray) -> np.ndarray:
        """Return vectors (n, D) float32 of what is stored."""
        return self.type.decode(values, self.scales)

    def clipped(self, vectors: np.ndarray) -> np.ndarray | None:
        """Return the number of values of each vector that encoding clips (n,); None: it never does.

        Zero vectors, which stand for missing ones, are not clipped.
        """
        if self.scales is None:
            return None
        reach = (_MOST + np.float32(0.5)) * self.scales.scale
        low, high = self.scales.offset - reach, self.scales.offset + reach
        outside = np.count_nonzero((vectors < low) | (vectors > high), axis=1)
        if outside.any():
            outside[~vectors.any(axis=1)] = 0
        return outside
