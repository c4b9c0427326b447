"""Several processes that work as one: they start, agree, wait for one another and end together.

Every process runs the same program; process 0, the *writer*, writes the files and prints. They
talk through JAX's coordination service, so nothing here touches a device. With one process
everything is a no-op, and JAX is not even imported.
"""

import contextlib
import json
import multiprocessing
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable

from fct_jax.errors import UserError

START_SECONDS = 300  # until every process must have come
_FOREVER = 7 * 24 * 3600 * 1000  # ms; a process that died ends the others long before
_POLL_SECONDS = 1.0
NOTICE_SECONDS = 2.5  # until every process knows that one has failed
_FAILED = "fct_jax/failed"

_counts: dict[str, int] = {}
_ending = threading.Event()


class _Alone:
    """The state of a process that has not joined any others."""

    process_id, num_processes, client, coordinator_address = 0, 1, None, None


def _state():
    """Return JAX's coordination state, without importing JAX where nothing else has.

    Its key-value store and barriers have no public name; Orbax uses them in the same way.
    """
    module = sys.modules.get("jax._src.distributed")
    return getattr(module, "global_state", _Alone)


def start(
    coordinator: str | None = None,
    process_id: int | None = None,
    num_processes: int | None = None,
    timeout: int = START_SECONDS,
) -> None:
    """Join this process to the others; call it before anything that uses a device.

    Args:
      coordinator: ``HOST:PORT`` of process 0, at which it listens.
      process_id: number of this process, from 0.
      num_processes: number of processes. Give all three or none; with none, Cloud TPU, SLURM, GKE
        or Open MPI provide them.
      timeout: seconds to wait for all processes.

    If a process does not join in time, the program ends with a one-line message.

    Raises:
      UserError: arguments that do not fit together, or no cluster found.
    """
    given = {"coordinator": coordinator, "process_id": process_id, "num_processes": num_processes}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if len(missing) in (1, 2):
        raise UserError(
            f"--coordinator, --process_id and --num_processes go together; missing: "
            f"{', '.join(missing)}"
        )
    if not missing:
        _check(coordinator, process_id, num_processes)
    late = threading.Timer(timeout, _too_late, (coordinator, num_processes, timeout))
    late.daemon = True
    late.start()
    import jax

    try:
        # JAX ends the program with a stack trace when its own time is over.
        jax.distributed.initialize(
            coordinator, num_processes, process_id, initialization_timeout=timeout + 60
        )
    except ValueError as error:
        raise UserError(
            "--distributed found no cluster (Cloud TPU, SLURM, GKE, Open MPI); give each process "
            "--coordinator=HOST:PORT --process_id=I --num_processes=N"
        ) from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        where = f" at {coordinator}" if coordinator else ""
        raise UserError(f"the processes cannot start{where}: {reason}") from error
    finally:
        late.cancel()
    threading.Thread(target=_watch, name="watch other processes", daemon=True).start()


def _check(coordinator: str, process_id: int, num_processes: int) -> None:
    if not re.fullmatch(r"\S+:\d{1,5}", coordinator) or int(coordinator.rsplit(":")[-1]) > 65535:
        raise UserError(f"--coordinator={coordinator} is not HOST:PORT, 10.0.0.1:1234 for example")
    if num_processes < 1:
        raise UserError(f"--num_processes={num_processes} must be at least 1")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id} must be in 0..{num_processes - 1}: "
            f"there are --num_processes={num_processes}"
        )


def _too_late(coordinator: str | None, num_processes: int | None, timeout: int) -> None:
    """End this process with one line that names what it waited for."""
    where = _state().coordinator_address or coordinator
    reason = f"not all of {num_processes or 'the'} processes came to {where}"
    host, _, port = (where or "").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port or 0)), timeout=2).close()
    except OSError:
        reason = f"nobody listens at {where}, where process 0 should be"
    print(
        f"error: {reason} within {timeout} s; check that every process was started, with the "
        "same address and a --process_id of its own, and that the port is open",
        file=sys.stderr,
    )
    _leave(1)


def index() -> int:
    """Return the number of this process, from 0."""
    return _state().process_id


def count() -> int:
    """Return the number of processes."""
    return _state().num_processes


def summary() -> str:
    """Return the numbers of processes and devices that take part, for the log."""
    import jax

    return f"{count()} processes, {jax.device_count()} devices"


def is_writer() -> bool:
    """Return whether this process writes files and prints: it is process 0."""
    return index() == 0


def say(text) -> None:
    """Print on the writer only."""
    if is_writer():
        print(text, flush=True)


def barrier(name: str) -> None:
    """Wait until every process is here."""
    if count() > 1:
        _state().client.wait_at_barrier(_unique(f"fct_jax/barrier/{name}"), _FOREVER)


def from_writer(function: Callable[[], object], name: str):
    """Call ``function`` on the writer; the others wait, and all get its result.

    Args:
      function: returns a JSON value.
      name: name of the occasion, the same on every process.

    Raises:
      UserError: that of the writer, on every process.
    """
    if count() == 1:
        return function()
    key = _unique(f"fct_jax/writer/{name}")
    if is_writer():
        try:
            answer = {"result": function()}
        except UserError as error:
            answer = {"error": str(error)}
        _state().client.key_value_set(key, json.dumps(answer))
    else:
        answer = json.loads(_state().client.blocking_key_value_get(key, _FOREVER))
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["result"]


def gather(value, name: str) -> list:
    """Return every process's ``value`` (as JSON holds it), by process, on all of them."""
    if count() == 1:
        return [value]
    client, key = _state().client, _unique(f"fct_jax/gather/{name}")
    client.key_value_set(f"{key}/{index()}", json.dumps(value))
    return [
        json.loads(client.blocking_key_value_get(f"{key}/{process}", _FOREVER))
        for process in range(count())
    ]


def end_all(reason: str, status: int = 1) -> None:
    """End this process, after an error, and all others with it; return only if it is alone.

    Without it the others would wait for this one in their next common step.
    """
    if count() == 1 or _state().client is None:
        return
    _ending.set()
    with contextlib.suppress(RuntimeError):  # another process was first, or the coordinator is gone
        _state().client.key_value_set(_FAILED, json.dumps([index(), reason]))
    if is_writer():
        time.sleep(NOTICE_SECONDS)  # the others ask this process, so it leaves last
    _leave(status)


def _watch() -> None:
    """End this process when another one has failed."""
    while not _ending.wait(_POLL_SECONDS):
        if _state().client is None:
            return
        try:
            process, reason = json.loads(_state().client.key_value_try_get(_FAILED))
        except RuntimeError:  # nobody has
            continue
        if not _ending.is_set():
            print(f"error: process {process} ended: {reason}", file=sys.stderr)
            _leave(1)


def _leave(status: int) -> None:
    """Exit without JAX's shutdown, which waits for processes that will not come."""
    for child in multiprocessing.active_children():
        child.terminate()  # data workers; nothing else would end them
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _unique(name: str) -> str:
    """Return a unique name: every process counts the uses of each name."""
    _counts[name] = _counts.get(name, 0) + 1
    return f"{name}/{_counts[name]}"
