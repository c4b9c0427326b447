"""Optimizers and learning-rate schedules with the semantics of the published training code."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fct_jax.errors import UserError, unknown

SCHEDULES = ("cosine", "constant", "multistep")
OPTIMIZERS = ("sgd", "adam", "lars")
_TRUST = 0.001  # LARS's trust coefficient, as published


def learning_rate(
    kind: str,
    base: float,
    epochs: int,
    warmup: int = 0,
    *,
    milestones: Sequence[int] | None = None,
    step: int | None = None,
    gamma: float = 0.1,
    warmup_start: float = 0.0,
    floor: float = 0.0,
) -> Callable[[int], float]:
    """Return the function from epoch (0-based) to learning rate, constant within an epoch.

    The first ``warmup`` epochs use ``base · (epoch + 1) / warmup``: the last of them reaches the
    full rate, and the epoch after it uses the full rate again. With a ``warmup_start`` s above 0
    they use ``base · (s + (1 - s) · epoch / warmup)`` instead, which rises from the share s and
    reaches the full rate in the epoch after the warm-up. Later epochs e use:

    - "cosine": ``½ (1 + cos(π (e - warmup) / (epochs - warmup))) · base``, which stays above zero
      to the end; a ``floor`` f rescales it to the range from f · base to base (published
      re-identification code counts the warm-up among the cosine's epochs, so that its rate jumps
      after the warm-up; this one does not jump);
    - "constant": ``base``;
    - "multistep": ``base · gamma^k``, where k is the number of ``milestones`` reached, or
      ``e // step``. (The published code ignores the warm-up here; pass ``warmup=0`` for none.)

    Raises UserError for an unknown kind, for a warm-up that fills all epochs of "cosine", and
    for "multistep" without exactly one of ``milestones`` and ``step``.

    Source: "Forward Compatible Training", CVPR 2022 (training details).
    """
    if kind not in SCHEDULES:
        raise unknown("schedule", kind, SCHEDULES)
    if kind == "cosine" and not 0 <= warmup < epochs:
        raise UserError(
            f"config.optimizer.schedule.warmup_epochs={warmup} warm-up epochs do not fit into "
            f"config.epochs={epochs} of the cosine schedule; "
            f"largest possible: {max(epochs - 1, 0)}"
        )
    for name, share in (("warmup_start", warmup_start), ("floor", floor)):
        if not 0 <= share <= 1:
            raise UserError(
                f"config.optimizer.schedule.{name} is a share of the rate in [0, 1], not {share}"
            )
    if kind == "multistep":
        if (milestones is None) == (step is None):
            raise UserError(
                "the multistep schedule takes either milestones or step: set one of "
                "config.optimizer.schedule.milestones and config.optimizer.schedule.step"
            )
        if step is not None and step < 1:
            raise UserError(f"config.optimizer.schedule.step must be at least 1 epoch, not {step}")

    def rate(epoch: int) -> float:
        if epoch < warmup and warmup_start:
            return base * (warmup_start + (1 - warmup_start) * epoch / warmup)
        if epoch < warmup:
            return base * (epoch + 1) / warmup
        if kind == "cosine":
            share = 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))
            return (floor + (1 - floor) * share) * base
        if kind == "constant":
            return base
        if milestones is not None:
            return base * gamma ** sum(epoch >= milestone for milestone in milestones)
        return base * gamma ** (epoch // step)

    return rate


def configured_learning_rate(config: Any, epochs: int) -> Callable[[int], float]:
    """Return :func:`learning_rate` for the configuration that :func:`build_optimizer` takes."""
    schedule = config.schedule
    milestones = schedule.get("milestones") or None  # with (), `step` decides
    return learning_rate(
        schedule.name,
        config.lr,
        epochs,
        schedule.get("warmup_epochs", 0),
        milestones=milestones,
        step=None if milestones else schedule.get("step"),
        gamma=schedule.get("gamma", 0.1),
        warmup_start=schedule.get("warmup_start", 0.0),
        floor=schedule.get("floor", 0.0),
    )


def build_optimizer(config: Any, epochs: int, steps_per_epoch: int) -> optax.GradientTransformation:
    """Return the optimizer of a configuration, for ``epochs`` of ``steps_per_epoch`` steps.

    ``config`` (an ``ml_collections.ConfigDict``) has ``name`` (one of `OPTIMIZERS`), ``lr``,
    ``weight_decay``, ``decay_batch_norm``, ``schedule`` (``name``; optional ``warmup_epochs``,
    ``milestones`` or ``step``, ``gamma``, ``warmup_start``, ``floor``) and, except for
    Adam, ``momentum`` and ``nesterov``. Two keys are optional: ``bias_lr_factor`` multiplies the
    rate of all parameters named ``bias``; ``center_lr`` is the rate at which those named
    ``centers`` (of the centre loss) follow their gradient alone, without schedule, momentum or
    decay, as published with that loss.

    All optimizers decay *coupled*: ``weight_decay · p`` is added to the gradient before momentum
    or moments (unlike AdamW), for every parameter. ``decay_batch_norm=False`` exempts the scale
    and bias of all batch normalisations (the published code exempts only those whose name contains
    "bn", and so not those of shortcuts and transformations).

    - SGD: buffer = momentum · buffer + gradient, where the first buffer is the first gradient;
      p -= lr · buffer, or with Nesterov p -= lr · (gradient + momentum · buffer).
    - LARS: the decayed gradient of every layer is scaled to 0.001 times the norm of the layer's
      weights, and the rate is applied before the momentum. Biases, and the scales of batch
      normalisations, are neither decayed nor scaled, whatever ``decay_batch_norm`` says.
      Source: "Large Batch Training of Convolutional Networks", 2017, and SimCLR, ICML 2020.
    - Adam: the moments decay by 0.9 and 0.999; 1e-8 is added outside the bias-corrected root.

    The state counts the steps, so that training resumes from a checkpoint at the right rate; after
    the last epoch the rate stays that of the last epoch. Raises UserError for an unknown name.
    """
    if config.name not in OPTIMIZERS:
        raise unknown("optimizer", config.name, OPTIMIZERS)
    rate = configured_learning_rate(config, epochs)
    rates = jnp.asarray([rate(epoch) for epoch in range(epochs)], jnp.float32)

    def rate_of_step(count):
        return rates[jnp.minimum(count // steps_per_epoch, epochs - 1)]

    factor = config.get("bias_lr_factor", 1.0)
    chain = _rule(config, rate_of_step)
    if factor != 1:
        chain = optax.chain(chain, _scaled_biases(factor))
    if not config.get("center_lr"):
        return chain
    return optax.multi_transform({"centers": optax.sgd(config.center_lr), "rest": chain}, _centers)


def _rule(config, rate_of_step) -> optax.GradientTransformation:
    """Return the named optimizer at the scheduled rate."""
    if config.name == "lars":
        return optax.lars(
            rate_of_step,
            weight_decay=config.weight_decay,
            weight_decay_mask=adapted,
            trust_coefficient=_TRUST,
            trust_ratio_mask=adapted,
            momentum=config.momentum,
            nesterov=config.nesterov,
        )
    mask = None if config.decay_batch_norm else decayed
    steps = [optax.add_decayed_weights(config.weight_decay, mask)] if config.weight_decay else []
    if config.name == "adam":
        steps.append(optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8))
    elif config.momentum:
        steps.append(optax.trace(config.momentum, nesterov=config.nesterov))
    return optax.chain(*steps, optax.scale_by_learning_rate(rate_of_step))


def _scaled_biases(factor: float) -> optax.GradientTransformation:
    def scale(updates, params):
        del params
        return jax.tree_util.tree_map_with_path(
            lambda path, u: u * factor if _name(path) == "bias" else u, updates
        )

    return optax.stateless(scale)


def _centers(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "centers" if _name(path) == "centers" else "rest", params
    )


def decayed(params: Any) -> Any:
    """Return a tree of booleans: False for batch normalisations' scale and bias, else True.

    A scope with a ``scale`` counts as a normalisation. Linear layers and convolutions have a
    ``kernel`` instead, and their bias is decayed.
    """
    normalisations = {
        path[:-1]
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
        if _name(path) == "scale"
    }

    def keeps_decay(path, _):
        return not (path[:-1] in normalisations and _name(path) in ("scale", "bias"))

    return jax.tree_util.tree_map_with_path(keeps_decay, params)


def adapted(params: Any) -> Any:
    """Return a tree of booleans: False for every bias and normalisation scale, else True."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: _name(path) not in ("scale", "bias"), params
    )


def _name(path) -> str:
    return getattr(path[-1], "key", "")
