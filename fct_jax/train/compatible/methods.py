"""The table of backward-compatible methods: what each adds to the loss of the new model.

A method is a function ``(scope, step, options) -> Terms``. ``scope`` is the Flax module in which
the function runs; a method declares its own parameters there. ``options`` is
``config.compatibility``. ``fct_jax.losses`` names the source of every loss. To use a method of
your own, set ``config.method=module:name`` (docs/plugins.md).
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fct_jax import losses
from fct_jax.errors import UserError
from fct_jax.models.discriminator import Discriminator
from fct_jax.models.lce_transformation import LCETransformation
from fct_jax.runtime import plugins
from fct_jax.train.compatible.extended import BT2, OCA
from fct_jax.train.compatible.method import ANY, Method, Size, Step, Terms

__all__ = [
    "ANY",
    "METHODS",
    "Compatibility",
    "Method",
    "Size",
    "Step",
    "Terms",
    "find_method",
]


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
    # New before old, each normalised on its own: the running statistics see them in this order.
    new = discriminator(losses.gradient_reversal(step.embedding, strength))
    old = discriminator(step.old_embedding)
    weight = options.adversarial_weight * step.adversarial_weight
    found = {"boundary": boundary, "adversarial": losses.adversarial(new, old)}
    return Terms(found, share, {"adversarial": weight})


def mixbct(scope, step: Step, options):
    return Terms({}, jnp.minimum(options.mix_share, step.credible.mean()))


def mixed(scope, step: Step, options, key):
    """Return MixBCT's input of the classifier: old embeddings replace a share of the batch."""
    given = step.embedding, step.old_embedding, step.credible
    return losses.mix_old_embeddings(*given, key, options.mix_share)[0]


def _uniform_around_zero(key, shape):
    return jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0)


def _logits_of_old_classes(step: Step) -> tuple[jax.Array, jax.Array]:
    """Return logits (B, C_old) by both models, new first; the classifiers have no bias."""
    old = step.old_embedding @ step.old_classifier.T
    return step.logits[:, : len(step.old_classifier)], old


METHODS = {
    "none": Method(none, size=ANY),
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
    "lwf": Method(lwf, classifier=True, embeddings=True, size=ANY),
    "focal_distillation": Method(focal_distillation, classifier=True, embeddings=True, size=ANY),
    "oca": OCA,
    "bt2": BT2,
    "mixbct": Method(mixbct, embeddings=True, credible=True, classified=mixed),
}


def find_method(name: str) -> Method:
    """Return a method of the table or a user's own. Raises UserError for an unknown name."""
    found = plugins.find(METHODS, name, "compatible training method", "methods")
    if not isinstance(found, Method):
        raise UserError(
            f"config.method={name} must be a fct_jax.train.compatible.methods.Method, "
            f"not {type(found).__name__}"
        )
    return found


class Compatibility(nn.Module):
    """A method together with its own parameters.

    ``apply(variables, step, head, key) -> (logits of the base loss (B, C), Terms)``; ``head`` maps
    the vectors to classify to logits.
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
