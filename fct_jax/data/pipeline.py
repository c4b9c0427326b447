"""Batches of images through Grain: shuffled, sharded, decoded in parallel, resumable."""

import os
import weakref
from collections.abc import Callable, Iterator

import grain
import numpy as np
from absl import flags, logging

from fct_jax.data.images import UnreadableImage
from fct_jax.data.preprocessing import CROP_AREA, Preprocessing
from fct_jax.data.sampling import IdentitySampler, Sampler, Stream
from fct_jax.data.sources import ON_ERROR, Source
from fct_jax.errors import UserError, unknown

Batch = dict[str, np.ndarray]


class Batches(Iterator[Batch]):
    """Iterator over batches whose state can be saved and restored; made by `batches`.

    Attributes:
      steps_per_epoch: batches in one pass over this shard.
      skipped: names of the unreadable images left out so far, each once.
    """

    def __init__(self, dataset: grain.IterDataset, steps_per_epoch: int, layout: dict, skipped):
        """``layout``: what must be the same when a state is restored."""
        self.steps_per_epoch = steps_per_epoch
        self.skipped: dict[str, None] = skipped
        self._layout = layout
        self._iterator = iter(dataset)
        # Also at exit: Grain's threads must end before the interpreter takes its modules down.
        self._finalizer = weakref.finalize(self, self._iterator.close)

    def __next__(self) -> Batch:
        """``image`` uint8 (B, h, w, 3), ``label`` int32, ``index`` int64, ``flip`` bool (B,)."""
        try:
            return next(self._iterator)
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            raise UserError(
                "a data worker process died (often: out of memory; try fewer data.workers): "
                f"{error}"
            ) from error

    def get_state(self) -> dict:
        """Where the iterator is, as JSON takes it."""
        return {"layout": dict(self._layout), "iterator": self._iterator.get_state()}

    def set_state(self, state: dict) -> None:
        """Go on where `get_state` was called; raises UserError if the data are others."""
        for key, value in self._layout.items():
            if state["layout"].get(key) != value:
                raise UserError(
                    f"the saved position in the data was taken with {key}="
                    f"{state['layout'].get(key)}, now it is {value}; use the same"
                )
        self._iterator.set_state(state["iterator"])

    def close(self) -> None:
        """Stop the worker threads or processes; called at the end of the program too."""
        self._finalizer()


class _Load:
    """(position in the stream, index) -> one preprocessed example; runs in workers."""

    def __init__(
        self, source, preprocessing, *, train, view, seed, epoch_size, skip, crops, crop_area
    ):
        self.source, self.preprocessing = source, preprocessing
        self.train, self.view, self.seed = train, view, seed
        self.epoch_size, self.skip = epoch_size, skip
        self.crops, self.crop_area = crops, crop_area
        random = train or view is not None
        self.crop = random and preprocessing.train_crop == "random_resized"
        # image_size may read the header of every file, so it is asked for only if it matters.
        size = None if self.crop or preprocessing.resize is not None else source.image_size
        self.host = preprocessing.needs_host(size, random_crop=self.crop)

    def __call__(self, position: int, index: int) -> dict:
        index = int(index)
        try:
            example = self.source[index]
        except UnreadableImage as error:
            if not self.skip:
                raise
            return {"error": str(error)}
        rng, flip = None, False
        if self.train or self.view is not None:
            # A view is what training would see at that epoch, so both draw alike.
            epoch = position // self.epoch_size if self.train else self.view
            rng = np.random.default_rng([self.seed, epoch, index])
            flip = bool(rng.random() < 0.5)
            if not self.train and not self.crop:
                flip = self.view % 2 == 1  # without crops there are two views, each taken exactly
        image = example["image"]
        if self.host:
            image = self._on_host(image, rng)
        flip = flip and self.preprocessing.flip
        return {"image": image, "label": example["label"], "index": index, "flip": flip}

    def _on_host(self, image: np.ndarray, rng) -> np.ndarray:
        if not self.crop:
            return self.preprocessing.on_host(image)
        crops = [
            self.preprocessing.on_host(image, rng, self.crop_area) for _ in range(self.crops or 1)
        ]
        return np.stack(crops) if self.crops else crops[0]


class _Sampled:
    """(position in the endless stream, its place in the epoch) -> index of the image."""

    def __init__(self, stream: Stream):
        self.stream = stream

    def __call__(self, position: int, place: int) -> int:
        del place
        return self.stream(position)


def _stack(examples: list[dict]) -> dict:
    """Examples -> batch; unreadable ones become a list of messages, and leave no hole."""
    good = [example for example in examples if "error" not in example]
    batch = {
        "label": np.array([example["label"] for example in good], np.int32),
        "index": np.array([example["index"] for example in good], np.int64),
        "flip": np.array([example["flip"] for example in good], bool),
    }
    if good:
        batch["image"] = np.stack([example["image"] for example in good])
    errors = [example["error"] for example in examples if "error" in example]
    return {"batch": batch, "errors": errors}


class _Report:
    """Takes the messages off a batch: one warning a file, in the main process."""

    def __init__(self, skipped: dict[str, None]):
        self.skipped = skipped

    def __call__(self, element: dict) -> Batch:
        for error in element["errors"]:
            if error not in self.skipped:
                self.skipped[error] = None
                logging.warning("skipped: %s", error)
        return element["batch"]


def batches(
    source: Source,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    train: bool,
    seed: int,
    epochs: int | None = None,
    workers: int = 0,
    shard_index: int = 0,
    shard_count: int = 1,
    view: int | None = None,
    on_error: str | None = None,
    crops: int | None = None,
    crop_area: tuple[float, float] = CROP_AREA,
    sampler: Sampler | None = None,
) -> Batches:
    """Batches of ``source`` for one process (one shard).

    In training the order changes every epoch and the last images that fill no batch are dropped;
    the batches of all shards at one step together hold the same images as one batch of
    ``shard_count * batch_size`` would. Otherwise: once through, in order (shard ``s`` takes every
    ``shard_count``-th image), the last batch may be smaller.

    Images are uint8: (size, size) if they need the host (`Preprocessing.needs_host`), else as they
    are in the source. ``flip`` is applied by `Preprocessing.on_device`.

    Args:
      source: the images.
      preprocessing: their way to the model.
      batch_size: images in a batch of this shard.
      train: training or a plain pass.
      seed: of the order, crops and flips. A random crop depends on (seed, epoch, index) alone.
      epochs: passes in training; None: forever.
      workers: decoding processes; 0: threads of this process.
      shard_index, shard_count: this process among all.
      view: augmented view of every image, not in training. Without random crops view 0 is
        unflipped and view 1 flipped; with them, crop and flip are drawn from
        ``np.random.default_rng([seed, view, index])``.
      on_error: "raise", or "skip" unreadable images with a warning each (None: as ``source``
        says). Where images are skipped, later ones move up, so that batches stay full.
      crops: where crops are random, that many of each image: ``image`` is (B, crops, size, size,
        3) then; None: one, and no such axis.
      crop_area: smallest and largest share of an image that a random crop keeps.
      sampler: in training, instead of shuffling: which images form each batch of all shards.

    Raises:
      UserError: a batch larger than the shard, or not the sampler's; at iteration, an unreadable
        image (named) or a worker process that died.
    """
    on_error = on_error or source.on_error
    if on_error not in ON_ERROR:
        raise unknown("on_error", on_error, ON_ERROR)
    for name, value, least in (("batch size", batch_size, 1), ("seed", seed, 0)):
        if value < least:
            raise UserError(f"{name} must be at least {least}, not {value}")
    if epochs is not None and epochs < 1:
        raise UserError(f"epochs must be at least 1, or None for ever; not {epochs}")
    if not 0 <= shard_index < shard_count:
        raise UserError(f"shard_index={shard_index}: must be in 0..{shard_count - 1}")
    if train and view is not None:
        raise UserError("view is for passes outside training; training draws its own")
    if sampler is not None and sampler.batch_size != batch_size * shard_count:
        raise UserError(
            f"the sampler's batches have {sampler.batch_size} images; "
            f"{shard_count} times {batch_size} were asked for"
        )
    if train and sampler is None and batch_size * shard_count > len(source):
        largest = len(source) // shard_count
        where = f" on each of {shard_count} processes" if shard_count > 1 else ""
        raise UserError(
            f"batch size {batch_size}{where} is larger than {source.name} with {len(source)} "
            f"images; the largest batch is {largest}"
        )
    skip = on_error == "skip"
    dataset = grain.MapDataset.range(len(source))
    if train and sampler is not None:
        group = sampler.images if isinstance(sampler, IdentitySampler) else 1
        stream = Stream(sampler, shard_index, shard_count, group=group)
        dataset = grain.MapDataset.range(len(stream)).map_with_index(_Sampled(stream))
    elif train:
        # Grain's order of epoch e is that of seed + e: spread seeds, lest seed 1 repeats seed 0.
        dataset = dataset.shuffle(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        # Equally many full batches for every shard.
        used = len(source) // (batch_size * shard_count) * batch_size * shard_count
        dataset = dataset[shard_index:used:shard_count]
    else:
        dataset = dataset[shard_index::shard_count]
    steps = -(-len(dataset) // batch_size)
    load = _Load(
        source,
        preprocessing,
        train=train,
        view=view,
        seed=seed,
        epoch_size=len(dataset),
        skip=skip,
        crops=crops,
        crop_area=crop_area,
    )
    dataset = dataset.map_with_index(load).batch(batch_size, batch_fn=_stack)
    if train:
        dataset = dataset.repeat(epochs)
    skipped: dict[str, None] = {}
    dataset = _in_parallel(dataset, workers).map(_Report(skipped))
    if skip:
        dataset = dataset.filter(_not_empty)
        dataset = grain.experimental.RebatchIterDataset(dataset, batch_size, drop_remainder=train)
    layout = {
        "images": len(source),
        "batch_size": batch_size,
        "seed": seed,
        "workers": workers,
        "shard": [shard_index, shard_count],
    }
    return Batches(dataset, steps, layout, skipped)


def _not_empty(batch: Batch) -> bool:
    return len(batch["label"]) > 0


def _in_parallel(dataset: grain.MapDataset, workers: int) -> grain.IterDataset:
    """Whole batches are the unit of work, so that the order does not depend on ``workers``."""
    if not workers:
        threads = max(2, min(8, os.cpu_count() or 1))
        return dataset.to_iter_dataset(grain.ReadOptions(threads, threads + 1))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain hands its flags to the workers; ours come from configs
    return dataset.to_iter_dataset(grain.ReadOptions(1, 1)).mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    )


def load_all(
    source: Source,
    preprocessing: Preprocessing,
    progress: Callable[[int, int], None] | None = None,
    on_error: str | None = None,
) -> Batch:
    """A whole data set in memory, in order and without augmentation: for sets that fit.

    Args:
      source: the images.
      preprocessing: its fixed resize and crop is done here where it needs the host.
      progress: called with (images done, images in all).
      on_error: as in `batches`.

    Returns:
      ``image`` uint8 (N, h, w, 3), ``label`` int32 (N,), ``index`` int64 (N,) positions in the
      source (all of them, unless unreadable images were skipped).

    Raises:
      UserError: an unreadable image, or none at all that is readable.
    """
    parts, done = [], 0
    for batch in batches(
        source,
        preprocessing,
        batch_size=256,
        train=False,
        seed=0,
        on_error=on_error,
    ):
        parts.append(batch)
        done += len(batch["label"])
        if progress is not None:
            progress(done, len(source))
    if not parts:
        raise UserError(f"{source.name}: not one image could be read")
    return {
        key: np.concatenate([part[key] for part in parts]) for key in ("image", "label", "index")
    }
