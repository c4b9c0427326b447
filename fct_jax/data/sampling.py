"""Which images form a training batch: balanced over identities or over classes.

A sampler is a function of the epoch: ``sampler(epoch)`` is an int32 array (steps, B) of image
positions, the same on every process, drawn from (seed, epoch) alone, so that any step can be
resumed. Every process takes its rows of a batch (``fct_jax.data.order``).
"""

from typing import Protocol

import numpy as np

from fct_jax.errors import UserError


class Sampler(Protocol):
    """What feeds and pipelines need: ``batch_size`` is B, over all processes."""

    batch_size: int
    steps_per_epoch: int

    def __call__(self, epoch: int) -> np.ndarray:
        """(steps_per_epoch, batch_size) int32 positions."""


class IdentitySampler:
    """P identities with K images each, for losses over pairs and triplets (Hermans et al., 2017).

    A batch holds P different identities, its columns are P groups of K. In each round of an epoch
    every identity comes once, in a new order, with K of its images; one that has fewer repeats
    them evenly. In the first round the last batch is filled up with identities from the round's
    start, so that every identity is visited. Within an epoch an identity shows other images in
    each round, and rounds end for it when fewer than K new ones are left.

    Attributes:
      batch_size: P·K.  images: K.  steps_per_epoch: batches of an epoch, the same for all.
    """

    def __init__(
        self, labels, identities: int, images: int, *, seed: int = 0, rounds: int | None = 1
    ):
        """
        Args:
          labels: (N,) integers, one a training image.
          identities: P, of a batch over all processes.
          images: K.
          seed: of all draws.
          rounds: 1: an identity comes once an epoch. None: until its images are used up, as in
            widely used re-identification code; batches that later rounds cannot fill are dropped.

        Raises:
          UserError: no labels, numbers below 1, or fewer identities than P.
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
        self._visits = np.maximum(self._counts // images, 1)  # of an identity in an epoch
        if rounds is not None:
            self._visits = np.minimum(self._visits, rounds)
        # Identities that take part in round 0, 1, …
        sizes = known - np.cumsum(np.bincount(self._visits))[:-1]
        self._steps = np.concatenate([[-(-known // identities)], sizes[1:] // identities])
        self.batch_size = identities * images
        self.steps_per_epoch = int(self._steps.sum())

    def __call__(self, epoch: int) -> np.ndarray:
        """(steps_per_epoch, P·K) int32 positions."""
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
    """Every class equally often, however many images it has.

    The draws of an epoch go through all classes, shuffled, again and again; numbers of draws of two
    classes differ by at most one. A class goes through its images, shuffled, likewise. An epoch is
    as long as one over the images.

    Attributes:
      batch_size: B.  steps_per_epoch: N // B.
    """

    def __init__(self, labels, batch_size: int, *, seed: int = 0):
        """
        Args:
          labels: (N,) integers, one a training image. Numbers without an image are passed over.
          batch_size: B, over all processes.
          seed: of all draws.

        Raises:
          UserError: no labels, or a batch size outside 1..N.
        """
        self._order, self._starts, self._counts = _by_class(labels)
        if not 1 <= batch_size <= len(self._order):
            raise UserError(
                f"batch_size {batch_size} of a class-balanced sampler must lie between 1 and "
                f"{len(self._order)}, the number of training images"
            )
        self._seed = seed
        self.batch_size = batch_size
        self.steps_per_epoch = len(self._order) // batch_size

    def __call__(self, epoch: int) -> np.ndarray:
        """(steps_per_epoch, B) int32 positions."""
        rng = np.random.default_rng([self._seed, epoch])
        order = _shuffled_within(self._order, self._starts, self._counts, rng)
        total, known = self.steps_per_epoch * self.batch_size, len(self._counts)
        rounds = -(-total // known)
        classes = rng.permuted(np.tile(np.arange(known), (rounds, 1)), axis=1)
        within = np.arange(rounds)[:, None] % self._counts[classes]
        chosen = order[self._starts[classes] + within].ravel()[:total]
        return chosen.reshape(self.steps_per_epoch, self.batch_size)


def _by_class(labels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions sorted by label (N,) int32, and where each class starts and how many it has."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or not len(labels) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"a sampler needs (N,) integer labels, N at least 1, not {labels.shape}")
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.argsort(codes, kind="stable").astype(np.int32)
    return order, np.cumsum(counts) - counts, counts


def _shuffled_within(order, starts, counts, rng: np.random.Generator) -> np.ndarray:
    """``order`` with each class's run of positions in a random order."""
    shuffled = rng.permutation(len(order))
    run = np.repeat(np.arange(len(counts)), counts)
    return order[shuffled[np.argsort(run[shuffled], kind="stable")]]
