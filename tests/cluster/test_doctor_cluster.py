"""``fct-jax doctor cluster`` on two and three processes, each a host with or without a fault."""

import contextlib
import json
import re
import socket
import threading
import time
from pathlib import Path

import cluster
import pytest
from patience import LONG
from ports import free_port

from fct_jax import cli
from fct_jax.cluster import examine, meeting
from fct_jax.errors import UserError

SCRIPT = Path(cluster.__file__).with_name("doctor_as_processes.py")
WELL = {"facts": {"devices": 2, "kind": "cpu"}}  # JAX is not asked, which takes a second


def doctor(tmp_path, faults, folders, count=None, timeout=LONG):
    """Run the command on a host for each of the faults; return exit codes and outputs."""
    port = free_port()
    return cluster.run(
        lambda index: [
            SCRIPT, json.dumps(faults[index]), "cluster", "--coordinator", f"localhost:{port}",
            "--process-id", index, "--num-processes", count or len(faults),
            "--folder", folders[index], "--config", "digits_fct", "--timeout", timeout,
        ],
        len(faults),
        tmp_path / "logs",
        timeout=LONG,
    )  # fmt: skip


@pytest.mark.multiprocess
def test_hosts_that_are_ready(tmp_path):
    codes, said = doctor(tmp_path, [{}, {}], [tmp_path] * 2)
    assert codes == [0, 0], said
    assert said[0] == said[1]
    assert "the 2 processes are ready" in said[0] and "not checked" not in said[0]
    assert said[0].count("2 × cpu") == 2  # of cluster.run
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


@pytest.mark.multiprocess
def test_every_fault_is_a_line_on_every_host(tmp_path):
    """Process 1 has another JAX and another folder; 2 has a wrong clock, and may not write."""
    other = tmp_path / "other"
    other.mkdir()
    facts = {**WELL["facts"], "folder": "/shared"}
    faults = [
        {"facts": facts},
        {"facts": {**facts, "jax": "0.9.9", "devices": 1}},
        {"facts": facts, "clock": 300, "read_only": True},
    ]
    codes, said = doctor(tmp_path, faults, [tmp_path, other, tmp_path])
    assert codes == [1, 1, 1], said
    assert said[0] == said[1] == said[2]
    found = [line for line in said[0].splitlines() if line.startswith("! ")]
    host = socket.gethostname()
    expected = [
        f"! jax is 0.9.9 on process 1 ({host}), ",
        f"! process 1 ({host}) has 1 × cpu, the others 2 × cpu: ",
        f"! the clock of process 2 ({host}) is 300 s ahead of that of process 0: ",
        f"! process 2 ({host}) cannot write to /shared (Read-only file system): ",
        f"! process 0 ({host}) does not see in /shared what process 1 ({host}) wrote there: ",
        f"! process 1 ({host}) does not see in /shared what process 0 ({host}) wrote there: ",
        f"! process 2 ({host}) does not see in /shared what process 1 ({host}) wrote there: ",
    ]
    assert len(found) == len(expected), said[0]
    for line, begin in zip(found, expected, strict=True):
        assert line.startswith(begin)
    assert [path.name for path in other.iterdir()] == []


@pytest.mark.multiprocess
def test_a_host_that_does_not_come_is_named_and_the_others_are_examined(tmp_path):
    well, faulty = ({"facts": {**WELL["facts"], **more}, "come": 2} for more in
                    ({}, {"python": "3.0.1"}))  # fmt: skip
    codes, said = doctor(tmp_path, [well, faulty], [tmp_path] * 2, count=3, timeout=20)
    assert codes == [1, 1], said
    for text in said:
        assert "! process 2 did not come to localhost:" in text and "within 20 s" in text
        assert "python is 3.0.1 on process 1" in text


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(meeting, "_TRY_SECONDS", 0.3)


def test_a_wrong_port(quick):
    address = f"localhost:{free_port()}"
    with pytest.raises(UserError, match=f"nobody listens at {address}, .* check --coordinator"):
        examine(address, 1, 2, timeout=0.1)


def test_a_firewall_that_swallows_everything(quick):
    """The queue of the port is full, so that the system answers no more."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(3)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(address)
        with pytest.raises(UserError, match="gave no answer .a firewall"):
            examine(f"127.0.0.1:{address[1]}", 1, 2, timeout=0.1)
        for each in waiting:
            each.close()


def test_an_unknown_host(quick):
    with pytest.raises(UserError, match="no such host was found"):
        examine("no-such-host.invalid:1234", 1, 2, timeout=0.1)


def test_a_port_that_another_program_has(quick):
    with socket.create_server(("localhost", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen at port {port}: Address already in"):
            examine(f"localhost:{port}", 0, 2, timeout=0.1)


@pytest.mark.parametrize(
    "hello, message",
    [
        ({"process": 0}, "came as process 0, which is there already"),
        ({"process": 2}, "came as process 2, which is there already"),
        ({"of": 4}, "process 1 .host-b. was started with --num-processes=4, process 0 with 2"),
        ({"fct_jax": "link"}, "host-b started a run where `doctor cluster` is at work"),
    ],
)
def test_who_does_not_belong_is_refused_and_told(hello, message):
    address = f"localhost:{free_port()}"
    answers = []

    def stranger():
        while True:
            with contextlib.suppress(OSError):
                line = meeting.Line(socket.create_connection(meeting.split(address)))
                break
        line.send({"fct_jax": "doctor", "process": 1, "of": 2, "host": "host-b", **hello})
        answers.append(line.receive())
        line.close()
        meeting._greeted(meeting.Place(address, 1, 2)).close()  # who belongs comes after it

    thread = threading.Thread(target=stranger)
    thread.start()
    members, faults = meeting.gather(meeting.Place(address, 0, 2), None, LONG)
    thread.join(LONG)
    members[1].tell(None)
    assert len(members) == 2 and len(faults) == 1
    assert re.search(message, faults[0])
    assert answers == [{"refused": faults[0]}]


def test_a_silent_program_does_not_keep_the_others_out(monkeypatch):
    """It was there first, and says nothing."""
    monkeypatch.setattr(meeting, "_HELLO_SECONDS", 0.2)
    place = meeting.Place(f"localhost:{free_port()}", 0, 2)
    found = []
    gathering = threading.Thread(
        target=lambda: found.append(meeting.gather(place, None, LONG)), daemon=True
    )
    gathering.start()
    silent = None
    while silent is None:
        with contextlib.suppress(OSError):
            silent = socket.create_connection(meeting.split(place.coordinator))
    with silent, contextlib.closing(meeting._greeted(place._replace(process_id=1))):
        gathering.join(LONG)
        members, faults = found[0]
    assert [member.process for member in members] == [0, 1] and faults == []
    members[1].tell(None)


def test_who_comes_early_waits_for_the_others(monkeypatch):
    """Process 0 asks nothing until all are there, however long that takes."""
    monkeypatch.setattr(meeting, "ASK_SECONDS", 0.1)
    place, found = meeting.Place(f"localhost:{free_port()}", 1, 3), []

    def late():
        time.sleep(0.5)
        meeting._connected(place._replace(process_id=2), LONG).close()

    early = lambda: found.append(meeting.join(place, None, LONG))  # noqa: E731
    threads = [threading.Thread(target=each) for each in (early, late)]
    for thread in threads:
        thread.start()
    members, _ = meeting.gather(place._replace(process_id=0), None, LONG)
    for member in members:
        member.tell("all are here")
    for thread in threads:
        thread.join(LONG)
    assert found == ["all are here"]


def test_options_of_the_other_examination(capsys):
    assert cli.main(["doctor", "cluster", "--sample", "3"]) == 1
    assert "--sample is for vectors" in capsys.readouterr().err
    assert cli.main(["doctor", "a.npy", "--process-id", "3"]) == 1
    assert "--process-id is for `fct-jax doctor cluster`" in capsys.readouterr().err
    assert cli.main(["doctor", "cluster", "--process-id", "3"]) == 1
    assert "missing: --coordinator, --num_processes" in capsys.readouterr().err
