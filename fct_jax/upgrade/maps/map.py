"""Maps from an old model's vectors to a new model's space, with an uncertainty for each vector.

A map is a directory:

    map.json              method, kind of function, sizes, fingerprints, results of the fit
    weights.safetensors   the arrays of the function and of the uncertainty's regressor
    run/                  the exported transformation (fct, fastfill, lce)
    numpy.safetensors     the same map as plain layers, for services without JAX
    known.npz             pairs that the map was not fitted on: ids, old, new
    fitted.npy            uint64 hashes of the old vectors that it was fitted on
                          (``inputs.row_hashes``)
"""

import dataclasses
import hashlib
import json
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from fct_jax.errors import UserError
from fct_jax.runtime import threads
from fct_jax.storage.files import new_directory
from fct_jax.upgrade.maps import lengths
from fct_jax.upgrade.maps.export import write_numpy
from fct_jax.upgrade.maps.functions import Called, Function, kind_of, parts_of
from fct_jax.upgrade.maps.uncertainty import predicted

FORMAT_VERSION = 2
_FEW_ROWS = 64  # vectors up to this number are computed without threads


@dataclasses.dataclass(frozen=True)
class KnownPairs:
    """Items embedded by both models that a map was not fitted on: its known answers.

    ids: (P,); old: (P, do) float32; new: (P, dn) float32.
    """

    ids: np.ndarray
    old: np.ndarray
    new: np.ndarray


class Map:
    """A frozen map h from old vectors to the new model's space.

    A *bridge* (``direction`` "backward") maps the other way, from the new model's queries to the
    old gallery's space.

    Attributes:
      method: name of the row of METHODS that it was fitted by, such as "procrustes".
      direction: "forward" or "backward".
      dim_in, dim_out: sizes of the vectors it takes and gives. Both are None for a map that takes
        vectors of any size (``load_map("identity")``) until `for_dim` fixes them.
      old_fingerprint, new_fingerprint: fingerprints of the two models, None if unknown.
      fingerprint: hash of what defines the map: its function and the spaces that it connects.
      unit_output: whether results are scaled to unit length, as the new model's vectors are.
      has_uncertainty: whether it gives log-variances.
      metric: "l2" or "cosine", the metric of searches among new vectors.
      known: KnownPairs, or None.
      fitted: (n,) uint64 hashes of the old vectors that the map was fitted on, or None.
      function: the Function h, without scaling.
      uncertainty: arrays of the regressor of the uncertainty; {} without one.
      description: content of ``map.json``.

    Example::

        h = fct_jax.load_map("map")
        vectors, log_variance = h.transform(np.load("old.npy"))
    """

    def __init__(
        self,
        description: dict,
        function: Function,
        uncertainty: dict[str, np.ndarray] | None = None,
        known: KnownPairs | None = None,
        fitted: np.ndarray | None = None,
    ):
        self.method = description["method"]
        self.direction = description.get("direction", "forward")
        self.dim_in, self.dim_out = description["dim_in"], description["dim_out"]
        self.old_fingerprint = description.get("old_fingerprint")
        self.new_fingerprint = description.get("new_fingerprint")
        self.unit_output = bool(description.get("unit_output", False))
        self.metric = description.get("metric", "l2")
        self.function, self.known, self.fitted = function, known, fitted
        self.uncertainty = {k: np.asarray(v, np.float32) for k, v in (uncertainty or {}).items()}
        self.has_uncertainty = bool(self.uncertainty) or function.has_uncertainty
        self.description = {
            **description,
            "format_version": FORMAT_VERSION,
            "function": kind_of(function),
        }
        self.fingerprint = self.description["fingerprint"] = self._fingerprint()

    @property
    def backward(self):
        """Return the backward map of a common space, or None for a map without one."""
        return getattr(self.function, "backward", None)

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """Return every array of the map by its name in ``weights.safetensors``."""
        arrays = {**self.function.arrays(), **self.uncertainty}
        return {name: np.asarray(value) for name, value in arrays.items()}

    def transform(self, vectors, batch_size: int = 4096) -> tuple[np.ndarray, np.ndarray | None]:
        """Return (embeddings (N, dn) float32, log-variances (N,) float32 or None).

        Args:
          vectors: (N, do) old vectors, as in `blocks`.
          batch_size: number of rows computed together.

        The second is None if the map has no uncertainty.

        Raises:
          UserError: vectors of another size or shape, or with NaN or infinity.
        """
        if self.dim_in is None and np.ndim(vectors) == 2:
            return self.for_dim(np.shape(vectors)[1]).transform(vectors, batch_size)
        parts = list(self.blocks(vectors, batch_size))
        if not parts:
            nothing = np.empty(0, np.float32) if self.has_uncertainty else None
            return np.empty((0, self.dim_out), np.float32), nothing
        embeddings = np.concatenate([part[0] for part in parts])
        if not self.has_uncertainty:
            return embeddings, None
        return embeddings, np.concatenate([part[1] for part in parts])

    def blocks(self, vectors, batch_size: int = 4096):
        """Yield (embeddings (n, dn), log-variances (n,) or None) block by block, in order.

        Args:
          vectors: (N, do) numbers; may be a memory map, which is read a few blocks at a time.
          batch_size: number of rows computed together.
        """
        vectors = self._checked(vectors)
        batch_size = max(1, min(batch_size, len(vectors)))
        blocks = ((None, block) for block in self._rows(vectors, batch_size))
        yield from self.stream(blocks, batch_size, _result, few=len(vectors) <= _FEW_ROWS)

    def stream(self, blocks, batch_size: int, finish: Callable, few: bool = False):
        """Yield ``finish(tag, embeddings, log-variances)`` of each (tag, block), in order.

        Several blocks are computed and finished at a time; few are held.

        Args:
          blocks: pairs of any object and finite float32 vectors (n, do), n at most ``batch_size``.
          batch_size: number of rows that a network computes together; smaller blocks are padded.
          finish: a function that several threads may call.
          few: whether to do without threads.
        """
        tags: deque = deque()

        def given():
            for tag, block in blocks:
                tags.append(tag)
                yield block

        def finished(streamed):
            return finish(streamed[0], *self._finished(*streamed[1:]))

        tagged = ((tags.popleft(), *each) for each in self.function.stream(given(), batch_size))
        yield from map(finished, tagged) if few else threads.in_order(finished, tagged)

    def for_dim(self, dim: int) -> "Map":
        """Return the map for vectors of dimension ``dim``: itself, unless it takes all sizes."""
        if self.dim_in is not None:
            return self
        out = self.function.tried(dim) if isinstance(self.function, Called) else dim
        described = {**self.description, "dim_in": int(dim), "dim_out": int(out)}
        return Map(described, self.function, self.uncertainty, self.known, self.fitted)

    def forward(self) -> "Map":
        """Return the map itself. Raises UserError for a bridge, which cannot move a gallery."""
        if self.direction != "forward":
            raise UserError(
                "wrong direction: this map is a bridge, which takes queries of the new model to "
                "the old space; fit a map with direction='forward'"
            )
        return self

    def save(self, folder) -> Path:
        """Write the directory, completely or not at all; an existing one is never overwritten."""
        with new_directory(folder) as partial:
            safetensors.numpy.save_file(self.weights, partial / "weights.safetensors")
            if self.dim_in is not None:
                layers = self.function.layers(self.dim_in)
                if layers is not None:
                    write_numpy(partial / "numpy.safetensors", layers, self.unit_output)
            self.function.write(partial)
            if self.known is not None:
                np.savez(partial / "known.npz", **vars(self.known))
            if self.fitted is not None:
                np.save(partial / "fitted.npy", self.fitted)
            (partial / "map.json").write_text(json.dumps(self.description, indent=2) + "\n")
        return Path(folder)

    def _fingerprint(self) -> str:
        """Return a hash of what the map computes; the time of its fitting does not count."""
        names = ("function", "dim_in", "dim_out", "unit_output", "old_fingerprint")
        described = {name: self.description.get(name) for name in (*names, "new_fingerprint")}
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
        digest.update(self.function.digest())
        for name, value in sorted(self.uncertainty.items()):
            digest.update(name.encode())
            digest.update(value.tobytes())
        return digest.hexdigest()[:16]

    def _checked(self, vectors) -> np.ndarray:
        vectors = vectors if isinstance(vectors, np.ndarray) else np.asarray(vectors)
        if vectors.ndim == 1 and len(vectors) == self.dim_in:
            raise UserError(
                f"the map takes vectors (N, {self.dim_in}), but this is a single vector of shape "
                f"{vectors.shape}; give vector[None]"
            )
        if vectors.ndim != 2 or vectors.shape[1] != self.dim_in:
            raise UserError(
                f"the map takes old vectors of dimension {self.dim_in}, "
                f"but these have shape {vectors.shape}"
            )
        if vectors.dtype.kind not in "fiu":
            raise UserError(f"the map takes vectors of numbers, not {vectors.dtype}")
        return vectors

    def _rows(self, vectors: np.ndarray, batch_size: int):
        for start in range(0, len(vectors), batch_size):
            old = np.asarray(vectors[start : start + batch_size], np.float32)
            finite = np.isfinite(old).all(axis=1)
            if not finite.all():
                row = start + int(np.argmin(finite))
                raise UserError(f"the old vector in row {row} holds NaN or infinity")
            yield old

    def _finished(self, old: np.ndarray, result: Callable) -> tuple[np.ndarray, np.ndarray | None]:
        """Return embeddings and log-variances of one block of `Function.stream`."""
        mapped, log_variance = parts_of(result())
        mapped = np.asarray(mapped, np.float32)
        if self.uncertainty:
            length = np.sqrt(lengths.squares(mapped))[:, None]
            log_variance = predicted(self.uncertainty, old, length)
        if self.unit_output:
            mapped = lengths.unit(mapped)
        if not self.has_uncertainty:
            return mapped, None
        return mapped, np.asarray(log_variance, np.float32)


def _result(tag, embeddings: np.ndarray, log_variance: np.ndarray | None) -> tuple:
    return embeddings, log_variance
