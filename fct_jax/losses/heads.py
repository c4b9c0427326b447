"""Classification heads: from embeddings and classifier weights to the logits of the base loss."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fct_jax.losses.classification import arcface, cosface, cosine_logits
from fct_jax.losses.reid import arcface_monotonic, circle
from fct_jax.runtime import plugins

# The heads of the compatible-training benchmark; HEADS adds those of re-identification.
BASE_LOSSES = ("softmax", "arcface", "cosface")


def softmax(embedding, classifier, labels, scale, margin):
    """Return the logits (N, C) of the plain linear classifier; scale and margin are not used."""
    return jnp.asarray(embedding, jnp.float32) @ jnp.asarray(classifier, jnp.float32).T


def _of_directions(add_margin: Callable) -> Callable:
    """Return a head on the cosines of normalised embeddings and classifier rows."""

    def head(embedding, classifier, labels, scale, margin):
        return add_margin(cosine_logits(embedding, classifier), labels, scale, margin)

    return head


# name -> (embedding (N, D), classifier (C, D), labels (N,), scale, margin) -> logits (N, C)
HEADS: dict[str, Callable] = {
    "softmax": softmax,
    "arcface": _of_directions(arcface),
    "arcface_monotonic": _of_directions(arcface_monotonic),
    "cosface": _of_directions(cosface),
    "amsoftmax": _of_directions(cosface),
    "circle": _of_directions(circle),
}


def base_logits(
    kind: str,
    embedding: jax.Array,
    classifier: jax.Array,
    labels: jax.Array,
    scale: float = 30.0,
    margin: float = 0.3,
) -> jax.Array:
    """Return the logits (N, C) of the base loss that compatible training adds to.

    The kind "softmax" is the plain linear classifier on raw embeddings (scale and margin are
    unused). The others give margin logits of normalised embeddings and classifier rows: "arcface",
    "arcface_monotonic" (with the threshold), "cosface" or "amsoftmax" (two names of one function)
    and "circle" (published with scale 256, margin 0.25). A label outside [0, C), such as -1, gets
    no margin. The loss is the mean :func:`fct_jax.losses.cross_entropy` of the logits.
    ``module:name`` names a head of your own (docs/plugins.md). Raises UserError if the kind is
    unknown.
    """
    head = plugins.find(HEADS, kind, "base loss", "losses")
    return head(embedding, classifier, labels, scale, margin)
