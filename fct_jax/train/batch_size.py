"""Batch size and learning rate, computed once from the config."""

import math

from ml_collections import ConfigDict

from fct_jax.errors import UserError
from fct_jax.train.accumulate import MicroBatches


def resolved(config: ConfigDict, mesh) -> ConfigDict:
    """Return a copy of the config with explicit global batch and learning rate.

    ``batch_size`` becomes the global batch, ``optimizer.lr`` the rate for that batch;
    ``per_device_batch_size`` and ``optimizer.lr_reference_batch``, from which they are computed,
    become 0. A run saves this copy: resuming on other devices does not change the config
    as long as batch and rate stay the same.

    Args:
      config: config of a training task.
      mesh: the devices, which share a batch.

    Raises:
      UserError: sizes that are not positive integers, a batch that cannot be divided over devices
        and micro-batches (with the nearest one that can), or two batch sizes that disagree.

    Source of the scaling: Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 2.1.
    """
    parts, steps = mesh.size, config.accumulate_steps
    for key, least in (("accumulate_steps", 1), ("batch_size", 0), ("per_device_batch_size", 0)):
        _check_count(f"config.{key}", config[key], least)
    _check_count("config.optimizer.lr_reference_batch", config.optimizer.lr_reference_batch, 0)

    group = micro_batches(config).group
    unit = math.lcm(parts * steps, steps * group if steps > 1 else 1)
    batch_size = config.batch_size
    if config.per_device_batch_size:
        product = config.per_device_batch_size * parts * steps
        if batch_size not in (0, product):
            raise UserError(
                f"config.batch_size={batch_size} is not {config.per_device_batch_size} for each of "
                f"{parts} devices, accumulated {steps} times; "
                f"nearest: config.batch_size={product}, or 0 to follow config.per_device_batch_size"
            )
        batch_size = product
    if batch_size < 1 or batch_size % unit:
        nearest = max(round(batch_size / unit), 1) * unit
        over = [f"over {parts} devices"] if parts > 1 or steps == 1 else []
        over += [f"into config.accumulate_steps={steps} micro-batches"] if steps > 1 else []
        over += [f"of whole identities of {group} images"] if steps > 1 and group > 1 else []
        raise UserError(
            f"config.batch_size={batch_size} does not divide {' '.join(over)}; nearest: {nearest}"
        )

    config = config.copy_and_resolve_references()
    config.batch_size, config.per_device_batch_size = batch_size, 0
    if reference := config.optimizer.lr_reference_batch:
        config.optimizer.lr = config.optimizer.lr * batch_size / reference
        config.optimizer.lr_reference_batch = 0
    return config


def micro_batches(config: ConfigDict) -> MicroBatches:
    """Return the step's micro-batches; if the sampler draws identities, these stay whole."""
    sampler = config.get("sampler")
    whole = sampler is not None and sampler.name == "identities"
    return MicroBatches(config.accumulate_steps, sampler.images if whole else 1)


def summary(config: ConfigDict, mesh) -> str:
    """Return one line for the log; ``config`` is the result of :func:`resolved`."""
    parts, model, steps = mesh.size, mesh.shape["model"], config.accumulate_steps
    devices = f"{parts} device{'s' if parts > 1 else ''}"
    text = f"batch {config.batch_size:,} = {devices} × {config.batch_size // (parts * steps):,}"
    if steps > 1:
        seen = config.batch_size // steps
        text += f" × {steps} accumulated (BatchNorm and losses between samples see {seen:,})"
    if model > 1:
        text += f"; a classifier over {model}"
    return f"{text}; lr {config.optimizer.lr:.4g}"


def _check_count(key: str, value, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{key} must be an integer from {least} on, not {value!r}")
