"""Batches of images for training: kept on the device if they fit, otherwise streamed."""

import jax
from ml_collections import ConfigDict

from fct_jax import data
from fct_jax.data.sampling import ClassBalancedSampler, IdentitySampler, Sampler, Shuffled
from fct_jax.errors import UserError, unknown
from fct_jax.train.feeds import ResidentFeed, StreamFeed, rows_of_process

SAMPLERS = ("identities", "balanced")
_FITS = 2 * 2**30  # bytes of uint8 images that "auto" keeps on the device


def preprocessing_of(config: ConfigDict) -> data.Preprocessing:
    """Return the config's preprocessing section; ``resize`` 0 stands for none."""
    return data.Preprocessing.from_dict({**config.to_dict(), "resize": config.resize or None})


def image_feed(
    source, preprocessing, config: ConfigDict, mesh, **crops
) -> ResidentFeed | StreamFeed:
    """Return the training batches {"image", "label", "flip", "index"} of a source.

    "index" (B,) is the position of each image in the source.

    Args:
      source: as ``data.open_source`` returns it.
      preprocessing: how its images become the model's input.
      config: has ``batch_size``, ``seed``, ``data`` and, for tasks that offer it, ``sampler``.
      mesh: the devices.
      crops: ``crops`` and ``crop_area`` of ``data.batches``, for images that the host crops.
    """
    if _in_memory(source, preprocessing, config.data.in_memory):
        arrays = data.load_all(source, preprocessing)
        count = len(arrays["label"])  # images that could not be read are left out

        def pick(arrays, indices, key):
            flip = jax.random.bernoulli(key, 0.5, indices.shape) & preprocessing.flip
            batch = {name: array[indices] for name, array in arrays.items()}
            return {**batch, "flip": flip}

        return ResidentFeed(
            arrays,
            count,
            pick,
            mesh=mesh,
            # XLA runs convolutions inside a device loop on one CPU core, several times slower;
            # and a backbone's step is long enough to hide the cost of a call.
            steps_per_call=1,
            sampler=sampler_of(config, arrays["label"], count, mesh),
        )
    sampler = sampler_of(config, source.labels, len(source), mesh)
    rows = rows_of_process(config.batch_size, mesh)
    batches = data.batches(
        source,
        preprocessing,
        batch_size=config.batch_size,
        train=True,
        seed=config.seed,
        workers=config.data.workers,
        rows=rows,
        last_rows=rows_of_process(sampler.last_size, mesh),
        on_error=config.data.on_error,
        sampler=sampler,
        **crops,
    )
    return StreamFeed(batches, rows, config.batch_size, len(source), mesh, sampler.last_size)


def sampler_of(config: ConfigDict, labels, count: int, mesh) -> Sampler:
    """Return the order of the training samples that ``config.sampler`` asks for.

    Args:
      config: has ``batch_size``, ``seed`` and perhaps ``sampler``, ``last_batch`` and
        ``accumulate_steps``.
      labels: labels (N,) of the training images; None if the config has no ``sampler``.
      count: N.
      mesh: the devices, which must divide a last batch that is kept.

    Raises:
      UserError: if a name is unknown, a batch is not whole identities, there are too few
        identities, or a last batch cannot be kept.
    """
    options = config.get("sampler")
    keep = config.get("last_batch", "drop") == "keep"
    if options is None or not options.name:
        sampler = Shuffled(count, config.batch_size, seed=config.seed, keep_last=keep)
        _check_last(config, sampler, count, mesh)
        return sampler
    if options.name not in SAMPLERS:
        raise unknown("sampler", options.name, SAMPLERS)
    if keep:
        raise UserError(
            f"config.last_batch=keep is for config.sampler.name='': batches of the sampler "
            f"{options.name!r} are always full; set config.last_batch=drop"
        )
    if options.name == "balanced":
        return ClassBalancedSampler(labels, config.batch_size, seed=config.seed)
    identities, left = divmod(config.batch_size, max(options.images, 1))
    if left:
        raise UserError(
            f"config.batch_size={config.batch_size} is not a multiple of "
            f"config.sampler.images={options.images}; nearest: {identities * options.images}"
        )
    rounds = options.rounds or None
    return IdentitySampler(labels, identities, options.images, seed=config.seed, rounds=rounds)


def _check_last(config: ConfigDict, sampler: Sampler, count: int, mesh) -> None:
    """Raise UserError if devices and micro-batches do not divide the epoch's last batch."""
    parts, steps = mesh.size, config.get("accumulate_steps", 1)
    left = sampler.last_size % (parts * steps)
    if left:
        over = f"{parts} devices" + (f" × {steps} micro-batches" if steps > 1 else "")
        # Every possible batch size is a multiple of `over`, so all leave the same remainder.
        raise UserError(
            f"config.last_batch=keep: the last batch of an epoch has {sampler.last_size} of "
            f"{count} images, which {over} do not divide; set config.last_batch=drop, or leave "
            f"out {left} images"
        )


def _in_memory(source, preprocessing, wish: str) -> bool:
    if wish not in ("auto", "yes", "no"):
        raise UserError(f"config.data.in_memory is {wish!r}; known: auto, yes, no")
    possible = preprocessing.train_crop == "none"  # the host makes random crops
    if wish == "yes" and not possible:
        raise UserError("config.data.in_memory=yes needs config.preprocessing.train_crop=none")
    if wish != "auto":
        return wish == "yes"
    height, width = source.image_size or preprocessing.shape
    return possible and len(source) * height * width * 3 <= _FITS
