"""Several processes that work as one: they start, agree, wait for one another and end together.

Every process runs the same program; process 0, the *writer*, writes the files and prints. They
agree through JAX's coordination service, and notice each other's end through ``links.py``, so
nothing here touches a device. With one process everything is a no-op, and JAX is not even imported.
"""

import atexit
import contextlib
import json
import multiprocessing
import os
import re
import sys
from collections.abc import Callable

from fct_jax.errors import UserError
from fct_jax.runtime import sigterm
from fct_jax.runtime.links import Links, Place

START_SECONDS = 300  # until every process must have come
TERMINATED = 143  # exit status of a program that SIGTERM has ended
_FOREVER = 7 * 24 * 3600 * 1000  # ms; a process that died ends the others long before
_HEARTBEAT_SECONDS = 24 * 3600  # JAX's own watch, which ends a process with a stack trace
NOTICE_SECONDS = 2.5  # until every process knows that one has failed

_counts: dict[str, int] = {}
_links: Links | None = None
_clean_up: list[Callable[[], None]] = []


class _Alone:
    """The state of a process that has not joined any others."""

    process_id, num_processes, client = 0, 1, None


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

    From here on, SIGTERM to one process, or its loss, ends all of them with one line each.

    Raises:
      UserError: arguments that do not fit together, no cluster found, or a process that does not
        join in time.
    """
    global _links
    place, local_devices = discover(coordinator, process_id, num_processes, timeout)
    _links = Links(place, _leave_with)
    watch = sigterm.Watch(_terminated)
    watch.__enter__()  # until the process ends
    try:
        _links.meet(timeout)
    except UserError as error:
        end_all(str(error), said=False)
    import jax

    jax.config.update("jax_check_proxy_envs", False)  # no proxy is asked
    try:
        jax.distributed.initialize(
            _links.address,
            place.num_processes,
            place.process_id,
            local_device_ids=local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            coordinator_bind_address=_links.address,
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        end_all(f"the processes cannot start at {place.coordinator}: {reason}", said=False)
    watch.renew()  # JAX has taken the signal for itself
    atexit.register(_part)


def given(
    coordinator: str | None, process_id: int | None, num_processes: int | None
) -> Place | None:
    """Return the place that these arguments give, or None if they give none.

    Raises UserError if they do not fit together.
    """
    values = {"coordinator": coordinator, "process_id": process_id, "num_processes": num_processes}
    missing = [f"--{name}" for name, value in values.items() if value is None]
    if len(missing) == 3:
        return None
    if missing:
        raise UserError(
            f"--coordinator, --process_id and --num_processes go together; missing: "
            f"{', '.join(missing)}"
        )
    _check(coordinator, process_id, num_processes)
    return Place(coordinator, process_id, num_processes)


def discover(
    coordinator: str | None = None,
    process_id: int | None = None,
    num_processes: int | None = None,
    timeout: float = START_SECONDS,
) -> tuple[Place, list[int] | None]:
    """Return this process's place among the others, and the numbers of its devices.

    Args:
      coordinator, process_id, num_processes: as for `start`; what Cloud TPU, SLURM, GKE or Open MPI
        say fills in what is not given.
      timeout: seconds until the name of the coordinator's host must be known.

    Returns:
      The place; and the local devices that the environment gives this process, None for all.

    Raises:
      UserError: arguments that do not fit together, or no cluster found.
    """
    given(coordinator, process_id, num_processes)
    from jax._src import clusters  # JAX has no public name for what it finds

    own = os.environ.get("JAX_LOCAL_DEVICE_IDS")
    try:
        found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"),
            num_processes,
            process_id,
            [int(device) for device in own.split(",")] if own else None,
            None,
            int(timeout),
        )
    except RuntimeError as error:  # of a host whose name is unknown
        raise UserError(f"--distributed: {error}") from error
    coordinator, num_processes, process_id, local_devices = found
    if None in (coordinator, num_processes, process_id):
        raise UserError(
            "--distributed found no cluster (Cloud TPU, SLURM, GKE, Open MPI); give each process "
            "--coordinator=HOST:PORT --process_id=I --num_processes=N"
        )
    return Place(coordinator, process_id, num_processes), local_devices


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


def end_all(reason: str, status: int = 1, said: bool = True) -> None:
    """End this process, after an error, and all others with it; return only if it is alone.

    Without it the others would wait for this one in their next common step.

    Args:
      reason: what the others print.
      status: exit status of this process; that of the others is 1.
      said: whether this process has told its user; otherwise it does so here.
    """
    if _links is None:
        return
    if not said:
        print(f"error: {reason}", file=sys.stderr)
    _links.end(f"error: process {_links.process_id} ended: {reason}", 1)
    _leave(status)


def terminate(here: str, there: str, status: int) -> None:
    """End this process and all others, because one was asked to stop.

    Args:
      here: the line that this process prints, if any.
      there: what the others print, after "process I was terminated".
      status: exit status of all processes.
    """
    if _links is not None:
        _links.end(f"process {_links.process_id} was terminated{there}", status)
    if here:
        print(here, flush=True)
    _leave(status)


@contextlib.contextmanager
def finally_calling(function: Callable[[], None]):
    """Context that calls ``function`` at its end, also if the whole program must end at once."""
    _clean_up.append(function)
    try:
        yield
    finally:
        _clean_up.remove(function)
        function()


def _terminated() -> None:
    terminate(
        "terminated; repeat the command on all hosts",
        "; repeat the command on all hosts",
        TERMINATED,
    )


def _part() -> None:
    """Part from the others at the end of the program."""
    import jax

    _links.say_goodbye()
    try:
        jax.distributed.shutdown()  # waits for the others
    except Exception as error:  # of XLA, which has many kinds
        print(f"error: the processes did not end together: {error}", file=sys.stderr)
        _leave(1)
    _links.linger()
    _links.close()


def _leave_with(line: str, status: int) -> None:
    print(line, file=sys.stderr if status else sys.stdout)
    _leave(status)


def _leave(status: int) -> None:
    """Exit without JAX's shutdown, which waits for processes that will not come."""
    for child in multiprocessing.active_children():
        child.terminate()  # data workers; nothing else would end them
    for function in _clean_up:
        function()
    if _links is not None:
        _links.remove()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _unique(name: str) -> str:
    """Return a unique name: every process counts the uses of each name."""
    _counts[name] = _counts.get(name, 0) + 1
    return f"{name}/{_counts[name]}"
