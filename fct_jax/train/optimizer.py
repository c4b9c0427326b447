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
_TRUST = 0.001  # the published trust coefficient of LARS


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

    Epochs before ``warmup`` use ``base · (epoch + 1) / warmup``, which reaches the full rate in
    the last of them, and the next epoch uses it again. With a ``warmup_start`` s above 0 they use
    ``base · (s + (1 - s) · epoch / warmup)`` instead: from the share s to full rate right after.
    After them:

    - "cosine": ``½ (1 + cos(π (e - warmup) / (epochs - warmup))) · base``, above zero to the end;
      a ``floor`` f squeezes it into the range from f · base to base (re-identification code that
      counts the warm-up among the cosine's epochs jumps there; this does not);
    - "constant": ``base``;
    - "multistep": ``base · gamma^k``, k the number of ``milestones`` reached, or ``e // step``.
      (The published code ignores the warm-up here; ask for none with ``warmup=0``.)

    Raises UserError for an unknown kind, a warm-up that fills all epochs of "cosine", and
    "multistep" without exactly one of ``milestones`` and ``step``.

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
    """:func:`learning_rate` from an optimizer's configuration, as for :func:`build_optimizer`."""
    schedule = config.schedule
    milestones = schedule.get("milestones") or None  # () leaves the word to `step`
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

    ``config`` (an ``ml_collections.ConfigDict``) has ``name`` (of `OPTIMIZERS`), ``lr``,
    ``weight_decay``, ``decay_batch_norm``, ``schedule`` (``name``; optional ``warmup_epochs``,
    ``milestones`` or ``step``, ``gamma``, ``warmup_start``, ``floor``) and, but for Adam,
    ``momentum`` and ``nesterov``. Optional: ``bias_lr_factor``, which multiplies the rate of all
    parameters named ``bias``; ``center_lr``, at which those named ``centers`` (of the centre loss)
    follow their gradient alone, without schedule, momentum or decay, as published with that loss.

    All optimizers decay *coupled*: ``weight_decay · p`` is added to the gradient before momentum
    or moments (not AdamW), on every parameter. ``decay_batch_norm=False`` spares the scale and
    bias of all batch normalisations (the published code spares only those whose name holds
    "bn": not those of shortcuts and transformations).

    - SGD: buffer = momentum · buffer + gradient, starting as the first gradient;
      p -= lr · buffer, with Nesterov p -= lr · (gradient + momentum · buffer).
    - LARS: for every layer the decayed gradient is scaled to 0.001 of the length of its weights,
      and the rate is applied before the momentum. Biases, and scales and biases of batch
      normalisations, are neither decayed nor scaled, whatever ``decay_batch_norm`` says.
      Source: "Large Batch Training of Convolutional Networks", 2017, and SimCLR, ICML 2020.
    - Adam: moments 0.9 and 0.999, 1e-8 added outside the bias-corrected root.

    The state counts the steps, so that a restored checkpoint goes on with the right rate; past
    the last epoch the rate stays that of the last. Raises UserError for an unknown name.
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

    A normalisation is a scope with a ``scale``; linear layers and convolutions have a ``kernel``
    instead, and keep the decay of their bias.
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
