"""Maps from an old model's vectors to a new model's space, with an uncertainty for each vector.

A map is a directory:

    map.json              method, sizes, fingerprints, what its fitting found
    weights.safetensors   the linear map (procrustes, ridge) and the uncertainty's regressor
    run/                  the exported transformation (fct, fastfill)
    numpy.safetensors     the same map as plain layers, for services without JAX
    known.npz             pairs that took no part in the fitting: ids, old, new
    fitted.npy            uint64 hashes of the old vectors that did (``inputs.row_hashes``)
"""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from fct_jax.errors import UserError
from fct_jax.frozen.model import Transformer, is_run, load_model, pipelined, row_blocks, write_model
from fct_jax.storage.files import new_directory
from fct_jax.upgrade.maps.export import write_numpy

FORMAT_VERSION = 1
METHODS = ("procrustes", "ridge", "fct", "fastfill")
_NORM_FLOOR = 1e-12


@dataclasses.dataclass(frozen=True)
class KnownPairs:
    """Items embedded by both models that a map was not fitted on: its known answers.

    ids: (P,); old: (P, do) float32; new: (P, dn) float32.
    """

    ids: np.ndarray
    old: np.ndarray
    new: np.ndarray


class Map:
    """A frozen map h: old vectors in, vectors of the new model's space out.

    Attributes:
      method: "procrustes", "ridge", "fct" or "fastfill".
      dim_in, dim_out: sizes of the old and of the new vectors.
      old_fingerprint, new_fingerprint: of the two models, None where unknown.
      fingerprint: of the map itself: its weights and description.
      unit_output: whether results are scaled to unit length, as the new model's vectors are.
      has_uncertainty: whether log-variances mean anything; without, they are all 0.
      metric: "l2" or "cosine": by which the new vectors are searched.
      known: KnownPairs, or None.
      fitted: (n,) uint64 hashes of the old vectors that the map was fitted on, or None.
      description: what ``map.json`` holds.
    """

    def __init__(
        self,
        description: dict,
        weights: dict[str, np.ndarray],
        transformer: Transformer | None = None,
        known: KnownPairs | None = None,
        fitted: np.ndarray | None = None,
    ):
        """``weights``: weight, scale, bias of a linear map, and the regressor's uncertainty_….

        With a ``transformer`` (fct, fastfill) there is a scale alone, which its results take.
        """
        self.method = description["method"]
        self.dim_in, self.dim_out = int(description["dim_in"]), int(description["dim_out"])
        self.old_fingerprint = description.get("old_fingerprint")
        self.new_fingerprint = description.get("new_fingerprint")
        self.unit_output = bool(description.get("unit_output", False))
        self.metric = description.get("metric", "l2")
        self.known, self.fitted, self.transformer = known, fitted, transformer
        self.weights = {name: np.asarray(value, np.float32) for name, value in weights.items()}
        learned = transformer is not None and transformer.module.uncertainty
        self.has_uncertainty = bool(learned or "uncertainty_weight" in self.weights)
        self.description = {"format_version": FORMAT_VERSION, **description}
        self.fingerprint = self._fingerprint()
        self.description["fingerprint"] = self.fingerprint

    def transform(self, vectors, batch_size: int = 4096) -> tuple[np.ndarray, np.ndarray]:
        """(embeddings (N, dn) float32, log-variances (N,) float32) of old vectors (N, do).

        Raises UserError for vectors of another size.
        """
        parts = list(self.blocks(vectors, batch_size))
        if not parts:
            return np.empty((0, self.dim_out), np.float32), np.empty(0, np.float32)
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def blocks(self, vectors, batch_size: int = 4096):
        """Yields (embeddings (n, dn), log-variances (n,)) block by block, in order.

        Args:
          vectors: (N, do) float32 or float16; may be a memory map, of which a block is read
            at a time.
          batch_size: rows worked through together.
        """
        if np.ndim(vectors) != 2 or vectors.shape[1] != self.dim_in:
            raise UserError(
                f"the map takes old vectors of dimension {self.dim_in}, "
                f"but these have shape {np.shape(vectors)}"
            )
        batch_size = max(1, min(batch_size, len(vectors)))
        yield from pipelined(self._run, row_blocks((vectors,), batch_size), batch_size)

    def save(self, folder) -> Path:
        """Writes the directory, whole or not at all; never over an existing one."""
        with new_directory(folder) as partial:
            safetensors.numpy.save_file(self.weights, partial / "weights.safetensors")
            write_numpy(
                partial / "numpy.safetensors", self.weights, self.transformer, self.unit_output
            )
            if self.transformer is not None:
                _write_run(partial / "run", self.transformer)
            if self.known is not None:
                np.savez(partial / "known.npz", **vars(self.known))
            if self.fitted is not None:
                np.save(partial / "fitted.npy", self.fitted)
            (partial / "map.json").write_text(json.dumps(self.description, indent=2) + "\n")
        return Path(folder)

    def _fingerprint(self) -> str:
        described = {k: v for k, v in self.description.items() if k != "fingerprint"}
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
        for name, value in sorted(self.weights.items()):
            digest.update(name.encode())
            digest.update(value.tobytes())
        if self.transformer is not None:
            digest.update(self.transformer.fingerprint.encode())
        return digest.hexdigest()[:16]

    @functools.cached_property
    def _compiled(self):
        return jax.jit(functools.partial(_apply, unit_output=self.unit_output))

    @functools.cached_property
    def _on_device(self):
        return jax.device_put(self.weights)

    def _run(self, old):
        learned = None if self.transformer is None else self.transformer.run(old)
        return self._compiled(self._on_device, old, learned)


@jax.default_matmul_precision("highest")
def _apply(weights, old, learned, unit_output: bool):
    """What a map computes of a block: (n, do) → (n, dn), (n,)."""
    if learned is None:
        mapped, log_variance = old @ weights["weight"] * weights["scale"] + weights["bias"], None
    else:
        mapped, log_variance = learned[0] * weights["scale"], learned[1]
    norm = jnp.linalg.norm(mapped, axis=1, keepdims=True)
    if "uncertainty_weight" in weights:
        features = regressor_features(weights, old, norm, jnp)
        log_variance = features @ weights["uncertainty_weight"] + weights["uncertainty_bias"]
        low, high = weights["uncertainty_range"]
        log_variance = jnp.clip(log_variance, low, high)
    if log_variance is None:
        log_variance = jnp.zeros(len(old))
    if unit_output:
        mapped = mapped / jnp.maximum(norm, _NORM_FLOOR)
    return mapped.astype(jnp.float32), log_variance.astype(jnp.float32)


def regressor_features(weights, old, norm, xp=np):
    """What the uncertainty is regressed on, (n, do + H + 1).

    The standardised old vector, H rectified random projections of it, and the logarithm of the
    length ``norm`` (n, 1) of the mapped vector before it is scaled to unit length. ``xp``: NumPy,
    or JAX's where it is compiled.
    """
    standard = (old - weights["uncertainty_mean"]) * weights["uncertainty_scale"]
    hidden = standard @ weights["uncertainty_hidden"] + weights["uncertainty_hidden_bias"]
    length = xp.log(xp.maximum(norm, _NORM_FLOOR))
    return xp.concatenate([standard, xp.maximum(hidden, 0), length], axis=1)


def load_map(folder) -> Map:
    """The map in a directory: one that ``fit`` made, or the run of an FCT or FastFill training.

    Raises UserError where there is neither.
    """
    folder = Path(folder)
    if is_run(folder):
        return map_of_run(folder)
    if not (folder / "map.json").is_file():
        raise UserError(f"no map in {folder}: map.json is missing")
    try:
        description = json.loads((folder / "map.json").read_text())
        weights = safetensors.numpy.load_file(folder / "weights.safetensors")
    except (ValueError, OSError, safetensors.SafetensorError) as error:
        raise UserError(f"the map in {folder} cannot be read: {error}") from None
    if description.get("format_version", 0) > FORMAT_VERSION:
        raise UserError(
            f"the map in {folder} has format version {description['format_version']}; "
            f"this fct_jax reads versions up to {FORMAT_VERSION}"
        )
    known = fitted = None
    if (folder / "known.npz").is_file():
        with np.load(folder / "known.npz", allow_pickle=False) as file:
            known = KnownPairs(file["ids"], file["old"], file["new"])
    if (folder / "fitted.npy").is_file():
        fitted = np.load(folder / "fitted.npy", allow_pickle=False)
    transformer = load_model(folder / "run") if is_run(folder / "run") else None
    saved = description.pop("fingerprint", None)
    found = Map(description, weights, transformer, known, fitted)
    if saved != found.fingerprint:
        raise UserError(
            f"the map in {folder} is damaged: its weights do not have the fingerprint of map.json"
        )
    return found


def map_of_run(run, scale: float = 1.0) -> Map:
    """The run of an FCT or FastFill training as a map; its results are multiplied by ``scale``."""
    model = load_model(run)
    if not isinstance(model, Transformer):
        raise UserError(f"{run} is the run of a backbone; a map needs a transformation's")
    if model.needs_side:
        raise UserError(f"{run} was trained with side information, which a map cannot take")
    described = {
        "method": "fastfill" if model.module.uncertainty else "fct",
        "dim_in": model.description["old_dim"],
        "dim_out": model.dim,
        "old_fingerprint": model.old_fingerprint,
        "new_fingerprint": model.new_fingerprint,
    }
    return Map(described, {"scale": np.float32(scale)}, model)


def _write_run(folder: Path, transformer: Transformer) -> None:
    described = dict(transformer.description)
    del described["fingerprint"], described["format_version"]
    write_model(folder / "model", described, transformer.variables)
