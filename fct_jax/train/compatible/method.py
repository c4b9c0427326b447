"""The types of a backward-compatible method: its view of a step, its losses, its table row."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from fct_jax.storage.class_statistics import ClassStatistics


class Step(NamedTuple):
    """A method's view of one step, over the global batch of B images."""

    embedding: jax.Array  # (B, D), by the new model
    logits: jax.Array  # (B, C), by the new model's classifier
    classifier: jax.Array  # (C, D), the new model's weights
    labels: jax.Array  # (B,)
    old_embedding: jax.Array | None  # (B, Do)
    old_classifier: jax.Array | None  # (C_old, Do)
    statistics: ClassStatistics | None
    progress: jax.Array | float  # share of the training that is done, in [0, 1)
    adversarial_weight: jax.Array | float  # the weight in this epoch
    base_logits: jax.Array | None = None  # (B, C), with the base loss's margin
    old_means: jax.Array | None = None  # (C, Do), of old unit vectors of training images
    credible: jax.Array | None = None  # (B,), whether the old embedding is near its class mean
    teacher: jax.Array | None = None  # (B, Dt), by a new model that was trained alone


class Terms(NamedTuple):
    """A method's addition to the loss.

    Attributes:
      losses: {name: loss}, under the names of the log.
      share: the share of the batch that took part.
      weights: {name: weight} of losses whose weight is not 1, such as one that varies by epoch.
    """

    losses: dict[str, jax.Array]
    share: jax.Array | float
    weights: Mapping[str, jax.Array | float] = MappingProxyType({})

    @property
    def total(self):
        """Return the weighted sum of the losses."""
        return sum(self.weights.get(name, 1.0) * loss for name, loss in self.losses.items())


class Size(NamedTuple):
    """A rule for ``config.model.embedding_dim``.

    Attributes:
      of: ``(own, old, teacher) -> the right size``, where ``own`` is the configured size.
      why: the end of the sentence "config.method=NAME …".
    """

    of: Callable[[int, int, int], int]
    why: str


ANY = Size(lambda own, old, teacher: own, "takes embeddings of any size")
SAME = Size(lambda own, old, teacher: old, "compares embeddings with those of the old model")
LARGER = Size(
    lambda own, old, teacher: own if own > old else old * 5 // 4,
    "keeps the old space in the first numbers of a larger embedding",
)
BOTH = Size(
    lambda own, old, teacher: old + teacher,
    "makes vectors of the teacher's and of the old model's size from the model's outputs",
)


class Served(NamedTuple):
    """The exported model, where it differs from the trained one.

    Attributes:
      build: ``(name, kwargs, old_dim, options) -> (name, kwargs)``, the arguments of
        ``fct_jax.models.build``; the first two are the trained model's.
      variables: ``(variables of the trained model, what the method learned, options) ->
        variables``.
    """

    build: Callable[[str, dict, int, Any], tuple[str, dict]]
    variables: Callable[[dict, dict, Any], dict]


class Method(NamedTuple):
    """A row of the table: a method, its needs of the old model, its changes to the base loss.

    Attributes:
      losses: ``(scope, step, options) -> Terms``.
      classifier: whether it needs the old classifier.
      embeddings: whether it needs the old embeddings of the training images.
      means: whether it needs the means of these embeddings by class.
      credible: whether it needs to know which of these embeddings are near their class mean.
      statistics: the kind of class statistics that it needs; "": none.
      teacher: whether it needs embeddings by ``config.teacher``.
      size: the rule for the size of the new model's outputs.
      old_first: whether the old space is in the first numbers of a larger exported embedding.
      classified: ``(scope, step, options, key) -> (B, D)``, the vectors that the base loss
        classifies; if they are narrower than the embedding, the classifier's first columns are
        used. None: the embedding.
      base_weight: the weight of the base loss.
      served: the exported model; None: the trained one.
    """

    losses: Callable
    classifier: bool = False
    statistics: str = ""
    embeddings: bool = False
    means: bool = False
    credible: bool = False
    teacher: bool = False
    size: Size = SAME
    old_first: bool = False
    classified: Callable | None = None
    base_weight: float = 1.0
    served: Served | None = None
