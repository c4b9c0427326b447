"""The processes meet, and process 0 asks the others; every wait has a limit of seconds."""

import contextlib
import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from fct_jax.cluster.actions import Actions, call
from fct_jax.errors import UserError
from fct_jax.runtime.links import Place, listen, split, why_not

ASK_SECONDS = 60.0  # for one answer
_HELLO_SECONDS = 5.0  # for the first line of a connection, behind which the others wait
_TRY_SECONDS = 5.0
_PAUSE = 0.2
_KIND = "doctor"  # tells these connections from those of a run


class Line:
    """A connection over which JSON values travel, one a line."""

    def __init__(self, connection: socket.socket, seconds: float | None = None):
        """Take a connection, and how long to wait for a value; None: `ASK_SECONDS`."""
        self._connection = connection
        self._file = connection.makefile("rwb")
        self.wait(ASK_SECONDS if seconds is None else seconds)

    def wait(self, seconds: float) -> None:
        """Wait for so long for each value from now on."""
        self._connection.settimeout(seconds)

    @property
    def host(self) -> str:
        """Return the address of the other end."""
        return self._connection.getpeername()[0].removeprefix("::ffff:")

    def send(self, value) -> None:
        """Send a value. Raises OSError if the other end is gone."""
        self._file.write(json.dumps(value).encode() + b"\n")
        self._file.flush()

    def receive(self):
        """Return the next value. Raises OSError at the end, or if it takes too long."""
        try:
            return json.loads(self._file.readline())
        except ValueError:  # nothing, or no JSON
            raise ConnectionAbortedError("it ended") from None

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._connection.close()


class Member:
    """A process as process 0 sees it: itself, or another one at the end of a line."""

    def __init__(self, process: int, host: str, line: Line | None, actions: Actions | None):
        self.process, self.host = process, host
        self._line, self._actions = line, actions

    def ask(self, name: str, *arguments):
        """Return the answer of an action. Raises OSError if it fails or takes too long."""
        if self._actions is not None:
            return call(self._actions, name, arguments)
        self._line.send({"ask": name, "arguments": arguments})
        answer = self._line.receive()
        if "failed" in answer:
            raise OSError(answer["failed"])
        return answer["answer"]

    def tell(self, value) -> None:
        """Send the result and part."""
        if self._line is not None:
            with contextlib.suppress(OSError):
                self._line.send({"result": value})
            self._line.close()


def gather(place: Place, actions: Actions, timeout: float) -> tuple[list[Member], list[str]]:
    """Wait, as process 0, for the others; return who has come, by number, and faults found.

    Raises UserError if the port is taken.
    """
    members = {0: Member(0, split(place.coordinator)[0], None, actions)}
    faults: list[str] = []
    deadline = time.monotonic() + timeout
    with listen(place.coordinator) as listener:
        while len(members) < place.num_processes and time.monotonic() < deadline:
            listener.settimeout(max(deadline - time.monotonic(), 0.01))
            with contextlib.suppress(OSError):
                line = Line(listener.accept()[0], _HELLO_SECONDS)
                member, refusal = _come(line, place, members)
                if refusal:
                    faults.append(refusal)
                elif member is not None:
                    members[member.process] = member
    return [members[process] for process in sorted(members)], faults


def _come(line: Line, place: Place, members: dict) -> tuple[Member | None, str]:
    """Return (the member who has come, if it belongs here, a fault or "")."""
    try:
        hello = line.receive()
        kind, process, of, host = (hello[key] for key in ("fct_jax", "process", "of", "host"))
    except (OSError, KeyError, TypeError):
        line.close()  # some other program, such as a port scanner
        return None, ""
    refusal = ""
    if kind != _KIND:
        refusal = f"{host} started a run where `doctor cluster` is at work"
    elif of != place.num_processes:
        refusal = (
            f"process {process} ({host}) was started with --num-processes={of}, process 0 with "
            f"{place.num_processes}: give all the same"
        )
    elif process in members or not 0 < process < of:
        refusal = (
            f"{host} came as process {process}, which is there already: give each process a "
            "--process-id of its own"
        )
    with contextlib.suppress(OSError):
        line.send({"refused": refusal} if refusal else {"welcome": process})
    if refusal:
        line.close()
        return None, refusal
    line.wait(ASK_SECONDS)
    return Member(process, line.host, line, None), ""


def ask_all(members: list[Member], name: str, arguments_of: Callable = lambda member: ()):
    """Ask all at once; return {process: answer} and {process: why there is none}."""
    answers, failures = {}, {}

    def ask(member: Member) -> None:
        try:
            answers[member.process] = member.ask(name, *arguments_of(member))
        except OSError as error:
            failures[member.process] = str(error) or type(error).__name__

    if members:
        with ThreadPoolExecutor(len(members)) as pool:
            list(pool.map(ask, members))
    return answers, failures


def join(place: Place, actions: Actions, timeout: float):
    """Come to process 0, answer it, and return its result.

    Raises:
      UserError: process 0 cannot be reached in time, refuses this process, or ends too early.
    """
    line = _connected(place, timeout)
    line.wait(timeout + ASK_SECONDS)  # process 0 asks once all have come, or the time is over
    try:
        while True:
            asked = line.receive()
            if "result" in asked:
                return asked["result"]
            try:
                line.send({"answer": call(actions, asked["ask"], asked["arguments"])})
            except (AttributeError, TypeError):  # another version asks for something else
                line.send({"failed": f"it cannot {asked['ask']}: another version of fct_jax"})
    except OSError as error:
        raise UserError(
            f"process 0 at {place.coordinator} ended before the check did: look at its output"
        ) from error
    finally:
        line.close()


def _connected(place: Place, timeout: float) -> Line:
    deadline = time.monotonic() + timeout
    while True:
        try:
            return _greeted(place)
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{why_not(error, place.coordinator)} within {timeout:.0f} s: check "
                    "--coordinator (the address of process 0 as the other hosts see it), open the "
                    "port, and run this command on process 0's host too"
                ) from error
        time.sleep(_PAUSE)


def _greeted(place: Place) -> Line:
    line = Line(socket.create_connection(split(place.coordinator), timeout=_TRY_SECONDS))
    try:
        hello = {
            "fct_jax": _KIND,
            "process": place.process_id,
            "of": place.num_processes,
            "host": socket.gethostname(),
        }
        line.send(hello)
        answer = line.receive()
    except OSError:
        line.close()
        raise
    if "refused" in answer:
        line.close()
        raise UserError(f"process 0 at {place.coordinator} refuses: {answer['refused']}")
    return line
