"""A table of checks, which tell from the answers of all processes what is wrong with a cluster.

A new check is a function of `Answers` that returns faults, and a row of `CHECKS`. A fault is one
line: what is wrong, where, and what to do.
"""

import ipaddress
from collections import Counter
from typing import NamedTuple

CLOCK_SECONDS = 5.0  # largest difference that does no harm
_MUST_AGREE = {  # fact -> what to do
    "python": "install the same Python",
    "jax": "install the same jax on all hosts",
    "jaxlib": "install the same jaxlib on all hosts",
    "libtpu": "install the same libtpu on all hosts",
    "fct_jax": "install the same fct_jax on all hosts",
    "code": "check out the same commit on all hosts",
    "config": "give all hosts the same config file",
    "XLA_FLAGS": "set the same XLA_FLAGS on all hosts",
    "LIBTPU_INIT_ARGS": "set the same LIBTPU_INIT_ARGS on all hosts",
    "folder": "give all hosts the same --folder",
}


class Answers(NamedTuple):
    """The answers of the processes that came, by process.

    Attributes:
      count: number of processes that there should be.
      addresses: the address at which process 0 sees each; its own as all know it.
      coordinator, waited: HOST:PORT of process 0, and the seconds for which it waited.
      facts: results of `Actions.facts`.
      clocks: (offset to process 0's clock, by how much that may be wrong), in seconds.
      unreached: {(from, to): why} of processes that cannot be reached.
      unwritten: {process: why} of processes that cannot write to the shared folder.
      unseen: {process: the processes whose files it does not see}.
      silent: {process: why} of processes that stopped answering.
    """

    count: int
    addresses: dict[int, str]
    coordinator: str
    waited: float
    facts: dict[int, dict]
    clocks: dict[int, tuple[float, float]]
    unreached: dict[tuple[int, int], str]
    unwritten: dict[int, str]
    unseen: dict[int, list[int]]
    silent: dict[int, str]

    def name(self, process: int) -> str:
        """Return ``process 3 (host-17)``."""
        host = self.facts.get(process, {}).get("host")
        return f"process {process} ({host})" if host else f"process {process}"

    def names(self, processes) -> str:
        """Return the names of some processes; of many, the first few."""
        first = ", ".join(self.name(process) for process in sorted(processes)[:4])
        return first + (f" and {len(processes) - 4} more" if len(processes) > 4 else "")


def _missing(answers: Answers) -> list[str]:
    absent = sorted(set(range(answers.count)) - set(answers.facts) - set(answers.silent))
    return [
        f"process {process} did not come to {answers.coordinator} within {answers.waited:.0f} s: "
        "run this command there too; if it runs, its own output says what keeps it away"
        for process in absent
    ]


def _silent(answers: Answers) -> list[str]:
    return [
        f"{answers.name(process)} came, but stopped answering ({why}): look at its own output"
        for process, why in sorted(answers.silent.items())
    ]


def _versions(answers: Answers) -> list[str]:
    faults = []
    for fact, remedy in _MUST_AGREE.items():
        found = {process: facts.get(fact, "") for process, facts in answers.facts.items()}
        usual = Counter(found.values()).most_common(1)[0][0]
        for value in sorted(set(found.values()) - {usual}):
            those = [process for process, own in found.items() if own == value]
            faults.append(
                f"{fact} is {value or 'not there'} on {answers.names(those)}, "
                f"{usual or 'not there'} on the others: {remedy}"
            )
    return faults


def _devices(answers: Answers) -> list[str]:
    faults = [
        f"{answers.name(process)} has no devices ({facts['kind']}): end the program that holds "
        "them, or install JAX for them"
        for process, facts in answers.facts.items()
        if not facts["devices"]
    ]
    found = {p: (f["devices"], f["kind"]) for p, f in answers.facts.items() if f["devices"]}
    if not found:
        return faults
    usual = Counter(found.values()).most_common(1)[0][0]
    for process, (devices, kind) in found.items():
        if (devices, kind) != usual:
            faults.append(
                f"{answers.name(process)} has {devices} × {kind}, the others {usual[0]} × "
                f"{usual[1]}: see what holds or hides the rest (lsof /dev/accel* /dev/vfio/*, "
                "JAX_PLATFORMS, CUDA_VISIBLE_DEVICES)"
            )
    return faults


def _clocks(answers: Answers) -> list[str]:
    faults = []
    for process, (offset, uncertain) in answers.clocks.items():
        if abs(offset) - uncertain > CLOCK_SECONDS:
            way = "ahead of" if offset > 0 else "behind"
            faults.append(
                f"the clock of {answers.name(process)} is {abs(offset):.0f} s {way} that of "
                "process 0: synchronise it (chronyc makestep, or start systemd-timesyncd)"
            )
    return faults


def _names(answers: Answers) -> list[str]:
    """Return hosts that would tell the others to call them at a loopback address."""
    if all(map(_is_loopback, answers.addresses.values())):
        return []  # all on one machine
    return [
        f"on {answers.name(process)} its own name stands for {facts['own_address'] or 'nothing'}, "
        "where the exchanges of CPUs would call it: give the name "
        f"{answers.addresses[process]} in its /etc/hosts"
        for process, facts in answers.facts.items()
        if facts["kind"] == "cpu" and _is_loopback(facts["own_address"])
    ]


def _is_loopback(address: str) -> bool:
    return not address or ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _network(answers: Answers) -> list[str]:
    return [
        f"{answers.name(one)} cannot reach {answers.name(other)} ({why}): open all ports between "
        "the hosts, which the devices' exchanges need too"
        for (one, other), why in sorted(answers.unreached.items())
    ]


def _folder(answers: Answers) -> list[str]:
    faults = [
        f"{answers.name(process)} cannot write to {answers.facts[process]['folder']} ({why}): "
        "make it, or mount it so that this user may write"
        for process, why in sorted(answers.unwritten.items())
    ]
    for process, others in sorted(answers.unseen.items()):
        faults.append(
            f"{answers.name(process)} does not see in {answers.facts[process]['folder']} what "
            f"{answers.names(others)} wrote there: mount the same file system on all hosts"
        )
    return faults


CHECKS = {
    "hosts": _missing,
    "answers": _silent,
    "versions": _versions,
    "devices": _devices,
    "clocks": _clocks,
    "names": _names,
    "network": _network,
    "shared folder": _folder,
}


def faults_of(answers: Answers) -> list[str]:
    """Return all faults, in the order in which they are best mended."""
    return [fault for check in CHECKS.values() for fault in check(answers)]
