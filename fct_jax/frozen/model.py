"""Exported models: the files with which a run's model embeds, transforms and is evaluated.

``RUN/model/`` holds ``model.json`` (architecture, preprocessing, fingerprints),
``weights.safetensors`` (every parameter and running statistic by its path) and
``program.stablehlo`` (the model as a program that needs only JAX, see ``program.py``).
"""

import functools
import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from fct_jax import models
from fct_jax.errors import UserError
from fct_jax.frozen.blocks import pipelined, row_blocks
from fct_jax.frozen.callable_model import CallableModel
from fct_jax.frozen.program import embedder_program, transformer_program
from fct_jax.frozen.runs import is_callable_name, is_model, is_run, read_description
from fct_jax.models.preprocessing import Preprocessing
from fct_jax.storage.files import new_directory

__all__ = [
    "Embedder",
    "Transformer",
    "is_model",
    "is_run",
    "load_model",
    "read_description",
    "write_model",
]

FORMAT_VERSION = 1


def write_model(folder: Path, description: dict, variables, finish=None) -> str:
    """Write an exported model and return its fingerprint.

    Args:
      folder: the directory to make, ``RUN/model``.
      description: contents of ``model.json``: ``kind`` ("backbone" or "transformation"),
        ``name`` and ``kwargs`` for ``fct_jax.models.build``, and further keys of the kind.
      variables: {"params": …, "batch_stats": …}.
      finish: called with the fingerprint before ``folder`` appears, to write files that must
        exist wherever a model does.
    """
    flat = traverse_util.flatten_dict(jax.device_get(variables), sep="/")
    weights = {name: np.ascontiguousarray(value) for name, value in sorted(flat.items())}
    description = {"format_version": FORMAT_VERSION, **description}
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name, value in weights.items():
        digest.update(name.encode())
        digest.update(value.tobytes())
    description["fingerprint"] = digest.hexdigest()[:16]
    to_program, kind = _KINDS[description["kind"]]
    program = to_program(kind(description, variables))
    with new_directory(folder) as partial:
        safetensors.numpy.save_file(weights, partial / "weights.safetensors")
        (partial / "program.stablehlo").write_bytes(program)
        (partial / "model.json").write_text(json.dumps(description, indent=2) + "\n")
        if finish is not None:
            finish(description["fingerprint"])
    return description["fingerprint"]


def load_model(run) -> "Embedder | Transformer | CallableModel":
    """Return a run's frozen model: an Embedder, or a Transformer for FCT and FastFill.

    "module:function" gives the CallableModel of a Python function instead.

    Example::

        model = fct_jax.load_model("runs/new")
        embeddings = model.embed(images)  # (N, H, W, 3) uint8 -> (N, D) float32
    """
    if is_callable_name(run):
        return CallableModel(str(run))
    description = read_description(run)
    path = Path(run).expanduser() / "model" / "weights.safetensors"
    try:
        flat = safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    variables = traverse_util.unflatten_dict(flat, sep="/")
    return _KINDS[description["kind"]][1](description, variables)


class Embedder:
    """A frozen backbone: images in, embeddings out.

    Attributes:
      dim: D, the size of an embedding.
      fingerprint: identifies the space of the embeddings.
      classifier: (C, D) weights of the classifier on the embedding, or None.
      preprocessing: the steps from an image to the model's input.
      variables: the model's parameters and running statistics; the classifier stays on the host.
      needed: those that embeddings need, on the device.
    """

    def __init__(self, description: dict, variables):
        self.description = description
        self.fingerprint = description["fingerprint"]
        self.dim = description["dim"]
        self.preprocessing = Preprocessing.from_dict(description["preprocessing"])
        self.module = models.build(description["name"], **description["kwargs"])
        kernel = variables["params"].get("classifier", {}).get("kernel")
        self.classifier = None if kernel is None else np.ascontiguousarray(kernel.T)
        params = {key: value for key, value in variables["params"].items() if key != "classifier"}
        self.needed = jax.device_put({**variables, "params": params})
        self.variables = {**variables, "params": {**variables["params"], **self.needed["params"]}}

    def forward(self, variables, images, flip=None):
        """Return (logits (N, C), embeddings (N, D)) of images (N, H, W, 3), for use under jit."""
        x = self.preprocessing.on_device(images, flip)
        return self.module.apply(variables, x, train=False)

    def embeddings(self, needed, images, flip=None):
        """Return embeddings (N, D) of images (N, H, W, 3), for use under jit."""
        params = needed["params"]
        if "classifier" in self.variables["params"]:
            # The module asks for it; a program that returns no logits computes nothing with it.
            shapes = self.variables["params"]["classifier"]
            nothing = jax.tree.map(lambda array: jnp.full(array.shape, jnp.nan), shapes)
            params = {**params, "classifier": nothing}
        return self.forward({**needed, "params": params}, images, flip)[1]

    @functools.cached_property
    def _compiled(self):
        return jax.jit(self.embeddings)

    def run(self, images, flip=None) -> jax.Array:
        """Return embeddings (N, D) on the device; the program is compiled once for each shape."""
        return self._compiled(self.needed, images, flip)

    def embed(self, images, batch_size: int = 256) -> np.ndarray:
        """Return embeddings (N, D), float32.

        Args:
          images: (N, H, W, 3) uint8, of any size; they are resized and normalised here.
          batch_size: images processed together.
        """
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise UserError(f"images must be (N, H, W, 3) uint8, not {images.shape} {images.dtype}")
        if len(images) and self.preprocessing.needs_host(images.shape[1:3]):
            images = np.stack([self.preprocessing.on_host(image) for image in images])
        batch_size = min(batch_size, max(len(images), 1))
        blocks = pipelined(self.run, row_blocks((images,), batch_size), batch_size)
        return np.concatenate([np.empty((0, self.dim), np.float32), *blocks])


class Transformer:
    """A frozen transformation (FCT, FastFill, LCE): old embeddings in, new-space embeddings out.

    Attributes:
      dim: size of the new embeddings.
      fingerprint: identifies this transformation.
      old_fingerprint, side_fingerprint: identify the models whose embeddings it takes.
      new_fingerprint: identifies the model whose space it maps to.
      name: the module's name for ``fct_jax.models.build``: "fct", "fastfill" or "lce".
      needs_side: whether it was trained with side information of its own.
      variables: its parameters and running statistics.
      needed: the same, on the device.
    """

    def __init__(self, description: dict, variables):
        self.description = description
        self.fingerprint = description["fingerprint"]
        self.dim = description["dim"]
        self.old_fingerprint = description["old_fingerprint"]
        self.new_fingerprint = description["new_fingerprint"]
        self.side_fingerprint = description["side_fingerprint"]
        self.needs_side = description["needs_side"]
        self.name = description["name"]
        self.module = models.build(description["name"], **description["kwargs"])
        self.variables = self.needed = jax.device_put(variables)

    @functools.cached_property
    def _compiled(self):
        return jax.jit(functools.partial(self.module.apply, train=False))

    @functools.cached_property
    def has_uncertainty(self) -> bool:
        """Return whether the module returns log-variances, which is found by tracing it."""
        old, side = (
            jax.ShapeDtypeStruct((1, self.description[f"{role}_dim"]), np.float32)
            for role in ("old", "side")
        )
        return jax.eval_shape(self.module.apply, self.variables, old, side)[1] is not None

    def run(self, old, side=None):
        """Return (embeddings (N, dn), log-variances (N,) or None), on the device."""
        return self._compiled(self.needed, old, old if side is None else side)

    def blocks(self, old, side=None, batch_size: int = 4096):
        """Yield (embeddings (n, dn), log-variances (n,) or None) block by block, in order.

        Args:
          old: (N, do) old embeddings; may be a memory map.
          side: (N, ds) side-information embeddings; None: use the old ones.
          batch_size: rows processed together.
        """
        given = (old,) if side is None else (old, side)
        batch_size = min(batch_size, len(old))
        yield from pipelined(self.run, row_blocks(given, batch_size), batch_size)

    def transform(self, old, side=None, batch_size: int = 4096):
        """Return (embeddings (N, dn), log-variances (N,) or None), float32."""
        parts = list(self.blocks(old, side, batch_size))
        embeddings = np.concatenate([part[0] for part in parts])
        if parts[0][1] is None:
            return embeddings, None
        return embeddings, np.concatenate([part[1] for part in parts])


_KINDS = {
    "backbone": (embedder_program, Embedder),
    "transformation": (transformer_program, Transformer),
}
