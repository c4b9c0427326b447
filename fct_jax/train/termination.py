"""Handles SIGTERM, which schedulers and pre-emption send: all processes stop after one step."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fct_jax.runtime import processes, sharding


class Termination:
    """Treats SIGTERM as a request to save and stop, as long as the context lasts.

    Before ``begin`` there is nothing to save, and a single process exits at once.

    Args:
      mesh: the devices over which the processes tell each other about the signal.
    """

    def __init__(self, mesh: Mesh):
        self._received, self._training = False, False
        self._told = None
        self._each = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._sum = jax.jit(jnp.sum, out_shardings=sharding.replicated(mesh))

    def __enter__(self) -> "Termination":
        try:
            self._before = signal.signal(signal.SIGTERM, self._receive)
        except ValueError:  # only the main thread (not that of some test runners) may
            self._before = None
        return self

    def __exit__(self, *exception) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def begin(self) -> None:
        """Note that from now on there is something to save."""
        self._training = True

    def asked(self) -> bool:
        """Return whether any process was asked to stop; every process asks after every call.

        With several processes the answer is one call late: it travels over the devices behind the
        training step, so that no process waits for it.
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
