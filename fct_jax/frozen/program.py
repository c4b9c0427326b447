"""A frozen model as a program that needs only JAX, not this package.

``RUN/model/program.stablehlo`` is a serialised StableHLO function of the weights and a
batch of any size; the weights are those of ``weights.safetensors``, with the same names:

    weights = safetensors.numpy.load_file("RUN/model/weights.safetensors")
    program = jax.export.deserialize(open("RUN/model/program.stablehlo", "rb").read())
    embeddings = program.call(weights, images)   # (N, size, size, 3) uint8 -> (N, D)
"""

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax import export

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def embedder_program(embedder) -> bytes:
    """Return an ``Embedder``'s program: (weights by name, images uint8) -> embeddings.

    Images must already have the model's input size.
    """
    flat = traverse_util.flatten_dict(embedder.variables, sep="/")
    shapes = {name: jax.ShapeDtypeStruct(w.shape, w.dtype) for name, w in flat.items()}
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *embedder.preprocessing.shape, 3), jnp.uint8)

    def embed(weights, images):
        return embedder.forward(traverse_util.unflatten_dict(weights, sep="/"), images)[1]

    return export.export(jax.jit(embed), platforms=PLATFORMS)(shapes, images).serialize()


def transformer_program(transformer) -> bytes:
    """Return a ``Transformer``'s program: (weights, old, side) -> (embeddings, log-variances)."""
    flat = traverse_util.flatten_dict(transformer.variables, sep="/")
    shapes = {name: jax.ShapeDtypeStruct(w.shape, w.dtype) for name, w in flat.items()}
    (batch,) = export.symbolic_shape("batch")
    old, side = (
        jax.ShapeDtypeStruct((batch, transformer.description[f"{role}_dim"]), jnp.float32)
        for role in ("old", "side")
    )

    def transform(weights, old, side):
        variables = traverse_util.unflatten_dict(weights, sep="/")
        return transformer.module.apply(variables, old, side)

    return export.export(jax.jit(transform), platforms=PLATFORMS)(shapes, old, side).serialize()
