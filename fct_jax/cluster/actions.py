"""The actions that process 0 asks of every process; arguments and results are JSON values."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fct_jax

DEVICE_SECONDS = 45  # for JAX to find this machine's devices
_REACH_SECONDS = 3.0
# Programs compiled with other settings would not meet at the same collectives.
_SETTINGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
_PROBE = """
import json, sys
import jax
if sys.argv[1:]:
    jax.config.update("jax_cuda_visible_devices", sys.argv[1])
found = jax.local_devices()
print(json.dumps([len(found), found[0].device_kind or found[0].platform]))
"""


class Actions:
    """The actions of one process; each public method but ``close`` is one.

    Args:
      folder: the folder that all hosts are meant to share, or None.
      config: the config file, or None.
      local_devices: numbers of the devices that the environment gives this process, or None.
    """

    def __init__(self, folder: Path | None, config: Path | None, local_devices=None):
        self._folder, self._config = folder, config
        visible = ",".join(map(str, local_devices)) if local_devices else None
        self._listener = None
        # It takes seconds, in which the processes meet.
        self._devices = _started_probe(visible)

    def close(self) -> None:
        """Stop looking for devices, and close the port."""
        if self._devices.poll() is None:
            self._devices.kill()
        self._devices.communicate()
        if self._listener is not None:
            self._listener.close()

    def facts(self) -> dict:
        """Return what must be equal on all hosts, and what tells them apart."""
        names = ("jax", "jaxlib", "libtpu")
        settings = {name: os.environ.get(name, "") for name in _SETTINGS}
        return {
            "host": socket.gethostname(),
            "own_address": address_of(socket.gethostname()),
            "python": platform.python_version(),
            **{name: _version(name) for name in names},
            "fct_jax": fct_jax.__version__,
            "code": code_digest(),
            "config": _digest(self._config.read_bytes()) if self._config else "",
            **settings,
            "folder": str(self._folder or ""),
            **self._found_devices(),
        }

    def clock(self) -> float:
        """Return this machine's time, in seconds."""
        return time.time()

    def open_port(self) -> int:
        """Open a port that the others try to reach, and return its number."""
        self._listener = _listener()
        threading.Thread(target=_accept_all, args=[self._listener], daemon=True).start()
        return self._listener.getsockname()[1]

    def reach(self, addresses: dict[str, list]) -> dict[str, str]:
        """Return, for each process {number: [host, port]}, why it cannot be reached, or ""."""
        with ThreadPoolExecutor(16) as pool:
            return dict(zip(addresses, pool.map(_reached, addresses.values()), strict=True))

    def write(self, token: str, process: int) -> str:
        """Write a file into the shared folder and rename it; return why that failed, or ""."""
        if not self._folder.is_dir():
            return "there is no such folder"
        marks = self._marks(token)
        try:
            marks.mkdir(exist_ok=True)
            partial = marks / f"{process}.partial"
            partial.write_text(f"{token} {process}")
            partial.replace(marks / str(process))
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def see(self, token: str, processes: list[int], seconds: float) -> list[int]:
        """Return whose files this process sees, after waiting for all of them."""
        deadline = time.monotonic() + seconds
        while True:
            seen = [process for process in processes if self._sees(token, process)]
            if len(seen) == len(processes) or time.monotonic() > deadline:
                return seen
            time.sleep(0.2)

    def remove(self, token: str, process: int) -> None:
        """Remove this process's file, and the folder of such files if it is the last."""
        with contextlib.suppress(OSError):
            (self._marks(token) / str(process)).unlink(missing_ok=True)
            self._marks(token).rmdir()

    def _marks(self, token: str) -> Path:
        return self._folder / f".fct_jax-doctor-{token}"

    def _sees(self, token: str, process: int) -> bool:
        with contextlib.suppress(OSError):
            return (self._marks(token) / str(process)).read_text() == f"{token} {process}"
        return False

    def _found_devices(self) -> dict:
        """Return the number and the kind of devices; 0 and the reason if JAX finds none."""
        try:
            said, failed = self._devices.communicate(timeout=DEVICE_SECONDS)
        except subprocess.TimeoutExpired:
            return {"devices": 0, "kind": f"no answer within {DEVICE_SECONDS} s"}
        if self._devices.returncode:
            last = (failed.strip().splitlines() or ["it ended without a word"])[-1]
            return {"devices": 0, "kind": last[:200]}
        count, kind = json.loads(said.splitlines()[-1])
        return {"devices": count, "kind": kind}


def call(actions: Actions, name: str, arguments: list):
    """Call an action by its name. Raises AttributeError for one that this version lacks."""
    if name.startswith("_") or name == "close":
        raise AttributeError(name)
    return getattr(actions, name)(*arguments)


def address_of(host: str) -> str:
    """Return the address that this machine has for a name, or "" if it has none."""
    try:
        return socket.getaddrinfo(host, None)[0][4][0]
    except OSError:
        return ""


def code_digest() -> str:
    """Return a digest of this package's source, which differs between checkouts."""
    root = Path(fct_jax.__file__).parent
    files = sorted(root.rglob("*.py"))
    return _digest(b"".join(file.read_bytes() for file in files))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:8]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _started_probe(visible: str | None):
    """Start another Python that asks JAX for devices: it can be stopped if that takes too long."""
    command = [sys.executable, "-c", _PROBE, *([visible] if visible else [])]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _listener() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _accept_all(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it was closed
        while True:
            listener.accept()[0].close()


def _reached(address) -> str:
    try:
        socket.create_connection(tuple(address), timeout=_REACH_SECONDS).close()
    except TimeoutError:
        return "no answer"
    except OSError as error:
        return error.strerror or str(error)
    return ""
