"""Each fault of a cluster is one line, and a cluster without faults has none."""

import socket
from contextlib import closing

import pytest

from fct_jax.cluster import actions, examination
from fct_jax.cluster.actions import Actions, call
from fct_jax.cluster.checks import Answers, faults_of
from fct_jax.cluster.examination import Examination

FACTS = {name: "1" for name in ("python", "jax", "jaxlib", "libtpu", "fct_jax", "code", "config")}
FACTS |= {"XLA_FLAGS": "", "LIBTPU_INIT_ARGS": "", "folder": "/f", "devices": 4, "kind": "TPU v4"}
FACTS |= {"own_address": "10.0.0.1"}


def answers(changes=None, **more) -> Answers:
    """Return the answers of three hosts without a fault, with changed facts of some."""
    facts = {i: {**FACTS, "host": "abc"[i], **(changes or {}).get(i, {})} for i in range(3)}
    well = Answers(
        3,
        {0: "10.0.0.1", 1: "::2", 2: "10.0.0.3"},
        "h:1",
        30,
        facts,
        {1: (0.1, 0.01)},
        {},
        {},
        {},
        {},
    )
    return well._replace(**more)


def test_no_faults():
    assert faults_of(answers()) == []


@pytest.mark.parametrize(
    "given, fault",
    [
        (answers({1: {"jaxlib": "2"}}), "jaxlib is 2 on process 1 (b), 1 on the others: install"),
        (answers({2: {"libtpu": ""}}), "libtpu is not there on process 2 (c), 1 on the others:"),
        (answers({0: {"code": "f"}}), "code is f on process 0 (a), 1 on the others: check out"),
        (answers({1: {"devices": 3}}), "process 1 (b) has 3 × TPU v4, the others 4 × TPU v4: see"),
        (answers({1: {"kind": "cpu"}}), "process 1 (b) has 4 × cpu, the others 4 × TPU v4: see"),
        (
            answers({1: {"devices": 0, "kind": "no chip"}}),
            "process 1 (b) has no devices (no chip):",
        ),
        (answers(count=4), "process 3 did not come to h:1 within 30 s: run"),
        (
            answers(silent={1: "timed out"}),
            "process 1 (b) came, but stopped answering (timed out):",
        ),
        (answers(clocks={2: (-6.2, 0.5)}), "the clock of process 2 (c) is 6 s behind that of"),
        (
            answers(unreached={(1, 2): "no answer"}),
            "process 1 (b) cannot reach process 2 (c) (no answer): open all ports",
        ),
        (answers(unwritten={1: "full"}), "process 1 (b) cannot write to /f (full): make it"),
        (
            answers(unseen={1: [0, 2]}),
            "process 1 (b) does not see in /f what process 0 (a), process 2 (c) wrote there: mount",
        ),
    ],
)
def test_each_fault_is_one_line(given, fault):
    (found,) = faults_of(given)
    assert found.startswith(fault) and "\n" not in found


def test_names_that_stand_for_loopback_matter_on_cpus_of_several_machines():
    own = {0: "10.0.0.1", 1: "127.0.1.1", 2: "fe80::1%eth0"}
    cpus = answers({i: {"kind": "cpu", "own_address": own[i]} for i in range(3)})
    (found,) = faults_of(cpus)
    assert found.startswith("on process 1 (b) its own name stands for 127.0.1.1, where")
    assert "give the name ::2 in its /etc/hosts" in found
    assert faults_of(cpus._replace(addresses={0: "127.0.1.1", 1: "127.0.0.1"})) == []


@pytest.mark.parametrize("offset, uncertain", [(4.9, 0), (-60.0, 56.0)])
def test_a_clock_that_may_be_right_is_no_fault(offset, uncertain):
    assert faults_of(answers(clocks={1: (offset, uncertain)})) == []


def test_two_that_differ_are_told_by_process_0():
    two = answers({1: {"jax": "2"}})
    del two.facts[2]
    (found,) = faults_of(two._replace(count=2))
    assert found.startswith("jax is 2 on process 1 (b), 1 on the others")


def test_many_names_are_cut():
    facts = {i: {**FACTS, "host": "h"} for i in range(10)}
    many = answers(count=10, facts=facts, unseen={0: list(range(1, 10))})
    assert "process 4 (h) and 5 more wrote there" in faults_of(many)[0]


def test_the_quickest_round_tells_the_clock(monkeypatch):
    """A host 300 s ahead whose first answers are slow on one way."""
    now = [1000.0]
    delays = iter([(0.1, 0.9), (0.01, 0.01), (0.5, 0.1), (0.2, 0.0), (0.3, 0.3)])
    monkeypatch.setattr(examination.time, "time", lambda: now[0])
    monkeypatch.setattr(examination.time, "monotonic", lambda: now[0])

    class Member:
        def ask(self, name):
            there, back = next(delays)
            now[0] += there
            found = now[0] + 300
            now[0] += back
            return found

    offset, uncertain = examination._clock_offset(Member())
    assert offset == pytest.approx(300) and uncertain == pytest.approx(0.01)


def test_each_process_tries_the_next_ones(monkeypatch):
    monkeypatch.setattr(examination, "_NEIGHBOURS", 2)
    hosts, ports = dict.fromkeys(range(4), "h"), dict.fromkeys(range(4), 1)
    tried = {i: list(examination._to_reach(i, hosts, ports)) for i in range(4)}
    assert tried == {0: ["1", "2"], 1: ["2", "3"], 2: ["3", "0"], 3: ["0", "1"]}


@pytest.fixture
def host(monkeypatch, tmp_path):
    monkeypatch.setattr(actions, "_PROBE", "print('[3, \"cpu\"]')")
    with closing(Actions(tmp_path, None)) as made:
        yield made


def test_devices_that_do_not_answer_or_cannot_be_found(host, monkeypatch):
    assert host.facts()["devices"] == 3
    for probe, kind in (
        ("import time; time.sleep(600)", "no answer within 0.2 s"),
        ("raise RuntimeError('no TPU')", "RuntimeError: no TPU"),
    ):
        monkeypatch.setattr(actions, "_PROBE", probe)
        monkeypatch.setattr(actions, "DEVICE_SECONDS", 0.2 if "sleep" in probe else 600)
        with closing(Actions(None, None)) as made:
            assert made._found_devices() == {"devices": 0, "kind": kind}


def test_ports_are_tried(host):
    port = host.open_port()
    with socket.socket() as closed:
        closed.bind(("localhost", 0))
        shut = closed.getsockname()[1]
        found = host.reach({"1": ["localhost", port], "2": ["localhost", shut]})
    assert found == {"1": "", "2": "Connection refused"}


def test_a_folder_that_is_not_there(host):
    host._folder /= "missing"
    assert host.write("t", 1) == "there is no such folder"


def test_only_actions_can_be_called(host):
    assert call(host, "clock", []) > 0
    for name in ("close", "_marks", "something of a later version"):
        with pytest.raises(AttributeError):
            call(host, name, [])


def test_the_table_has_a_row_for_each_process():
    row = {**FACTS, "process": 1, "host": "b", "address": "10.0.0.2", "clock": -0.26}
    table = Examination([row, {**row, "devices": 0, "clock": None}], [], []).table()
    assert table.rows[0] == ["1", "b", "10.0.0.2", "4 × TPU v4", "1", "1", "1", "-0.3 s"]
    assert table.rows[1][3] == "none" and table.rows[1][-1] == ""
