"""Ports of loopback that nobody else takes between being chosen and being listened at."""

import contextlib
import os
import random
import re
import socket

WORKERS = 8  # at most; each worker of pytest-xdist has ports of its own
_WORKER = int(re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "0")) or 0) % WORKERS
_RANDOM = random.SystemRandom()  # Hypothesis seeds the usual one
_given: set[int] = set()


def free_ports(count: int) -> list[int]:
    """Return different ports that nobody listens at, and that this process has not given before.

    They are below those that the system gives to outgoing connections and to whoever asks for any
    port: otherwise another program could have one before the test's own does, and a process that
    tries to reach its own port could connect to itself. They are above those that Ray gives to its
    workers (10,002 to 19,999) and to the servers of its clients (23,000 to 24,000).
    """
    found: list[int] = []
    while len(found) < count:
        port = _RANDOM.randrange(24_008 + _WORKER, 32_000, WORKERS)
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                found.append(port)
    return found


def free_port() -> int:
    """Return one such port."""
    return free_ports(1)[0]
