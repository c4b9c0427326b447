"""SIGTERM, as schedulers and pre-emption send it: every process stops after the same step."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fct_jax.runtime import processes, sharding


class Termination:
    """Takes SIGTERM as a request to save and end, while the context lasts.

    Before ``begin`` there is nothing to save, and a single process ends at once.

    Args:
      mesh: the devices, over which the processes tell each other of it.
    """

    def __init__(self, mesh: Mesh):
        self._received, self._training = False, False
        self._told = None
        self._each = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._sum = jax.jit(jnp.sum, out_shardings=sharding.replicated(mesh))

    def __enter__(self) -> "Termination":
        try:
            self._before = signal.signal(signal.SIGTERM, self._receive)
        except ValueError:  # not the main thread (under a test runner, say): nothing to catch
            self._before = None
        return self

    def __exit__(self, *exception) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def begin(self) -> None:
        """Start to heed signals: from here on there is something to save."""
        self._training = True

    def asked(self) -> bool:
        """Return whether any process was asked to end; all of them call this after every call.

        With several processes the answer is that of the call before: it travels over the devices
        behind the training step, and nobody waits for it.
        """
        if processes.count() == 1:
            return self._received
        mine = np.full(jax.local_device_count(), self._received, np.int32)
        told, self._told = (
            self._told,
            self._sum(jax.make_array_from_process_local_data(self._each, mine)),
        )
        return told is not None and int(told) > 0

    def _receive(self, number, frame) -> None:
        del number, frame
        self._received = True
        if not self._training and processes.count() == 1:
            print("terminated before the first step; there was nothing to save", flush=True)
            raise SystemExit(0)
