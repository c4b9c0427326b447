"""Links between the processes of a run: if one ends, all end, each with one line that says why.

Process 0 opens the coordinator's port, and every other process keeps a connection to it, its
*link*. The system closes the link of a process that is killed, at once; for a machine that is
gone, or behind a broken network, it does so after `SILENCE` seconds. A process that is only busy or
stopped keeps its link.

JAX's coordination service is reached through the same port. JAX's own client ends its process
with a stack trace as soon as its connection to process 0 breaks, so it does not get that
connection: it talks to a *relay* inside its own process, whose near end never breaks.

    process 1: JAX client – relay ┐                       ┌ JAX service: process 0
                             link ┴──── network, port ────┴ front
"""

import asyncio
import contextlib
import errno
import json
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fct_jax.errors import UserError

SILENCE = 60  # seconds until a machine that does not answer is lost
_TRY_SECONDS = 5.0  # for one attempt to connect
_PAUSE = 0.1  # seconds between two attempts
_HELLO_SECONDS = 10.0  # for the first line of a connection
_LAST_SECONDS = 1.5  # for the others to leave before process 0, whom they ask
_CLOSE_SECONDS = 10.0  # for what is under way to end when all connections are closed
_LONGEST_PATH = 90  # bytes of the name of a socket; systems allow a little over 100


class Place(NamedTuple):
    """A process's place among the others: coordinator's HOST:PORT, its number, their number."""

    coordinator: str
    process_id: int
    num_processes: int


class Links:
    """This process's end of the links.

    Args:
      place: this process's place.
      leave: ``(line, status)``; called, in another thread, when this process must end because
        another one has; ``line`` says why.

    Attributes:
      process_id: the number of this process.
      address: where JAX's client finds the coordination service, and process 0 its place.
    """

    def __init__(self, place: Place, leave: Callable[[str, int], None]):
        self._place, self._leave = place, leave
        self.process_id = place.process_id
        self._folder = _short_folder()
        self.address = f"unix:{self._folder}/jax"
        self._writers: dict[int, asyncio.StreamWriter] = {}  # of the links, by process
        self._open: set[asyncio.StreamWriter] = set()  # all connections
        self._leaving: set[int] = set()  # processes that have said goodbye
        self._ending = False
        self._all_here = threading.Event()
        self._server = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="links", daemon=True)
        self._thread.start()

    def meet(self, timeout: float) -> None:
        """Return when all processes are linked. Raises UserError if they are not in time."""
        if self.process_id == 0:
            listener = listen(self._place.coordinator)
            self._run(self._begin(listener))
            if self._all_here.wait(timeout):
                return
            missing = sorted(set(range(1, self._place.num_processes)) - set(self._writers))
            raise UserError(
                f"not all of {self._place.num_processes} processes came to "
                f"{self._place.coordinator} within {timeout:.0f} s, missing: "
                f"{', '.join(map(str, missing))}; check that every process was started, with the "
                "same address and a --process_id of its own, and that the port is open"
            )
        self._run(self._join(timeout))
        # Process 0 started later, perhaps; it says so if others do not come.
        if not self._all_here.wait(2 * timeout):
            raise UserError(f"process 0 at {self._place.coordinator} does not begin")

    def end(self, line: str, status: int) -> None:
        """Tell the others to end with this line and status; return when they know."""
        with contextlib.suppress(TimeoutError, OSError):
            self._run(self._end(line, status), timeout=2 * _LAST_SECONDS)

    def say_goodbye(self) -> None:
        """Tell the others that the end of this process will be no fault."""
        with contextlib.suppress(TimeoutError, OSError):
            self._run(self._tell({"bye": self.process_id}), timeout=2 * _LAST_SECONDS)

    def linger(self, timeout: float = 10.0) -> None:
        """Wait, in process 0, until the others have left: their last words go through it."""
        deadline = time.monotonic() + timeout
        while self.process_id == 0 and self._writers and time.monotonic() < deadline:
            time.sleep(0.01)

    def close(self) -> None:
        """Close all connections; the others notice unless they have been told."""
        with contextlib.suppress(TimeoutError):
            self._run(self._close_all(), timeout=2 * _CLOSE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.remove()

    def remove(self) -> None:
        """Remove the sockets' folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, coroutine, timeout: float | None = None):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout)

    # What both ends do.

    @contextlib.contextmanager
    def _kept(self, *writers: asyncio.StreamWriter):
        """Context at whose end the connections are closed; `close` does so before."""
        self._open.update(writers)
        try:
            yield
        finally:
            self._open.difference_update(writers)
            for writer in writers:
                writer.close()

    async def _close_all(self) -> None:
        self._ending = True
        if self._server is not None:
            self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=_CLOSE_SECONDS)

    async def _tell(self, message: dict) -> None:
        for writer in list(self._writers.values()):
            with contextlib.suppress(OSError):
                writer.write(_encoded(message))
                await writer.drain()

    async def _end(self, line: str, status: int) -> None:
        self._ending = True
        await self._tell({"end": line, "status": status})
        if self.process_id == 0:  # it leaves last
            deadline = time.monotonic() + _LAST_SECONDS
            while self._writers and time.monotonic() < deadline:
                await asyncio.sleep(0.01)

    async def _follow(self, process: int, reader: asyncio.StreamReader, name: str) -> None:
        """Follow a link to its end."""
        with contextlib.suppress(OSError, ValueError):
            while line := await reader.readline():
                message = json.loads(line)
                if "end" in message and not self._ending:
                    self._writers.pop(process, None)  # it knows, and is not waited for
                    await self._end(message["end"], message["status"])
                    self._leave(message["end"], message["status"])
                elif "begin" in message:
                    self._all_here.set()
                elif "bye" in message:
                    self._leaving.add(message["bye"])
        self._writers.pop(process, None)
        if self._ending or process in self._leaving:
            return
        line = (
            f"error: process {process} ({name}) was lost: it was killed, or its machine is gone; "
            "the same command on all of them resumes"
        )
        await self._end(line, 1)
        self._leave(line, 1)

    # Process 0's front.

    async def _begin(self, listener: socket.socket) -> None:
        self._server = await asyncio.start_server(self._come, sock=listener)
        self._check_all_here()

    async def _come(self, reader, writer) -> None:
        """Serve a connection to the coordinator's port."""
        with self._kept(writer):
            try:
                hello = json.loads(await asyncio.wait_for(reader.readline(), _HELLO_SECONDS))
                process, kind, count = int(hello["process"]), hello["fct_jax"], hello["of"]
            except (OSError, ValueError, KeyError, TypeError):
                return  # of no process of this run
            if kind == "jax":
                await self._serve_jax(reader, writer)
                return
            refusal = self._refusal(process, count)
            if kind != "link":
                refusal = "a run is at work here"
            if refusal:
                writer.write(_encoded({"refused": refusal}))
                await writer.drain()
                return
            _keep_alive(writer)
            self._writers[process] = writer
            writer.write(_encoded({"welcome": process}))
            self._check_all_here()
            await self._follow(process, reader, hello.get("host"))

    async def _serve_jax(self, reader, writer) -> None:
        path = self.address.removeprefix("unix:")
        try:
            near_reader, near = await self._until_open(lambda: asyncio.open_unix_connection(path))
        except OSError:  # the service has not begun, or has ended
            return
        with self._kept(near):
            ways = [
                asyncio.create_task(_pump(*way)) for way in ((reader, near), (near_reader, writer))
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        writer.close()
        await asyncio.wait(ways)

    def _refusal(self, process: int, given: int) -> str | None:
        count = self._place.num_processes
        if given != count:
            return f"it has --num_processes={count}, this process {given}"
        if process in self._writers or not 0 < process < count:
            return f"there is a process {process} already; each needs a --process_id of its own"
        return None

    def _check_all_here(self) -> None:
        if len(self._writers) == self._place.num_processes - 1 and not self._all_here.is_set():
            for writer in self._writers.values():
                writer.write(_encoded({"begin": True}))
            self._all_here.set()

    # The other processes' link and relay.

    async def _join(self, timeout: float) -> None:
        try:
            reader, writer, answer = await self._until_open(self._greet, timeout)
        except OSError as error:
            raise UserError(
                f"{why_not(error, self._place.coordinator)} within {timeout:.0f} s; check that "
                "every process was started, with the same address and a --process_id of its own, "
                "and that the port is open"
            ) from error
        if "refused" in answer:
            writer.close()
            raise UserError(f"process 0 at {self._place.coordinator} refuses: {answer['refused']}")
        self._writers[0] = writer
        self._task = asyncio.create_task(self._follow_coordinator(reader, writer))
        path = self.address.removeprefix("unix:")
        self._server = await asyncio.start_unix_server(self._relay, path)

    async def _follow_coordinator(self, reader, writer) -> None:
        _keep_alive(writer)
        with self._kept(writer):
            await self._follow(0, reader, self._place.coordinator)

    async def _greet(self):
        reader, writer = await self._connect("link")
        try:
            answer = await asyncio.wait_for(reader.readline(), _HELLO_SECONDS)
            return reader, writer, json.loads(answer)
        except (OSError, ValueError) as error:  # silence; nothing, or no JSON
            writer.close()
            raise error if isinstance(error, OSError) else ConnectionAbortedError() from None

    async def _connect(self, kind: str):
        host, port = split(self._place.coordinator)
        reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port), _TRY_SECONDS)
        hello = {
            "fct_jax": kind,
            "process": self.process_id,
            "of": self._place.num_processes,
            "host": socket.gethostname(),
        }
        writer.write(_encoded(hello))
        return reader, writer

    async def _relay(self, reader, writer) -> None:
        """Join JAX's client to the service; its connection stays open when the service is lost."""
        try:
            far_reader, far = await self._until_open(lambda: self._connect("jax"))
        except OSError:
            writer.close()
            return
        with self._kept(writer, far):
            back = asyncio.create_task(_pump(far_reader, writer))
            await _pump(reader, far)
        await asyncio.wait([back])

    async def _until_open(self, connect, timeout: float = SILENCE):
        """Return what ``connect`` returns, trying again until the time is over. Raises OSError."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                return await connect()
            except OSError:  # TimeoutError is one
                if time.monotonic() > deadline or self._ending:
                    raise
            await asyncio.sleep(_PAUSE)


def split(address: str) -> tuple[str, int]:
    """Return the host and the port of HOST:PORT; an IPv6 address may have brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def listen(coordinator: str) -> socket.socket:
    """Open the coordinator's port, on all addresses of this machine.

    ``JAX_COORDINATOR_BIND_ADDRESS`` (HOST:PORT) narrows that, as it does for JAX. Raises UserError
    if the port is taken.
    """
    bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", f"[::]:{split(coordinator)[1]}")
    host, port = split(bind)
    try:
        if host == "::" and socket.has_dualstack_ipv6():
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
            )
        family = socket.AF_INET6 if ":" in host and host != "::" else socket.AF_INET
        return socket.create_server(("" if host == "::" else host, port), family=family)
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen at port {port}: {error.strerror or error}; "
            "give all processes another port in --coordinator"
        ) from error


def why_not(error: OSError, coordinator: str) -> str:
    """Return why process 0 cannot be reached."""
    if isinstance(error, socket.gaierror):
        return f"{coordinator}: no such host was found"
    if isinstance(error, TimeoutError):
        return f"{coordinator} gave no answer (a firewall, or the machine is down)"
    # A name may stand for several addresses, whose errors come as one.
    refused = f"[Errno {errno.ECONNREFUSED}]" in str(error)
    if refused or isinstance(error, ConnectionRefusedError):
        return f"nobody listens at {coordinator}, where process 0 should be,"
    if isinstance(error, ConnectionAbortedError | ConnectionResetError):
        return f"what listens at {coordinator} is not process 0 of this run; it gave no answer"
    return f"{coordinator} cannot be reached ({error.strerror or error})"


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on until one side ends."""
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()


def _encoded(message: dict) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    """Have the system notice a machine that no longer answers, within `SILENCE` seconds."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        "TCP_KEEPIDLE": SILENCE // 3,
        "TCP_KEEPINTVL": SILENCE // 6,
        "TCP_KEEPCNT": 4,
        "TCP_USER_TIMEOUT": SILENCE * 1000,  # for bytes that were sent; milliseconds
    }
    for name, value in options.items():
        if hasattr(socket, name):  # of Linux
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _short_folder() -> str:
    """Return a new folder with a name that is short enough for a socket's."""
    folder = tempfile.mkdtemp(prefix="fct_jax-")
    if len(os.fsencode(folder)) > _LONGEST_PATH:
        Path(folder).rmdir()
        folder = tempfile.mkdtemp(prefix="fct_jax-", dir="/tmp")
    return folder
