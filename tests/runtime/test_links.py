"""Links notice who is lost, refuse who does not belong, and relay what JAX says; no JAX needed."""

import contextlib
import queue
import socket
import threading
import time

import pytest
from patience import LONG
from ports import free_port

from fct_jax.errors import UserError
from fct_jax.runtime import links
from fct_jax.runtime.links import Links, Place


@pytest.fixture
def met(monkeypatch):
    """Return a function that links some processes; they are closed after the test."""
    monkeypatch.setattr(links, "_LAST_SECONDS", 0.3)  # nobody leaves here
    made = []

    def meet(count):
        """Return the address, the ends of the links, and queues of what makes each leave."""
        address = f"localhost:{free_port()}"
        said = [queue.Queue() for _ in range(count)]
        for i in range(count):
            made.append(Links(Place(address, i, count), lambda *x, q=said[i]: q.put(x)))
        threads = [threading.Thread(target=each.meet, args=[LONG]) for each in made]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
        return address, made, said

    yield meet
    for each in made:
        if each._thread.is_alive():
            each.close()


@contextlib.contextmanager
def other(*place, leave=print):
    end = Links(Place(*place), leave)
    try:
        yield end
    finally:
        end.close()


def test_a_lost_process_is_named_to_all_others(met):
    _, made, said = met(3)
    made[2].close()
    for each in said[:2]:
        line, status = each.get(timeout=LONG)
        assert line.startswith(f"error: process 2 ({socket.gethostname()}) was lost: ")
        assert status == 1 and "\n" not in line
    assert said[2].empty()


def test_process_0_lost_is_named_with_its_address(met):
    address, made, said = met(3)
    made[0].close()
    for each in said[1:]:
        assert each.get(timeout=LONG)[0].startswith(f"error: process 0 ({address}) was lost: ")


@pytest.mark.parametrize("who", [0, 1])
def test_one_that_ends_ends_all(met, who):
    _, made, said = met(3)
    made[who].end("because", 7)
    for process, each in enumerate(said):
        if process != who:
            assert each.get(timeout=LONG) == ("because", 7)
    assert said[who].empty()


def test_one_that_says_goodbye_is_not_lost(met):
    _, made, said = met(2)
    for each in made:
        each.say_goodbye()
    deadline = time.monotonic() + LONG
    while not made[0]._leaving:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    made[1].close()
    made[0].linger(LONG)
    assert not made[0]._writers and all(each.empty() for each in said)


@pytest.mark.parametrize(
    "place, message",
    [
        ((1, 3), "refuses: there is a process 1 already"),
        ((2, 4), "refuses: it has --num_processes=3, this process 4"),
    ],
)
def test_who_does_not_belong_is_refused(met, place, message):
    address, _, said = met(3)
    with other(address, *place) as end, pytest.raises(UserError, match=message):
        end.meet(LONG)
    assert all(each.empty() for each in said)


def test_who_does_not_come_is_named():
    address = f"localhost:{free_port()}"
    said = r"not all of 3 processes came .*, missing: 1, 2;"
    with other(address, 0, 3) as end, pytest.raises(UserError, match=said):
        end.meet(0.2)


def test_a_port_in_use_is_named():
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        said = f"cannot listen at port {port}: Address already in use"
        with other(f"localhost:{port}", 0, 2) as end, pytest.raises(UserError, match=said):
            end.meet(0.2)


def test_why_process_0_cannot_be_reached(monkeypatch):
    monkeypatch.setattr(links, "_TRY_SECONDS", LONG)  # looking up a name may take its time
    monkeypatch.setattr(links, "_HELLO_SECONDS", 0.3)

    def fails(address):
        with other(address, 1, 2) as end, pytest.raises(UserError) as error:
            end.meet(0.2)
        return str(error.value)

    port = free_port()
    assert f"nobody listens at localhost:{port}" in fails(f"localhost:{port}")
    assert "no such host was found" in fails(f"no-such-host.invalid:{port}")
    with socket.create_server(("localhost", 0)) as silent:
        assert "gave no answer" in fails(f"localhost:{silent.getsockname()[1]}")


def test_strangers_do_not_disturb(met):
    address, made, said = met(2)
    for sent in (b"", b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"fct_jax": "link"}\n', b"\xff\n"):
        with socket.create_connection(links.split(address)) as stranger:
            stranger.sendall(sent)
    made[1].end("still linked", 1)
    assert said[0].get(timeout=LONG) == ("still linked", 1)


def test_the_relay_passes_on_and_stays_open_when_process_0_is_lost(met):
    """JAX's client sees its bytes come back, and no end of its connection."""
    _, made, said = met(2)

    def echo(server):
        with contextlib.suppress(OSError), server.accept()[0] as connection:
            while data := connection.recv(1 << 16):
                connection.sendall(data)

    with socket.socket(socket.AF_UNIX) as service, socket.socket(socket.AF_UNIX) as client:
        service.bind(made[0].address.removeprefix("unix:"))
        service.listen()
        threading.Thread(target=echo, args=[service], daemon=True).start()
        client.settimeout(LONG)
        client.connect(made[1].address.removeprefix("unix:"))
        sent = bytes(range(256)) * 4096
        threading.Thread(target=client.sendall, args=[sent], daemon=True).start()
        found = b""
        while len(found) < len(sent):
            found += client.recv(1 << 16)
        assert found == sent
        made[0].close()
        assert "process 0" in said[1].get(timeout=LONG)[0]
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(1)


def test_a_machine_that_is_gone_is_noticed_by_the_system(met):
    """The system asks a silent machine, so that no process need answer."""
    _, made, _ = met(2)
    for end in made:
        (writer,) = end._writers.values()
        connection = writer.get_extra_info("socket")
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            first, between, times = (
                connection.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
            assert first + between * times == links.SILENCE


def test_addresses():
    assert links.split("10.0.0.1:12") == ("10.0.0.1", 12)
    assert links.split("[fe80::1]:12") == ("fe80::1", 12)


def test_a_long_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(links.tempfile, "tempdir", str(tmp_path / ("x" * 80)))
    (tmp_path / ("x" * 80)).mkdir()
    with other("localhost:1", 0, 1) as end:
        assert len(end.address) < links._LONGEST_PATH
