"""Batches of images through Grain: shuffled, shared out, decoded in parallel, resumable."""

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
_DEATHS = 3  # of workers at one batch, after which it is the batch's fault


class Batches(Iterator[Batch]):
    """Iterator over batches that can go to any of them; made by `batches`.

    Attributes:
      steps_per_epoch: batches in one pass.
      position: batches read so far from the start (where a plain pass skips unreadable images:
        read from the source). It means the same with any number of processes and workers.
      skipped: what was said of the unreadable images left out so far, each once.
    """

    def __init__(self, load, count: int, steps_per_epoch: int, *, workers: int, skip: bool):
        """
        Args:
          load: number of a batch -> {"batch": …, "errors": [str]}.
          count: how many there are.
          steps_per_epoch: in one pass.
          workers: processes that load; 0: threads.
          skip: whether to go on where a worker died.
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
          UserError: an unreadable image, or a worker process that died; both named.
        """
        element = self._next_element()
        self.position += 1
        for error in element["errors"]:
            if error not in self.skipped:
                self.skipped[error] = None
                logging.warning("skipped: %s", error)
        if not self._workers:
            return element["batch"]
        # A copy frees the shared memory of the worker at once.
        return {name: np.array(value) for name, value in element["batch"].items()}

    def seek(self, position: int) -> None:
        """Go on with batch number ``position``, counted from the first of all."""
        if position != self.position:
            self.close()
            self.position = position
            self._begin()

    def close(self) -> None:
        """Stop the worker threads or processes; called at the end of the program too."""
        self._finalizer()
        self._iterator = None

    def _begin(self) -> None:
        self._began = self.position
        # Grain's own states depend on the number of workers; a range does not.
        rest = grain.MapDataset.range(self.position, self._count).map(self._load)
        self._iterator = iter(in_parallel(rest, self._workers))
        # Also at exit: Grain's threads must end before the interpreter takes its modules down.
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

    In training the order changes every epoch, and the sampler says what becomes of the last images
    that fill no batch. Batch n holds the same images on any number of processes, of which each
    takes its rows. Otherwise: once through, in order, the last batch may be smaller.

    Images are uint8: (size, size) if they need the host (`Preprocessing.needs_host`), else as they
    are in the source. ``flip`` is applied by `Preprocessing.on_device`.

    Args:
      source: the images.
      preprocessing: their way to the model.
      batch_size: images in a batch; in training of all processes.
      train: training or a plain pass.
      seed: of the order, crops and flips. A random crop depends on (seed, epoch, index) alone.
      epochs: passes in training; None: forever.
      workers: decoding processes; 0: threads of this process.
      rows: in training: numbers of the batch's rows that this process reads; None: all.
      last_rows: the same of an epoch's last batch, where the sampler's is not full.
      indices: in a plain pass: positions in the source, in order; None: all. Where images of
        ``indices`` are skipped, none moves up: the batches are cut at the same places always.
      view: augmented view of every image, not in training. Without random crops view 0 is
        unflipped and view 1 flipped; with them, crop and flip are drawn from
        ``np.random.default_rng([seed, view, index])``.
      on_error: "raise", or "skip" unreadable images with a warning each (None: as ``source``
        says). In training another image of the class takes an unreadable one's place, drawn from
        (seed, epoch, place); otherwise later images move up. Batches stay full both ways. With
        "skip", worker processes that die are started again.
      crops: where crops are random, that many of each image: ``image`` is (B, crops, size, size,
        3) then; None: one, and no such axis.
      crop_area: smallest and largest share of an image that a random crop keeps.
      sampler: in training, instead of shuffling: which images form each batch.

    Raises:
      UserError: a batch larger than the set, or not the sampler's; at iteration, an unreadable
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
