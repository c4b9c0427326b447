"""Where a training step's batch comes from: arrays on the device, or a stream.

Both give the loop *calls*: some steps that run inside one compiled function.
``pick`` turns one step's share of a call into the batch that the task's loss sees.
"""

from collections.abc import Callable, Iterator

import jax
import numpy as np

from fct_jax import sharding
from fct_jax.data.sampling import Sampler
from fct_jax.errors import UserError


class ResidentFeed:
    """Samples that stay on the device; every epoch visits them in a new order.

    The order is a function of (seed, epoch) alone, so that any step can be resumed.

    Args:
      data: pytree of arrays, put on every device once.
      count: N, the number of samples.
      pick: ``(data, indices (B,), key) -> batch``, traced inside the step.
      batch_size: B, over all devices; the last, incomplete batch of an epoch is dropped.
      seed: of the order.
      mesh: the devices.
      steps_per_call: how many steps run inside one compiled call: enough to hide the cost of a
        call, few enough for a live progress bar.
      sampler: instead of shuffling: which samples form each batch (``fct_jax.data.sampling``).
    """

    def __init__(
        self,
        data,
        count: int,
        pick: Callable,
        *,
        batch_size: int,
        seed: int,
        mesh,
        steps_per_call: int = 16,
        sampler: Sampler | None = None,
    ):
        if batch_size > count and sampler is None:
            raise UserError(
                f"batch_size {batch_size} is larger than the training set of {count}; "
                f"largest possible: {count}"
            )
        self.data = jax.device_put(data, sharding.replicated(mesh))
        self.pick = pick
        self.steps_per_epoch = sampler.steps_per_epoch if sampler else count // batch_size
        self._sampler = sampler
        self._steps_per_call = min(steps_per_call, self.steps_per_epoch)
        self._count, self._batch_size, self._seed, self._mesh = count, batch_size, seed, mesh

    def calls(self, step: int) -> Iterator[tuple[int, jax.Array]]:
        """Yields (steps, indices (S, B)) from ``step`` to the end of its epoch."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = self._order(epoch)
        room = self._steps_per_call
        while position < self.steps_per_epoch:
            indices = order[position : position + room]
            steps = len(indices)
            # One shape for every call: the loop inside runs `steps` times only.
            indices = np.resize(indices, (room, self._batch_size))
            yield steps, sharding.put_global(indices, self._mesh, axis=1)
            position += steps

    def _order(self, epoch: int) -> np.ndarray:
        """int32 (steps, B): the samples of each batch of an epoch."""
        if self._sampler:
            return self._sampler(epoch)
        order = np.random.default_rng([self._seed, epoch]).permutation(self._count)
        order = order[: self.steps_per_epoch * self._batch_size].astype(np.int32)
        return order.reshape(self.steps_per_epoch, self._batch_size)

    def position(self) -> dict:
        """What a checkpoint must hold to go on: nothing beyond the step."""
        return {}

    def seek(self, position: dict) -> None:
        """Goes to a saved position."""


class StreamFeed:
    """Batches that Grain reads while the device works.

    Args:
      iterator: endless, with ``get_state`` and ``set_state``; yields this process's share.
      steps_per_epoch: after how many batches an epoch ends.
      mesh: the devices.
    """

    def __init__(self, iterator, steps_per_epoch: int, mesh):
        self.data = ()
        self.steps_per_epoch = steps_per_epoch
        self._iterator, self._mesh = iterator, mesh

    @staticmethod
    def pick(data, batch, key):
        """The call holds the batch itself."""
        del data, key
        return batch

    def calls(self, step: int) -> Iterator[tuple[int, dict]]:
        """Yields (1, batch with a leading axis of one) to the end of the epoch."""
        for _ in range(step % self.steps_per_epoch, self.steps_per_epoch):
            batch = next(self._iterator)
            batch = {name: value[None] for name, value in batch.items()}
            batch["index"] = batch["index"].astype(np.int32)  # devices have no 64-bit integers
            yield 1, sharding.put_batch(batch, self._mesh, axis=1)

    def position(self) -> dict:
        """The reader's place in the data, as JSON."""
        return {"iterator": self._iterator.get_state()}

    def seek(self, position: dict) -> None:
        """Goes to a saved position."""
        self._iterator.set_state(position["iterator"])
