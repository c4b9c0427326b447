"""Which images form the batch of a training step: arithmetic on (seed, step) alone.

The batches are those of all processes together, so that neither their number nor the point where
a run goes on changes what a step sees.
"""

import numpy as np

from fct_jax.data.sampling import Sampler
from fct_jax.errors import UserError


class Shuffled:
    """A sampler that visits every image once an epoch, in a new order; the rest is dropped.

    Attributes:
      batch_size: B.  steps_per_epoch: N // B.
    """

    def __init__(self, count: int, batch_size: int, *, seed: int = 0):
        """
        Args:
          count: N, the number of training images.
          batch_size: B, over all processes.
          seed: of the order.

        Raises:
          UserError: a batch size outside 1..N.
        """
        if not 1 <= batch_size <= count:
            reason = "must be at least 1" if batch_size < 1 else "is larger than the training set"
            raise UserError(
                f"batch_size {batch_size} {reason} of {count}; largest possible: {count}"
            )
        self._count, self._seed = count, seed
        self.batch_size = batch_size
        self.steps_per_epoch = count // batch_size

    def __call__(self, epoch: int) -> np.ndarray:
        """(steps_per_epoch, batch_size) int32 positions."""
        order = np.random.default_rng([self._seed, epoch]).permutation(self._count)
        order = order[: self.steps_per_epoch * self.batch_size].astype(np.int32)
        return order.reshape(self.steps_per_epoch, self.batch_size)


class Rows:
    """``rows(step)``: the images of one process's rows of a step's batch.

    It may be used by many threads, and copied to other processes.
    """

    def __init__(self, sampler: Sampler, rows: np.ndarray):
        """``rows``: numbers of the rows, each in 0..B-1."""
        self._sampler, self._rows = sampler, rows
        self._held: dict[int, np.ndarray] = {}  # order by epoch

    def __call__(self, step: int) -> np.ndarray:
        """int32 positions, as many as there are rows."""
        epoch, step = divmod(step, self._sampler.steps_per_epoch)
        held = self._held
        if epoch not in held:
            # Two epochs, because readers ahead have begun the next one while others finish this.
            near = {other: held[other] for other in held if abs(other - epoch) == 1}
            self._held = held = {**near, epoch: self._of(epoch)}
        return held[epoch][step]

    def _of(self, epoch: int) -> np.ndarray:
        return self._sampler(epoch)[:, self._rows]
