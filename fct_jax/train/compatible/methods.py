"""The table of backward-compatible methods: what each adds to the loss of the new model.

A method is a function ``(scope, step, options) -> Terms``. ``scope`` is the Flax module that the
function runs in, where a method that learns something itself declares it; ``options`` is
``config.compatibility``. Every loss has its source in ``fct_jax.losses``. Methods of one's own are
named as ``config.method=module:name`` (docs/plugins.md).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fct_jax import losses
from fct_jax.errors import UserError
from fct_jax.losses.numerics import normalize
from fct_jax.models.discriminator import Discriminator
from fct_jax.models.lce_transformation import LCETransformation
from fct_jax.runtime import plugins
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


def none(scope, step: Step, options):
    """Train the new model alone."""
    return Terms({}, 0.0)


def bct(scope, step: Step, options):
    loss, share = losses.bct(step.embedding, step.labels, step.old_classifier, with_share=True)
    return Terms({"bct": loss}, share)


def bct_ract(scope, step: Step, options):
    loss, share = losses.bct_ract(
        step.embedding, step.labels, step.old_classifier, step.base_logits, with_share=True
    )
    return Terms({"bct_ract": loss}, share)


def lce(scope, step: Step, options):
    center = None
    if options.transformation_blocks:
        transform = LCETransformation(options.transformation_blocks, name="transformation")
        center = transform(step.statistics.center, train=True)
    (boundary, alignment), share = losses.lce(
        step.embedding,
        step.labels,
        step.statistics,
        step.classifier,
        transformed_center=center,
        with_share=True,
    )
    return Terms({"boundary": boundary, "alignment": alignment}, share)


def unibct(scope, step: Step, options):
    loss, share = losses.unibct(
        step.embedding,
        step.labels,
        step.statistics.center,
        options.scale,
        options.margin,
        with_share=True,
    )
    return Terms({"unibct": loss}, share)


def hot_refresh(scope, step: Step, options):
    loss = losses.hot_refresh(
        step.embedding,
        step.old_embedding,
        step.labels,
        options.temperature,
        options.top_k,
        gather_gradient=options.gather_gradient,
    )
    return Terms({"hot_refresh": loss}, 1.0)


def contrastive(scope, step: Step, options):
    loss = losses.contrastive(
        step.embedding, step.old_embedding, step.labels, options.temperature, options.top_k
    )
    return Terms({"contrastive": loss}, 1.0)


def triplet(scope, step: Step, options):
    loss = losses.triplet(
        step.embedding, step.old_embedding, step.labels, options.triplet_margin, options.top_k
    )
    return Terms({"triplet": loss}, 1.0)


def triplet_ract(scope, step: Step, options):
    loss = losses.triplet_ract(
        step.embedding,
        step.old_embedding,
        step.labels,
        options.triplet_margin,
        options.top_k,
        gather_gradient=options.gather_gradient,
    )
    return Terms({"triplet_ract": loss}, 1.0)


def l2(scope, step: Step, options):
    return Terms({"l2": losses.l2(step.embedding, step.old_embedding)}, 1.0)


def lwf(scope, step: Step, options):
    new, old = _logits_of_old_classes(step)
    return Terms({"lwf": losses.lwf(new, old, options.lwf_temperature)}, 1.0)


def focal_distillation(scope, step: Step, options):
    new, old = _logits_of_old_classes(step)
    loss = losses.focal_distillation(
        new,
        old,
        step.labels,
        options.focal_alpha,
        options.focal_beta,
        options.focal_temperature,
        options.focal_kind,
    )
    return Terms({"focal_distillation": loss}, 1.0)


def advbct(scope, step: Step, options):
    elastic = None
    if options.elastic:
        elastic = scope.param("elastic", _uniform_around_zero, (len(step.classifier),))
    boundary, share = losses.advbct_boundary(
        step.embedding,
        step.labels,
        step.statistics,
        elastic,
        options.threshold,
        radius=options.radius,
        with_share=True,
    )
    if not options.adversarial_weight:
        return Terms({"boundary": boundary}, share)
    discriminator = Discriminator(name="discriminator")
    strength = losses.adversarial_strength(step.progress)
    # New before old, each normalised by itself: the running statistics see both in this order.
    new = discriminator(losses.gradient_reversal(step.embedding, strength))
    old = discriminator(step.old_embedding)
    weight = options.adversarial_weight * step.adversarial_weight
    found = {"boundary": boundary, "adversarial": losses.adversarial(new, old)}
    return Terms(found, share, {"adversarial": weight})


def oca(scope, step: Step, options):
    parts = losses.oca(step.base_logits, step.embedding, step.labels, step.old_means)
    known = jnp.any(step.old_means != 0, -1)[step.labels]
    found = {name: part.mean() for name, part in parts._asdict().items()}
    del found["classification"]  # the base loss
    return Terms(found, known.mean(), losses.OCA_WEIGHTS._asdict())


def turned(scope, step: Step, options, key):
    """Return OCA's input of the classifier: the embedding's direction after a learned rotation.

    It starts as the identity. The published layer has a bias besides, which is left out here: with
    it, the exported classifier, which is linear without bias, would not be the trained one.
    """
    size = step.embedding.shape[-1]
    return normalize(step.embedding) @ _rotation(scope.param("turn", _zeros, (size, size))).T


def with_turn(kernel: jax.Array, learned) -> jax.Array:
    """Return OCA's classifier (D, C) of embeddings that are not turned."""
    return _rotation(learned["turn"]).T @ kernel


def _rotation(free: jax.Array) -> jax.Array:
    return jax.scipy.linalg.expm(free - free.T)


def mixbct(scope, step: Step, options):
    return Terms({}, jnp.minimum(options.mix_share, step.credible.mean()))


def mixed(scope, step: Step, options, key):
    """Return MixBCT's input of the classifier: old embeddings replace a share of the batch."""
    given = step.embedding, step.old_embedding, step.credible
    return losses.mix_old_embeddings(*given, key, options.mix_share)[0]


def _zeros(key, shape):
    return jnp.zeros(shape, jnp.float32)


def _uniform_around_zero(key, shape):
    return jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0)


def _logits_of_old_classes(step: Step) -> tuple[jax.Array, jax.Array]:
    """(B, C_old) of the new and of the old model; both classifiers are linear without bias."""
    old = step.old_embedding @ step.old_classifier.T
    return step.logits[:, : len(step.old_classifier)], old


class Method(NamedTuple):
    """A row of the table: a method, what it needs of the old model, and how it changes the base.

    Attributes:
      losses: ``(scope, step, options) -> Terms``.
      classifier, embeddings, means, credible: whether it needs the old classifier; the old
        embeddings of the training images; their means by class; which of them are near these.
      statistics: kind of the class statistics that it needs; "": none.
      same_size: whether old and new embeddings must have one size.
      extends: whether the new embedding must be larger, the old space in its first numbers.
      classified: ``(scope, step, options, key) -> (B, D)``, what the base loss classifies; None:
        the new embedding.
      base_weight: of the base loss.
      folded: ``(kernel (D, C), learned parameters) -> kernel``: the classifier of new embeddings
        where others were classified; None: as it was trained.
    """

    losses: Callable
    classifier: bool = False
    statistics: str = ""
    embeddings: bool = False
    same_size: bool = True
    means: bool = False
    credible: bool = False
    extends: bool = False
    classified: Callable | None = None
    base_weight: float = 1.0
    folded: Callable | None = None


METHODS = {
    "none": Method(none, same_size=False),
    "bct": Method(bct, classifier=True),
    "bct_ract": Method(bct_ract, classifier=True),
    "lce": Method(lce, statistics="angle"),
    "hot_refresh": Method(hot_refresh, embeddings=True),
    "unibct": Method(unibct, statistics="euclidean"),
    "advbct": Method(advbct, statistics="euclidean", embeddings=True),
    "contrastive": Method(contrastive, embeddings=True),
    "triplet": Method(triplet, embeddings=True),
    "triplet_ract": Method(triplet_ract, embeddings=True),
    "l2": Method(l2, embeddings=True),
    "lwf": Method(lwf, classifier=True, embeddings=True, same_size=False),
    "focal_distillation": Method(
        focal_distillation, classifier=True, embeddings=True, same_size=False
    ),
    "oca": Method(
        oca,
        means=True,
        same_size=False,
        extends=True,
        classified=turned,
        base_weight=losses.OCA_WEIGHTS.classification,
        folded=with_turn,
    ),
    "mixbct": Method(mixbct, embeddings=True, credible=True, classified=mixed),
}


def find_method(name: str) -> Method:
    """Return a row of the table, or the user's own. Raises UserError for an unknown name."""
    found = plugins.find(METHODS, name, "compatible training method", "methods")
    if not isinstance(found, Method):
        raise UserError(
            f"config.method={name} must be a fct_jax.train.compatible.methods.Method, "
            f"not {type(found).__name__}"
        )
    return found


class Compatibility(nn.Module):
    """A method with what it learns itself.

    ``apply(variables, step, head, key) -> (logits of the base loss (B, C), Terms)``; ``head`` gives
    the logits of what is classified.
    """

    method: Method
    options: Any

    @nn.compact
    def __call__(self, step: Step, head: Callable, key: jax.Array) -> tuple[jax.Array, Terms]:
        classified = step.embedding
        if self.method.classified is not None:
            classified = self.method.classified(self, step, self.options, key)
        step = step._replace(base_logits=head(classified))
        return step.base_logits, self.method.losses(self, step, self.options)
