"""The head node of a Ray cluster, without which Ray soon ends the cluster and this process."""

import os
import socket
import threading
import time

from fct_jax.errors import UserError

LOOK = 5.0  # seconds between two looks
_CONNECT = 2.0  # seconds to connect
_RECONNECT, _SECONDS = "RAY_gcs_rpc_server_reconnect_timeout_s", "60"  # Ray's setting, its default
_SHARE = 2 / 3  # of Ray's own limit, at which it ends this process in the midst of its work


class Head:
    """The process on the head node that knows all others (Ray's GCS), as seen from the driver.

    Workers finish what they are doing without it, but what Ray is asked about nodes has no answer.
    """

    def __init__(self, address: str):
        """Take its ``host:port``.

        If it is not reached from here, as from outside of the cluster with Ray's client, it is
        taken to answer; the client then tells when its own connection is lost.
        """
        self.address = address
        self._reached = self._connects()
        self._lock = threading.Lock()
        self._answered = time.monotonic()
        self._looked, self._there = float("-inf"), True
        self.limit = float(os.environ.get(_RECONNECT, _SECONDS)) * _SHARE

    @classmethod
    def of(cls, ray) -> "Head":
        """Return the head node of the cluster to which the module ``ray`` is connected."""
        return cls(getattr(ray.get_runtime_context(), "gcs_address", ""))

    def answers(self) -> bool:
        """Return whether it answers now. Raises UserError if it has not for some time."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked >= LOOK:
                self._looked, self._there = now, not self._reached or self._connects()
            if self._there:
                self._answered = now
            elif now - self._answered > self.limit:
                raise UserError(
                    f"the head node of the Ray cluster, {self.address}, has not answered for "
                    f"{self.limit:.0f} s; what is published stays: start a cluster, and repeat the "
                    "command to resume"
                )
            return self._there

    def _connects(self) -> bool:
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT).close()
        except (OSError, ValueError):  # ValueError: no address
            return False
        return True
