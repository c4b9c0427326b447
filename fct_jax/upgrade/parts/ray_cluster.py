"""Connecting to a Ray cluster, or starting one here, within a limit of time and in silence."""

import contextlib
import itertools
import logging
import os
import socket
import threading
from pathlib import Path

from fct_jax.errors import UserError
from fct_jax.runtime.progress import console
from fct_jax.upgrade.parts.engines import Engine

_START = "RAY_raylet_start_wait_time_s"
# Ray gives its processes 30 and 60 seconds to start, which is too short on a busy machine.
_PATIENCE = {_START: "180", "RAY_worker_register_timeout_seconds": "600"}
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # or the end of a lost connection would start a cluster here
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_OBJECTS = 100 << 20  # bytes; vectors go through files, not through Ray's memory
# What Ray says if the server of a client does not start: Ray loses some of them in a fork beside
# its threads, which another try mends; others need over 30 seconds on a busy head node.
_UNSTARTED = ("Starting Ray client server failed", "Proxy failed to Connect to backend")
_TRIES = 3
_SLOW = (
    "If the head node is busy, start Ray there with RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S=100 "
    "in its environment, the seconds that a client's server may take (30 without it)."
)
_TOLD = 30.0  # seconds until it is said that Ray is still starting
REACHED = 120.0  # seconds for a cluster to answer
_WORKER = 600.0  # seconds for the first worker to answer


@contextlib.contextmanager
def connected(engine: Engine):
    """Context of the module ``ray``, connected to the address or to a cluster started here.

    Raises UserError if there is no cluster, or if its workers have another version of the package.
    """
    for name, value in {**_PATIENCE, **_QUIET}.items():
        os.environ.setdefault(name, value)
    import ray

    _check_reachable(engine.address)
    paths = [str(Path.cwd()), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    settings = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, paths))}},
    }
    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            stack.enter_context(_silent(ray))
            if engine.address:
                _reach(ray, engine.address, settings)
            else:
                _start(ray, engine.workers, settings)
            stack.callback(ray.shutdown)
        _check_installed(ray)
        yield ray


@contextlib.contextmanager
def _silent(ray):
    """Keep the cluster's errors off the console, where Ray prints them with pages of its log.

    No setting of Ray's does so. They stay in its session folder; a loss that matters is raised.
    """
    module, name = ray._private.worker, "print_to_stdstream"
    own = getattr(module, name, None)
    setattr(module, name, lambda *arguments, **settings: None)
    try:
        yield
    finally:
        setattr(module, name, own)


def _start(ray, workers: int | None, settings: dict) -> None:
    limit = os.environ[_START]

    def tell():
        console.print(f"Ray is still starting; the limit is {limit} s ({_START})", soft_wrap=True)

    telling = threading.Timer(_TOLD, tell)
    telling.daemon = True
    telling.start()
    here = {"num_cpus": workers, "object_store_memory": _OBJECTS, "include_dashboard": False}
    try:
        # Without a word, Ray would join a cluster that happens to run on this machine.
        ray.init(address="local", **here, **settings)
    except Exception as error:  # Ray raises Exception itself when its time is over
        raise UserError(
            f"Ray cannot be started on this machine: {line(error)} Its log is in "
            "/tmp/ray/session_latest/logs; if the machine was busy, repeat the command"
        ) from None
    finally:
        telling.cancel()


def _reach(ray, address: str, settings: dict) -> None:
    for _ in range(_TRIES):
        error = _failure(ray, address, settings)
        if error is None:
            return
        unstarted = any(part in str(error) for part in _UNSTARTED)
        if not unstarted:
            break
    advice = f" {_SLOW}" if unstarted else ""
    raise UserError(f"the Ray cluster at {address} cannot be used: {line(error)}{advice}")


def _failure(ray, address: str, settings: dict) -> Exception | None:
    """Connect in a thread, because Ray would ask a port that is not a cluster's for very long."""
    failed: list[Exception] = []

    def connect():
        try:
            ray.init(address=address, **settings)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(REACHED)
    if thread.is_alive():
        raise UserError(
            f"no Ray cluster has answered at {address} for {REACHED:g} s; a cluster's port is 6379 "
            "(host:6379), that of Ray's client 10001 (ray://host:10001)"
        )
    return failed[0] if failed else None


def line(error: Exception) -> str:
    """Return an error of Ray's in one line; of a traceback in it only the last error."""
    _, traced, rest = str(error).rpartition("Traceback (most recent call last):\n")
    lines = rest.splitlines()
    said = itertools.dropwhile(lambda each: each.startswith(" "), lines) if traced else lines
    said = " ".join(" ".join(said).split())[:300] or type(error).__name__
    return said if said.endswith(".") else f"{said}."


def _check_reachable(address: str | None) -> None:
    """Raise UserError if nobody answers at ``host:port``, for which Ray waits for minutes."""
    host, colon, port = (address or "").rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        return  # no address, or a word such as auto
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(f"nobody answers at {address}: {error.strerror or error}") from None


def _check_installed(ray) -> None:
    """Raise UserError unless a worker has this version of the package."""

    def version():  # defined here, so that Ray sends its code
        try:
            import fct_jax
        except ModuleNotFoundError as error:
            return f"no module {error.name}"
        return f"fct_jax {fct_jax.__version__}"

    try:
        asked = ray.remote(version).options(num_cpus=0).remote()
        found, own = ray.get(asked, timeout=_WORKER), version()
    except ray.exceptions.RayError as error:
        raise UserError(f"no worker of Ray could be started: {line(error)}") from None
    if found != own:
        raise UserError(
            f"a worker of Ray has {found}, but this process has {own}; install the same version "
            "on every node, or set PYTHONPATH"
        )
