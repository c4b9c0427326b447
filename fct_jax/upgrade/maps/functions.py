"""The functions h(old) that maps are made of: each holds its arrays and applies them.

`FUNCTIONS` is the table of kinds that ``map.json`` names. A class of another package is also a
kind, by its name "module:Class".
"""

import abc
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.evaluate.distances import unit_rows
from fct_jax.runtime.plugins import brief, find
from fct_jax.upgrade.maps.backward import Backward
from fct_jax.upgrade.maps.export import Layers, Plain

_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805

_FAR = 1e30  # so much nearer is the nearest cell, by which alone a vector is mapped


class Function(abc.ABC):
    """A function from old vectors to the new model's space, before any scaling to unit length.

    A subclass defines ``__call__``, ``arrays`` and, if its constructor does not take the arrays
    by their names, ``of``.

    Attributes:
      parallel: whether several threads may call it at once.
      has_uncertainty: whether ``__call__`` also returns log-variances.
      description: entries for ``map.json``.
    """

    parallel: bool = False
    has_uncertainty: bool = False

    @property
    def description(self) -> dict:
        return {}

    @abc.abstractmethod
    def __call__(self, old: np.ndarray):
        """Map old vectors (n, do) float32 to (n, dn), or to (these, log-variances (n,))."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of ``weights.safetensors``, which define the function."""
        return {}

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray], folder: Path | None = None) -> "Function":
        """Build the function from these arrays; ``folder`` is the map's directory."""
        del folder
        return cls(**arrays)

    def layers(self, dim: int) -> Plain | Layers | None:
        """Return the function of vectors (n, dim) as plain layers; None if that is impossible.

        Layers without anything else have a ReLU between two of them.
        """
        del dim

    def write(self, folder: Path) -> None:
        """Write everything but the arrays into the map's directory."""
        del folder

    def digest(self) -> bytes:
        """Return a digest of what defines the function, for the fingerprint of its map."""
        digest = hashlib.sha256()
        for name, value in sorted(self.arrays().items()):
            digest.update(f"{name} {np.shape(value)}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        return digest.digest()

    def stream(self, blocks: Iterable[np.ndarray], batch_size: int) -> Iterator:
        """Yield (block, function that returns the block's result) in order."""
        del batch_size
        for old in blocks:
            if self.parallel:
                yield old, lambda old=old: self(old)
            else:
                result = self(old)
                yield old, lambda result=result: result


def kind_of(function: Function) -> str:
    """Return the name under which `load_function` finds the function's class."""
    for kind, found in FUNCTIONS.items():
        if type(function) is found:
            return kind
    return f"{type(function).__module__}:{type(function).__qualname__}"


def load_function(kind: str, arrays: dict[str, np.ndarray], folder: Path) -> Function:
    """Load the function of a map's directory. Raises UserError for an unknown kind."""
    return find(FUNCTIONS, kind, "kind of map", "functions").of(arrays, folder)


def parts_of(result) -> tuple[np.ndarray, np.ndarray | None]:
    """Split a function's result into vectors and log-variances (or None)."""
    return result if isinstance(result, tuple) else (result, None)


class Identity(Function):
    """The unchanged vectors: for a new model that was trained to be compatible with the old one."""

    def __call__(self, old):
        return old

    def layers(self, dim):
        return [(np.eye(dim, dtype=np.float32), np.zeros(dim, np.float32))]


class Linear(Function):
    """``scale · old @ weight + bias``: weight (do, dn), scale (), bias (dn,).

    The arrays are float64 as solved, or float32 as a map stores them (`single`).

    Attributes:
      penalty: the λ that cross-validation chose; None if there was no choice.
      error: mean of |new − prediction|² over the left-out pairs, as a share of new's variance.
    """

    parallel = True

    def __init__(self, weight, scale, bias, penalty: float | None = None, error=float("nan")):
        self.weight, self.scale, self.bias = weight, scale, bias
        self.penalty, self.error = penalty, error

    @property
    def description(self):
        if self.penalty is None:
            return {}
        return {"penalty": self.penalty, "cross_validated_error": self.error}

    def __call__(self, old):
        made = old @ self.weight
        if self.scale != 1:
            made *= self.scale
        made += self.bias
        return made

    def single(self) -> "Linear":
        """Return the same in float32."""
        return Linear(**self.arrays(), penalty=self.penalty, error=self.error)

    def arrays(self):
        named = {"weight": self.weight, "scale": self.scale, "bias": self.bias}
        return {name: np.asarray(value, np.float32) for name, value in named.items()}

    def layers(self, dim):
        return [(self.weight * self.scale, self.bias)]


class Common(Linear):
    """The forward map F of a common space turned back, B⁻¹F, with the backward map B.

    Attributes:
      backward: the map B, by which this space is served (`fct_jax.upgrade.ways`).
    """

    def __init__(self, weight, scale, bias, backward, backward_bias):
        super().__init__(weight, scale, bias)
        self.backward = Backward(backward, backward_bias)

    def single(self):
        return Common(**self.arrays())

    def arrays(self):
        more = {"backward": self.backward.weight, "backward_bias": self.backward.bias}
        return super().arrays() | {k: np.asarray(v, np.float32) for k, v in more.items()}


class Local(Function):
    """A linear map for each of K cells of the old space; a vector uses one of them or a blend.

    centres (K, do), weight (K, do, dn), bias (K, dn); bandwidth () of the blend, NaN without one.
    """

    parallel = True

    def __init__(self, centres, weight, bias, bandwidth):
        self.centres, self.weight = np.asarray(centres, np.float32), np.asarray(weight, np.float32)
        self.bias, self.bandwidth = np.asarray(bias, np.float32), float(bandwidth)

    @classmethod
    def of_cells(cls, found) -> "Local":
        """Build the function from a ``local.LocalMap``."""
        weight = np.stack([cell.rotation * cell.scale for cell in found.cells])
        bias = [cell.mean_y - cell.mean_x @ w for cell, w in zip(found.cells, weight, strict=True)]
        return cls(
            found.centres,
            weight,
            np.stack(bias),
            np.nan if found.bandwidth is None else found.bandwidth,
        )

    @property
    def description(self):
        return {"cells": len(self.centres)}

    def arrays(self):
        return {
            "centres": self.centres,
            "weight": self.weight,
            "bias": self.bias,
            "bandwidth": np.asarray(self.bandwidth, np.float64),
        }

    def layers(self, dim):
        # The share of a cell is a softmax of −|x − c|² / (2 bandwidth²), where |x|² cancels out.
        factor = _FAR if np.isnan(self.bandwidth) else self.bandwidth**-2.0
        centres = np.asarray(self.centres, np.float64)
        gate = factor * np.vstack([centres.T, -np.sum(centres**2, axis=1) / 2])
        side_by_side = self.weight.transpose(1, 0, 2).reshape(self.weight.shape[1], -1)
        return Plain([(side_by_side, self.bias.reshape(-1))], gate=gate)

    def __call__(self, old):
        from fct_jax.upgrade.maps.local import shares

        share = shares(old, self.centres, None if np.isnan(self.bandwidth) else self.bandwidth)
        mapped = np.zeros((len(old), self.bias.shape[1]), np.float32)
        for cell in np.flatnonzero(share.any(axis=0)):
            used = np.flatnonzero(share[:, cell])
            part = old[used] @ self.weight[cell] + self.bias[cell]
            mapped[used] += share[used, cell, None].astype(np.float32) * part
        return mapped


class Selu(Function):
    """Dense layers with SELU between them; results are scaled to one length.

    SELU: Klambauer et al., "Self-normalizing neural networks", NeurIPS 2017,
    https://arxiv.org/abs/1706.02515.
    """

    parallel = True

    def __init__(self, dense, length: float):
        """Take ``dense``: weight (in, out) and bias (out,) of each layer, float32."""
        self.dense, self.length = tuple(dense), np.float32(length)

    @classmethod
    def of(cls, arrays, folder=None):
        count = sum(name.endswith(".weight") for name in arrays)
        dense = [(arrays[f"{i}.weight"], arrays[f"{i}.bias"]) for i in range(count)]
        return cls(dense, arrays["length"])

    def arrays(self):
        named = {"length": np.asarray(self.length)}
        for i, (weight, bias) in enumerate(self.dense):
            named |= {f"{i}.weight": weight, f"{i}.bias": bias}
        return named

    def layers(self, dim):
        activation = _SELU_SCALE, _SELU_ALPHA
        return Plain(list(self.dense), activation=activation, length=float(self.length))

    def __call__(self, old):
        x = np.asarray(old, np.float32)
        for weight, bias in self.dense[:-1]:
            x = selu(x @ weight + bias)
        weight, bias = self.dense[-1]
        return (self.length * unit_rows(x @ weight + bias)).astype(np.float32)


def selu(x: np.ndarray) -> np.ndarray:
    """Return the scaled exponential linear unit of each value."""
    return _SELU_SCALE * np.where(x > 0, x, _SELU_ALPHA * np.expm1(np.minimum(x, 0))).astype(
        x.dtype
    )


class Network(Function):
    """An exported transformation (FCT, FastFill, LCE …) times a scale, computed by JAX.

    It is stored in ``MAP/run``.
    """

    def __init__(self, transformer, scale: float = 1.0):
        self.transformer, self.scale = transformer, np.float32(scale)

    @property
    def has_uncertainty(self):
        return self.transformer.has_uncertainty

    @classmethod
    def of(cls, arrays, folder=None):
        from fct_jax.frozen.model import load_model

        return cls(load_model(folder / "run"), arrays["scale"])

    def arrays(self):
        return {"scale": np.asarray(self.scale, np.float32)}

    def digest(self):
        return super().digest() + self.transformer.fingerprint.encode()

    def __call__(self, old):
        ((_, result),) = self.stream([old], len(old))
        return result()

    def stream(self, blocks, batch_size):
        from fct_jax.frozen.blocks import pipelined

        kept = []  # blocks whose results are not fetched yet

        def given():
            for old in blocks:
                kept.append(old)
                yield (old,)

        for mapped, log_variance in pipelined(self.transformer.run, given(), batch_size):
            result = mapped * self.scale, log_variance
            yield kept.pop(0), lambda result=result: result

    def layers(self, dim):
        layers = self.transformer.module.as_layers(self.transformer.variables)
        if not layers:
            return Identity().layers(dim)
        weight, bias = layers[-1]
        return [*layers[:-1], (weight * self.scale, bias * self.scale)]

    def write(self, folder):
        from fct_jax.frozen.model import write_model

        described = dict(self.transformer.description)
        del described["fingerprint"], described["format_version"]
        write_model(folder / "run" / "model", described, self.transformer.variables)


class Called(Function):
    """A user's Python function, old (n, do) → (n, dn), found again by "module:name"."""

    _ROWS = 4  # vectors of a trial call, which shows what the function returns

    def __init__(self, name: str, function):
        self.name, self._function = name, function
        self.has_uncertainty = False

    @classmethod
    def of(cls, arrays, folder=None):
        name = bytes(arrays["name"]).decode()
        found = cls(name, find({}, name, "map", "maps"))
        found.has_uncertainty = bool(arrays["has_uncertainty"])
        return found

    def arrays(self):
        return {
            "name": np.frombuffer(self.name.encode(), np.uint8).copy(),
            "has_uncertainty": np.asarray(self.has_uncertainty, np.uint8),
        }

    def tried(self, dim: int) -> int:
        """Call it with a few vectors of dimension ``dim``; return the dimension of its results."""
        result = self(np.random.default_rng(0).standard_normal((self._ROWS, dim), np.float32))
        mapped, log_variance = parts_of(result)
        self.has_uncertainty = log_variance is not None
        return mapped.shape[1]

    def __call__(self, old):
        try:
            result = self._function(old)
        except Exception as error:  # a user's function may raise anything
            raise UserError(
                f"{self.name} failed for vectors {old.shape}: {brief(error)}"
            ) from error
        mapped, log_variance = parts_of(result)
        mapped = np.asarray(mapped)
        if mapped.ndim != 2 or len(mapped) != len(old) or mapped.dtype.kind not in "fiu":
            raise UserError(
                f"{self.name} returned {mapped.dtype} {mapped.shape} for vectors {old.shape}; "
                f"it must be numbers ({len(old)}, D)"
            )
        if log_variance is None:
            return mapped
        if np.shape(log_variance) != (len(old),):
            raise UserError(
                f"{self.name} returned log-variances of shape {np.shape(log_variance)} for "
                f"{len(old)} vectors; it must be ({len(old)},)"
            )
        return mapped, np.asarray(log_variance, np.float32)


# kind in map.json -> class
FUNCTIONS: dict[str, type[Function]] = {
    "identity": Identity,
    "linear": Linear,
    "common": Common,
    "local": Local,
    "selu": Selu,
    "network": Network,
    "function": Called,
}
