"""What a backward-compatible method is: its view of a step, its losses, a row of the table."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from fct_jax.storage.class_statistics import ClassStatistics


class Step(NamedTuple):
    """A method's view of one step, over the global batch of B images."""

    embedding: jax.Array  # (B, D) of the new model
    logits: jax.Array  # (B, C) of its classifier
    classifier: jax.Array  # (C, D) of the new model
    labels: jax.Array  # (B,)
    old_embedding: jax.Array | None  # (B, Do)
    old_classifier: jax.Array | None  # (C_old, Do)
    statistics: ClassStatistics | None
    progress: jax.Array | float  # share of the training that is over, in [0, 1)
    adversarial_weight: jax.Array | float  # of this epoch
    base_logits: jax.Array | None = None  # (B, C) with the margin of the base loss
    old_means: jax.Array | None = None  # (C, Do) of the old unit vectors of the training images
    credible: jax.Array | None = None  # (B,) whether the old embedding is near its class's mean
    teacher: jax.Array | None = None  # (B, Dt) of a new model that was trained alone


class Terms(NamedTuple):
    """A method's addition to the loss.

    Attributes:
      losses: {name: loss}, as they are logged.
      share: how much of the batch took part.
      weights: {name: weight} where it is not 1; of an epoch, say.
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
      of: ``(own, old, teacher) -> the right size``, where ``own`` is the one that is set.
      why: ends the sentence "config.method=NAME …".
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
    """The model that is exported where it is not the one that is trained.

    Attributes:
      build: ``(name, kwargs, old_dim, options) -> (name, kwargs)`` of ``fct_jax.models.build``; the
        first two are the trained model's.
      variables: ``(variables of the trained model, what the method learned, options) ->
        variables``.
    """

    build: Callable[[str, dict, int, Any], tuple[str, dict]]
    variables: Callable[[dict, dict, Any], dict]


class Method(NamedTuple):
    """A row of the table: a method, what it needs of the old model, and how it changes the base.

    Attributes:
      losses: ``(scope, step, options) -> Terms``.
      classifier, embeddings, means, credible: whether it needs the old classifier; the old
        embeddings of the training images; their means by class; which of them are near these.
      statistics: kind of the class statistics that it needs; "": none.
      teacher: whether it needs embeddings of ``config.teacher``.
      size: of the new model's outputs.
      old_first: whether the old space is in the first numbers of a larger exported embedding.
      classified: ``(scope, step, options, key) -> (B, D)``, what the base loss classifies; where
        that is narrower than the embedding, by the classifier's first columns. None: the embedding.
      base_weight: of the base loss.
      served: the model that is exported; None: the one that is trained.
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
