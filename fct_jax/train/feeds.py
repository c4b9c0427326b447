"""Sources of a training step's batch: arrays on the device, or a stream.

Both give the loop *calls*: some steps that run inside one compiled function.
``pick`` turns one step's share of a call into the batch that the task's loss sees.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np

from fct_jax.data import Batches
from fct_jax.data.sampling import NOTHING, Sampler
from fct_jax.errors import UserError
from fct_jax.runtime import sharding


class ResidentFeed:
    """Samples that stay on the device; every epoch visits them in a new order.

    The order is a function of (seed, epoch) alone, so that any step can be resumed.

    Args:
      data: pytree of arrays, put on every device once.
      count: N, the number of samples.
      pick: ``(data, indices (B,), key) -> batch``, traced inside the step.
      sampler: which samples form each batch.
      mesh: the devices.
      steps_per_call: how many steps run inside one compiled call: enough to hide the cost of a
        call, few enough for a live progress bar.
    """

    ready = True  # the next call is always available

    def __init__(
        self,
        data,
        count: int,
        pick: Callable,
        *,
        sampler: Sampler,
        mesh,
        steps_per_call: int = 16,
    ):
        self._sampler = sampler
        self.data = sharding.put_replicated(data, mesh)
        self.pick = pick
        self.steps_per_epoch = self._sampler.steps_per_epoch
        self._steps_per_call = min(steps_per_call, self.steps_per_epoch)
        self._count, self._mesh = count, mesh

    def calls(self, step: int) -> Iterator[tuple[int, jax.Array]]:
        """Yield (steps, indices (S, B)) from ``step`` to the end of its epoch.

        A last batch that is not full comes in a call of its own, (1, indices (1, rest)).
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        order = self._sampler(epoch)
        full = order if NOTHING not in order[-1] else order[:-1]
        room = self._steps_per_call
        while position < len(full):
            indices = full[position : position + room]
            steps = len(indices)
            # One shape for every call: the loop inside runs `steps` times only.
            indices = np.resize(indices, (room, order.shape[1]))
            yield steps, sharding.put_global(indices, self._mesh, axis=1)
            position += steps
        for last in order[len(full) :]:
            yield 1, sharding.put_global(last[None, last != NOTHING], self._mesh, axis=1)

    def position(self) -> dict:
        """Return the facts that must not change when a run resumes; the step gives the place."""
        return {"samples": self._count}

    def seek(self, position: dict) -> None:
        """Check a saved position. Raises UserError if the data have changed."""
        _check_samples(position, self._count)

    def close(self) -> None:
        """Do nothing: there is nothing to stop."""


class StreamFeed:
    """Batches that are read, and put on the devices, while the step before runs.

    Args:
      batches: endless batches of this process's rows.
      rows: their numbers, from `rows_of_process`.
      batch_size: B, over all devices.
      samples: N, size of the training set.
      mesh: the devices.
      last_size: size of an epoch's last batch over all devices if it is not full; None: it is full.
    """

    def __init__(
        self,
        batches: Batches,
        rows: np.ndarray,
        batch_size: int,
        samples: int,
        mesh,
        last_size: int | None = None,
    ):
        self.data = ()
        self.steps_per_epoch = batches.steps_per_epoch
        self._batches, self._samples, self._mesh = batches, samples, mesh
        self._full = batch_size, rows
        self._last = self._full
        if last_size not in (None, batch_size):
            self._last = last_size, rows_of_process(last_size, mesh)
        # The one thread that touches `batches`; at exit Python waits for it.
        self._reader = ThreadPoolExecutor(1, "next-batch")
        self._delivered, self._next = 0, None

    @staticmethod
    def pick(data, batch, key):
        """Return the call's own batch."""
        del data, key
        return batch

    @property
    def ready(self) -> bool:
        """Return whether the next call is available without waiting."""
        return self._next is not None and self._next.done()

    def calls(self, step: int) -> Iterator[tuple[int, dict]]:
        """Yield (1, batch with a leading axis of one) to the end of the epoch."""
        if self._next is None or step != self._delivered:
            self._delivered = step
            self._next = self._read_ahead(step)
        for _ in range(step % self.steps_per_epoch, self.steps_per_epoch):
            batch = self._next.result()
            self._delivered += 1
            self._next = self._read_ahead(self._delivered)
            yield 1, batch

    def _read_ahead(self, number: int) -> Future:
        return self._reader.submit(self._read, number)

    def _read(self, number: int) -> dict:
        self._batches.seek(number)
        batch = next(self._batches)
        batch["index"] = batch["index"].astype(np.int32)  # devices have no 64-bit integers
        ends_epoch = (number + 1) % self.steps_per_epoch == 0
        size, numbers = self._last if ends_epoch else self._full
        return {name: self._put(value[None], size, numbers) for name, value in batch.items()}

    def _put(self, rows: np.ndarray, size: int, numbers: np.ndarray) -> jax.Array:
        """Put this process's rows (1, B, …) on the devices; return the whole (1, size, …)."""

        def part(index):
            first, last = np.searchsorted(numbers, index[1].indices(size)[:2])
            return rows[:, first:last]

        shape = (1, size, *rows.shape[2:])
        return jax.make_array_from_callback(shape, sharding.split_batch(self._mesh, 1), part)

    def position(self) -> dict:
        """Return the number of delivered batches and of samples, the same on every process."""
        return {"batches": self._delivered, "samples": self._samples}

    def seek(self, position: dict) -> None:
        """Check a saved position. Raises UserError if the data have changed."""
        _check_samples(position, self._samples)

    def close(self) -> None:
        """Stop reading: the thread, and the workers behind it."""
        self._reader.shutdown(cancel_futures=True)
        self._batches.close()


def rows_of_process(batch_size: int, mesh) -> np.ndarray:
    """Return, ascending, the rows of a global batch that this process's devices hold.

    A process's devices need not be neighbours in the mesh.
    """
    places = sharding.split_batch(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[place] for place in places.values()]))


def _check_samples(position: dict, samples: int) -> None:
    """Raise UserError for a different number of samples, which would change the order."""
    saved = position.get("samples", samples)
    if saved != samples:
        raise UserError(
            f"the checkpoint is of a training set of {saved} samples, now there are {samples}; "
            "restore the data, or choose another --workdir to start again"
        )
