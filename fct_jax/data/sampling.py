"""Samplers of a training step's batch: shuffled, or balanced over identities or classes.

A sampler is a function of the epoch: ``sampler(epoch)`` is an int32 array (steps, B) of image
positions, the same on every process, drawn from (seed, epoch) alone. The images of a step depend
neither on the number of processes nor on the step at which a run resumes. Every process takes its
rows of a batch (`RowsOfStep`).
"""

from typing import Protocol

import numpy as np

from fct_jax.errors import UserError

NOTHING = -1  # position that pads a last, incomplete batch


class Sampler(Protocol):
    """An order of training images, in the form that feeds and pipelines accept.

    Attributes:
      batch_size: B, over all processes.  steps_per_epoch: batches of an epoch.
      last_size: images in the last batch of an epoch, B if it is full.
    """

    batch_size: int
    steps_per_epoch: int
    last_size: int

    def __call__(self, epoch: int) -> np.ndarray:
        """Return positions (steps_per_epoch, batch_size) int32.

        The last batch has ``last_size`` positions, followed by ``NOTHING``.
        """


class Shuffled:
    """A sampler that visits every image once per epoch, in a new order.

    Attributes:
      batch_size: B.  steps_per_epoch: N // B, plus one if an incomplete batch is kept.
      last_size: images in the last batch of an epoch.
    """

    def __init__(self, count: int, batch_size: int, *, seed: int = 0, keep_last: bool = False):
        """
        Args:
          count: N, the number of training images.
          batch_size: B, over all processes.
          seed: seed of the order.
          keep_last: whether the N % B images that do not fill a batch form a smaller one; else they
            are dropped, different ones in every epoch.

        Raises:
          UserError: the batch size lies outside 1..N.
        """
        if not 1 <= batch_size <= count:
            reason = "must be at least 1" if batch_size < 1 else "is larger than the training set"
            raise UserError(
                f"batch_size {batch_size} {reason} of {count}; largest possible: {count}"
            )
        self._count, self._seed = count, seed
        self.batch_size = batch_size
        full, rest = divmod(count, batch_size)
        kept = bool(rest) and keep_last
        self.steps_per_epoch = full + kept
        self.last_size = rest if kept else batch_size

    def __call__(self, epoch: int) -> np.ndarray:
        """Return positions (steps_per_epoch, batch_size) int32."""
        order = np.random.default_rng([self._seed, epoch]).permutation(self._count)
        made = np.full(self.steps_per_epoch * self.batch_size, NOTHING, np.int32)
        visited = min(len(made), self._count)
        made[:visited] = order[:visited]
        return made.reshape(self.steps_per_epoch, self.batch_size)


class RowsOfStep:
    """``rows(step)`` gives the images of one process's rows of a step's batch.

    It is thread-safe and can be copied to other processes.

    Args:
      sampler: the order, common to all processes.
      rows: ascending numbers of this process's rows, each in 0..B-1.
      last_rows: the same for a last batch that is not full; None: there is no such batch.
    """

    def __init__(self, sampler: Sampler, rows: np.ndarray, last_rows: np.ndarray | None = None):
        self._sampler, self._rows = sampler, rows
        self._last_rows = rows if last_rows is None else last_rows
        self._held: dict[int, np.ndarray] = {}  # order by epoch

    def numbers(self, step: int) -> np.ndarray:
        """Return the numbers of this process's rows in the batch of a step."""
        steps = self._sampler.steps_per_epoch
        return self._last_rows if step % steps == steps - 1 else self._rows

    def __call__(self, step: int) -> np.ndarray:
        """Return the positions of this process's rows, int32."""
        epoch, place = divmod(step, self._sampler.steps_per_epoch)
        held = self._held
        if epoch not in held:
            # Two epochs are kept: some readers have begun the next one while others finish this.
            near = {other: held[other] for other in held if abs(other - epoch) == 1}
            self._held = held = {**near, epoch: self._sampler(epoch)}
        return held[epoch][place, self.numbers(step)]


class IdentitySampler:
    """P identities with K images each, for losses over pairs and triplets (Hermans et al., 2017).

    A batch holds P different identities; its columns are P groups of K. In each round of an epoch
    every identity occurs once, in a new order, with K of its images; an identity with fewer images
    repeats them evenly. In the first round the last batch is filled up with identities from the
    round's start, so that every identity is visited. Within an epoch each round uses different
    images of an identity, and its rounds end when fewer than K new ones are left.

    Attributes:
      batch_size: P·K.  images: K.  steps_per_epoch: batches in an epoch, the same for every epoch.
    """

    def __init__(
        self, labels, identities: int, images: int, *, seed: int = 0, rounds: int | None = 1
    ):
        """
        Args:
          labels: (N,) integers, one per training image.
          identities: P, the identities in a batch over all processes.
          images: K, the images of each identity in a batch.
          seed: seed of all draws.
          rounds: 1: an identity occurs once per epoch. None: until its images are used up, as in
            widely used re-identification code; batches that later rounds cannot fill are dropped.

        Raises:
          UserError: there are no labels, a number is below 1, or there are fewer identities than P.
        """
        self._order, self._starts, self._counts = _by_class(labels)
        known = len(self._counts)
        for name, value in (("identities", identities), ("images", images), ("rounds", rounds)):
            if value is not None and value < 1:
                raise UserError(f"{name} of an identity sampler must be at least 1, not {value}")
        if identities > known:
            raise UserError(
                f"a batch of {identities} identities needs as many, but the training set has "
                f"{known}; largest possible: {known}"
            )
        self._identities, self.images, self._seed = identities, images, seed
        self._visits = np.maximum(self._counts // images, 1)  # visits of each identity in an epoch
        if rounds is not None:
            self._visits = np.minimum(self._visits, rounds)
        # Number of identities that take part in rounds 0, 1, …
        sizes = known - np.cumsum(np.bincount(self._visits))[:-1]
        self._steps = np.concatenate([[-(-known // identities)], sizes[1:] // identities])
        self.batch_size = self.last_size = identities * images
        self.steps_per_epoch = int(self._steps.sum())

    def __call__(self, epoch: int) -> np.ndarray:
        """Return positions (steps_per_epoch, P·K) int32."""
        rng = np.random.default_rng([self._seed, epoch])
        order = _shuffled_within(self._order, self._starts, self._counts, rng)
        parts = []
        for visit, steps in enumerate(self._steps):
            wanted = steps * self._identities
            identities = rng.permutation(np.flatnonzero(self._visits > visit))
            identities = np.resize(identities, wanted)  # cut, or filled up from the start
            within = np.arange(visit * self.images, (visit + 1) * self.images)
            within = within % self._counts[identities, None]
            parts.append(order[self._starts[identities, None] + within])
        return np.concatenate(parts).reshape(self.steps_per_epoch, self.batch_size)


class ClassBalancedSampler:
    """A sampler that draws every class equally often, however many images it has.

    The draws of an epoch cycle through all classes, in shuffled order; the numbers of draws of two
    classes differ by at most one. Each class cycles through its shuffled images in the same way. An
    epoch is as long as one pass over the images.

    Attributes:
      batch_size: B.  steps_per_epoch: N // B.
    """

    def __init__(self, labels, batch_size: int, *, seed: int = 0):
        """
        Args:
          labels: (N,) integers, one per training image. Numbers without an image are ignored.
          batch_size: B, over all processes.
          seed: seed of all draws.

        Raises:
          UserError: there are no labels, or the batch size lies outside 1..N.
        """
        self._order, self._starts, self._counts = _by_class(labels)
        if not 1 <= batch_size <= len(self._order):
            raise UserError(
                f"batch_size {batch_size} of a class-balanced sampler must lie between 1 and "
                f"{len(self._order)}, the number of training images"
            )
        self._seed = seed
        self.batch_size = self.last_size = batch_size
        self.steps_per_epoch = len(self._order) // batch_size

    def __call__(self, epoch: int) -> np.ndarray:
        """Return positions (steps_per_epoch, B) int32."""
        rng = np.random.default_rng([self._seed, epoch])
        order = _shuffled_within(self._order, self._starts, self._counts, rng)
        total, known = self.steps_per_epoch * self.batch_size, len(self._counts)
        rounds = -(-total // known)
        classes = rng.permuted(np.tile(np.arange(known), (rounds, 1)), axis=1)
        within = np.arange(rounds)[:, None] % self._counts[classes]
        chosen = order[self._starts[classes] + within].ravel()[:total]
        return chosen.reshape(self.steps_per_epoch, self.batch_size)


def _by_class(labels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return positions sorted by label (N,) int32, and each class's start and size."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or not len(labels) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"a sampler needs (N,) integer labels, N at least 1, not {labels.shape}")
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.argsort(codes, kind="stable").astype(np.int32)
    return order, np.cumsum(counts) - counts, counts


def _shuffled_within(order, starts, counts, rng: np.random.Generator) -> np.ndarray:
    """Return ``order`` with each class's run of positions in a random order."""
    shuffled = rng.permutation(len(order))
    run = np.repeat(np.arange(len(counts)), counts)
    return order[shuffled[np.argsort(run[shuffled], kind="stable")]]
