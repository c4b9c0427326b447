"""Handles SIGTERM, which schedulers and pre-emption send: all processes stop after one step."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fct_jax.runtime import processes, sharding, sigterm

GRACE_SECONDS = 2.0  # for the main thread to end by itself
_NOTHING = "before the first step; there was nothing to save"


class Termination:
    """Treats SIGTERM as a request to save and stop, as long as the context lasts.

    Until the first step is under way there is nothing to save, and all processes end at once, even
    those that are compiling.
    """

    def __init__(self):
        self._received, self._training, self._over = False, False, False
        self._told, self._sum = None, None
        self._said = threading.Lock()  # taken by who says it
        self._watch = sigterm.Watch(self._receive, self._end_main_thread)

    def __enter__(self) -> "Termination":
        self._watch.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        self._over = True
        self._watch.__exit__(*exception)

    def asked(self, mesh: Mesh) -> bool:
        """Return whether any process was asked to stop; every process asks after every call.

        With several processes the answer is one call late: it travels over the devices behind the
        training step, so that no process waits for it.

        Args:
          mesh: the devices over which the processes tell each other about the signal.
        """
        self._training = True
        if processes.count() == 1:
            return self._received
        if self._sum is None:
            self._sum = jax.jit(jnp.sum, out_shardings=sharding.replicated(mesh))
        each = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        mine = np.full(jax.local_device_count(), self._received, np.int32)
        told, self._told = (
            self._told,
            self._sum(jax.make_array_from_process_local_data(each, mine)),
        )
        return told is not None and int(told) > 0

    def _receive(self) -> None:
        """Note the signal; before the first step, end."""
        self._received = True
        if self._training or self._over:
            return
        if processes.count() == 1:
            time.sleep(GRACE_SECONDS)
            if self._over:
                return
        said = self._said.acquire(blocking=False)
        processes.terminate(f"terminated {_NOTHING}" if said else "", f" {_NOTHING}", 0)

    def _end_main_thread(self) -> None:
        """End a program of one process in the usual way, if Python comes to it in time."""
        self._received = True
        if not self._training and processes.count() == 1 and self._said.acquire(blocking=False):
            print(f"terminated {_NOTHING}", flush=True)
            raise SystemExit(0)
