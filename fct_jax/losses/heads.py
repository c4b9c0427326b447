"""Classification heads: from embeddings and classifier weights to the logits of the base loss."""

import jax
import jax.numpy as jnp

from fct_jax.errors import unknown
from fct_jax.losses.classification import arcface, cosface, cosine_logits
from fct_jax.losses.reid import arcface_monotonic, circle

# Of the compatible-training benchmark, and of re-identification besides.
BASE_LOSSES = ("softmax", "arcface", "cosface")
_MARGINS = {
    "arcface": arcface,
    "cosface": cosface,
    "arcface_monotonic": arcface_monotonic,
    "amsoftmax": cosface,
    "circle": circle,
}
HEADS = ("softmax", *_MARGINS)


def base_logits(
    kind: str,
    embedding: jax.Array,
    classifier: jax.Array,
    labels: jax.Array,
    scale: float = 30.0,
    margin: float = 0.3,
) -> jax.Array:
    """Logits (N, C) of the base loss that compatible training adds to.

    kind "softmax": the plain linear classifier on raw embeddings (scale and margin unused);
    "arcface", "arcface_monotonic" (with the threshold), "cosface" or "amsoftmax" (two names of one
    function) and "circle" (published with scale 256, margin 0.25): margin logits of normalised
    embeddings and classifier rows. A label outside [0, C), such as -1, gets no margin.
    The loss is the mean :func:`fct_jax.losses.cross_entropy` of them.
    Raises UserError for another kind.
    """
    if kind == "softmax":
        return jnp.asarray(embedding, jnp.float32) @ jnp.asarray(classifier, jnp.float32).T
    if kind not in _MARGINS:
        raise unknown("base loss", kind, HEADS)
    return _MARGINS[kind](cosine_logits(embedding, classifier), labels, scale, margin)
