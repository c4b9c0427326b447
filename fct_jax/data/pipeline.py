"""Batches of images by Grain: shuffled, divided among processes, decoded in parallel, resumable."""

import sys
import weakref
from collections.abc import Callable, Iterator

import grain
import numpy as np
from absl import logging

from fct_jax.data.loading import ImageLoader, PassBatch, TrainingBatch
from fct_jax.data.sampling import RowsOfStep, Sampler, Shuffled
from fct_jax.data.sources import ON_ERROR, Source
from fct_jax.data.workers import dead_worker, in_parallel
from fct_jax.errors import UserError, unknown
from fct_jax.models.preprocessing import CROP_AREA, Preprocessing

Batch = dict[str, np.ndarray]
_DEATHS = 3  # worker deaths at the same batch after which the batch is to blame


class Batches(Iterator[Batch]):
    """Iterator over batches that can jump to any batch; made by `batches`.

    Attributes:
      steps_per_epoch: batches in one pass.
      position: batches read so far, counted from the start (in a plain pass that skips unreadable
        images: batches read from the source). It does not depend on the number of processes and
        workers.
      skipped: the error messages of the unreadable images left out so far, each once.
    """

    def __init__(self, load, count: int, steps_per_epoch: int, *, workers: int, skip: bool):
        """
        Args:
          load: function of a batch's number that returns {"batch": …, "errors": [str]}.
          count: number of batches.
          steps_per_epoch: batches in one pass.
          workers: number of loading processes; 0: threads.
          skip: whether to continue after a worker died.
        """
        self.steps_per_epoch = steps_per_epoch
        self.position = 0
        self.skipped: dict[str, None] = {}
        self._load, self._count = load, count
        self._workers, self._skip = workers, skip
        self._begin()

    def __next__(self) -> Batch:
        """Return ``image`` uint8 (B, h, w, 3), ``label`` int32, ``index`` int64, ``flip`` bool (B).

        Raises:
          UserError: an image is unreadable or a worker process died; the message names it.
        """
        element = self._next_element()
        self.position += 1
        for error in element["errors"]:
            if error not in self.skipped:
                self.skipped[error] = None
                logging.warning("skipped: %s", error)
        if not self._workers:
            return element["batch"]
        # Copying frees the worker's shared memory at once.
        return {name: np.array(value) for name, value in element["batch"].items()}

    def seek(self, position: int) -> None:
        """Continue with batch number ``position``, counted from the very first batch."""
        if position != self.position:
            self.close()
            self.position = position
            self._begin()

    def close(self) -> None:
        """Stop the worker threads or processes; also called when the program ends."""
        self._finalizer()
        self._iterator = None

    def _begin(self) -> None:
        self._began = self.position
        # Grain's own states depend on the number of workers; a range does not.
        rest = grain.MapDataset.range(self.position, self._count).map(self._load)
        self._iterator = iter(in_parallel(rest, self._workers))
        # This also runs at exit: Grain's threads must end before the interpreter unloads modules.
        self._finalizer = weakref.finalize(self, self._iterator.close)

    def _next_element(self) -> dict:
        deaths = 0
        while True:
            try:
                return next(self._iterator)
            except RuntimeError as error:
                dead = dead_worker(error, self.position - self._began, max(self._workers, 1))
                if dead is None:
                    raise
                deaths += 1
                if not self._skip or deaths == _DEATHS:
                    raise UserError(
                        f"{dead}, often for lack of memory: try fewer config.data.workers, or a "
                        "larger /dev/shm; a training goes on from its last checkpoint when the "
                        "same command is given again"
                    ) from error
                logging.warning("%s; all are started again at batch %d", dead, self.position)
                self.close()
                self._begin()


class _FullBatches(Batches):
    """Batches of a plain pass with on_error="skip": later images fill the gaps."""

    def __init__(self, *arguments, batch_size: int, **options):
        super().__init__(*arguments, **options)
        self._batch_size = batch_size
        self._refilled = self._refill()

    def __next__(self) -> Batch:
        return next(self._refilled)

    def seek(self, position: int) -> None:
        super().seek(position)
        self._refilled = self._refill()

    def _refill(self) -> Iterator[Batch]:
        size, held = self._batch_size, None
        while True:
            try:
                found = super().__next__()
            except StopIteration:
                break
            if not len(found["label"]):
                continue
            if held is not None:
                found = {key: np.concatenate([held[key], found[key]]) for key in found}
            full = {key: value[:size] for key, value in found.items()}
            held = {key: value[size:] for key, value in found.items()}
            if len(full["label"]) < size:
                held = full
            else:
                yield full
        if held is not None and len(held["label"]):
            yield held


def batches(
    source: Source,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    train: bool,
    seed: int,
    epochs: int | None = None,
    workers: int = 0,
    rows: np.ndarray | None = None,
    last_rows: np.ndarray | None = None,
    indices: np.ndarray | None = None,
    view: int | None = None,
    on_error: str | None = None,
    crops: int | None = None,
    crop_area: tuple[float, float] = CROP_AREA,
    sampler: Sampler | None = None,
) -> Batches:
    """Return the batches of ``source`` for one process.

    In training the order changes every epoch, and the sampler decides what happens to the last
    images that do not fill a batch. Batch n holds the same images on any number of processes, each
    of which reads its own rows. Outside training there is one pass, in order, and the last batch
    may be smaller.

    Images are uint8: (size, size) if they need the host (`Preprocessing.needs_host`), else as they
    are in the source. ``flip`` is applied by `Preprocessing.on_device`.

    Args:
      source: the images.
      preprocessing: the steps from an image to the model's input.
      batch_size: images in a batch; in training, over all processes.
      train: True for training, False for a plain pass.
      seed: seed of the order, crops and flips. A random crop depends on (seed, epoch, index) alone.
      epochs: passes in training; None: forever.
      workers: decoding processes; 0: threads of this process.
      rows: in training, the numbers of the batch's rows that this process reads; None: all.
      last_rows: the same for an epoch's last batch, if the sampler's is not full.
      indices: in a plain pass, positions in the source, in order; None: all. If images of
        ``indices`` are skipped, none moves up: batch boundaries always stay the same.
      view: number of the augmented view of every image, not in training. Without random crops,
        view 0 is unflipped and view 1 flipped; with them, crop and flip are drawn from
        ``np.random.default_rng([seed, view, index])``.
      on_error: "raise", or "skip" to skip unreadable images with a warning each; None: the setting
        of ``source``. In training another image of the class, drawn from (seed, epoch, place),
        replaces an unreadable one; otherwise later images move up. Batches stay full in both
        cases. With "skip", worker processes that die are restarted.
      crops: number of random crops of each image, which adds an axis: ``image`` is then
        (B, crops, size, size, 3); None: one crop, without that axis.
      crop_area: smallest and largest share of an image that a random crop keeps.
      sampler: in training, chooses the images of each batch; None: shuffle.

    Raises:
      UserError: the batch size exceeds the set or differs from the sampler's; during iteration, an
        image (named in the message) is unreadable or a worker process died.
    """
    on_error = on_error or source.on_error
    if on_error not in ON_ERROR:
        raise unknown("on_error", on_error, ON_ERROR)
    for name, value, least in (("batch size", batch_size, 1), ("seed", seed, 0)):
        if value < least:
            raise UserError(f"{name} must be at least {least}, not {value}")
    if epochs is not None and epochs < 1:
        raise UserError(f"epochs must be at least 1, or None for ever; not {epochs}")
    if workers < 0:
        raise UserError(f"workers must be at least 0, not {workers}")
    if train and view is not None:
        raise UserError("view is for passes outside training; training draws its own")
    skip = on_error == "skip"
    read = ImageLoader(
        source,
        preprocessing,
        seed=seed,
        crops=crops,
        crop_area=crop_area,
        random=train or view is not None,
    )
    if train:
        sampler = sampler or Shuffled(len(source), batch_size, seed=seed)
        if sampler.batch_size != batch_size:
            raise UserError(
                f"the sampler's batches have {sampler.batch_size} images; "
                f"{batch_size} were asked for"
            )
        if rows is None:
            rows, last_rows = np.arange(batch_size), np.arange(sampler.last_size)
        steps = sampler.steps_per_epoch
        load = TrainingBatch(read, RowsOfStep(sampler, rows, last_rows), steps, skip)
        count = steps * epochs if epochs else sys.maxsize
        return Batches(load, count, steps, workers=workers, skip=skip)
    refill = skip and indices is None
    if indices is None:
        indices = np.arange(len(source))
    steps = -(-len(indices) // batch_size)
    load = PassBatch(read, indices, batch_size, view, skip)
    if refill:
        return _FullBatches(load, steps, steps, workers=workers, skip=skip, batch_size=batch_size)
    return Batches(load, steps, steps, workers=workers, skip=skip)


def load_all(
    source: Source,
    preprocessing: Preprocessing,
    progress: Callable[[int, int], None] | None = None,
    on_error: str | None = None,
) -> Batch:
    """Load a whole data set that fits in memory, in order and without augmentation.

    Args:
      source: the images.
      preprocessing: its fixed resize and crop is applied here if it needs the host.
      progress: called with (images done, total images).
      on_error: as in `batches`.

    Returns:
      ``image`` uint8 (N, h, w, 3), ``label`` int32 (N,), ``index`` int64 (N,) positions in the
      source (all of them, unless unreadable images were skipped).

    Raises:
      UserError: an image is unreadable, or none can be read at all.
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
