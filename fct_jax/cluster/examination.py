"""The examination of a cluster, which every process runs at the same time."""

import contextlib
import secrets
import time
from pathlib import Path
from typing import NamedTuple

from fct_jax.cluster import meeting
from fct_jax.cluster.actions import Actions, address_of
from fct_jax.cluster.checks import Answers, faults_of
from fct_jax.runtime import processes
from fct_jax.runtime.config_files import find_config
from fct_jax.runtime.tables import Table

WAIT_SECONDS = 30.0
_SEE_SECONDS = 10.0  # network file systems show new files late
_CLOCK_ROUNDS = 5
_NEIGHBOURS = 16  # processes that each one tries to reach; of fewer, all


class Examination(NamedTuple):
    """The findings, which are the same on every process.

    Attributes:
      processes: a row of facts for each process that came, with its "clock" offset in seconds.
      faults: one line each; none if the cluster is ready.
      unchecked: what was not checked, and the option that it needs.
    """

    processes: list[dict]
    faults: list[str]
    unchecked: list[str]

    def table(self) -> Table:
        """Return the facts as a table, a row for each process."""
        columns = ("process", "host", "address", "devices", "jax", "fct_jax", "code", "clock")
        rows = [
            [
                str(each["process"]),
                each["host"],
                each["address"],
                f"{each['devices']} × {each['kind']}" if each["devices"] else "none",
                each["jax"],
                each["fct_jax"],
                each["code"],
                "" if each["clock"] is None else f"{each['clock']:+.1f} s",
            ]
            for each in self.processes
        ]
        return Table("Processes", columns, rows, text=(1, 2, 3))


def examine(
    coordinator: str | None = None,
    process_id: int | None = None,
    num_processes: int | None = None,
    folder: str | None = None,
    config: str | None = None,
    timeout: float = WAIT_SECONDS,
) -> Examination:
    """Examine the cluster together with the other processes, which make the same call.

    Args:
      coordinator: ``HOST:PORT`` of process 0, as the run will use it.
      process_id: number of this process, from 0.
      num_processes: number of processes. Give all three or none; with none, Cloud TPU, SLURM, GKE
        or Open MPI provide them.
      folder: the folder of the run, which all hosts must share; None: it is not checked.
      config: the run's config, a file or the name of a packaged one; None: it is not compared.
      timeout: seconds to wait for the other processes.

    Raises:
      UserError: arguments that do not fit together, no cluster found, or process 0 cannot be
        reached; the message says which, and what to do.

    Example:
      >>> found = examine("localhost:0", 0, 1)
      >>> found.faults
      []
    """
    place, local_devices = processes.given(coordinator, process_id, num_processes), None
    if place is None:
        place, local_devices = processes.discover(timeout=timeout)
    shared = Path(folder).absolute() if folder else None
    file = Path(find_config(config)) if config else None
    with contextlib.closing(Actions(shared, file, local_devices)) as actions:
        if place.process_id:
            return Examination(*meeting.join(place, actions, timeout))
        members, faults = meeting.gather(place, actions, timeout)
        found = Examination([], [*faults, "process 0 did not finish: look at its output"], [])
        try:
            answers = _asked(members, place, timeout, with_folder=shared is not None)
            unchecked = [] if shared else ["the shared folder (--folder)"]
            unchecked += [] if file else ["the config (--config)"]
            found = Examination(_rows(members, answers), faults + faults_of(answers), unchecked)
        finally:
            for member in members:
                member.tell(found)
        return found


def _asked(members, place, timeout: float, with_folder: bool) -> Answers:
    silent: dict[int, str] = {}

    def ask(name: str, arguments_of=lambda member: ()) -> dict:
        """Ask all who still answer."""
        those = [member for member in members if member.process not in silent]
        answers, failures = meeting.ask_all(those, name, arguments_of)
        silent.update(failures)
        return dict(sorted(answers.items()))

    facts = ask("facts")
    clocks = {}
    for member in members:
        if member.process and member.process not in silent:
            try:
                clocks[member.process] = _clock_offset(member)
            except OSError as error:
                silent[member.process] = str(error)
    ports = ask("open_port")
    hosts = {member.process: member.host for member in members}
    reached = ask("reach", lambda member: [_to_reach(member.process, hosts, ports)])
    unreached = {
        (one, int(other)): why
        for one, answers in reached.items()
        for other, why in answers.items()
        if why
    }
    unwritten, unseen = _folder_seen(ask) if with_folder else ({}, {})
    return Answers(
        place.num_processes,
        {process: address_of(host) for process, host in hosts.items()},
        place.coordinator,
        timeout,
        facts,
        clocks,
        unreached,
        unwritten,
        unseen,
        silent,
    )


def _clock_offset(member) -> tuple[float, float]:
    """Return (offset to this clock, by how much it may be wrong) from the quickest of some rounds.

    This is NTP's way: https://www.rfc-editor.org/rfc/rfc5905, section 8.
    """
    best = None
    for _ in range(_CLOCK_ROUNDS):
        begun, sent = time.time(), time.monotonic()
        there = member.ask("clock")
        took = time.monotonic() - sent
        if best is None or took / 2 < best[1]:
            best = there - begun - took / 2, took / 2
    return best


def _to_reach(process: int, hosts: dict[int, str], ports: dict[int, int]) -> dict[str, list]:
    """Return the addresses that a process tries: those of the next ones, in a ring."""
    others = sorted(ports, key=lambda other: (other <= process, other))
    others.remove(process)
    return {str(other): [hosts[other], ports[other]] for other in others[:_NEIGHBOURS]}


def _folder_seen(ask) -> tuple[dict[int, str], dict[int, list[int]]]:
    """Return (who cannot write, and why; who does not see whose files)."""
    token = secrets.token_hex(4)
    answers = ask("write", lambda member: [token, member.process])
    unwritten = {process: why for process, why in answers.items() if why}
    writers = sorted(set(answers) - set(unwritten))
    seen = ask("see", lambda member: [token, writers, _SEE_SECONDS])
    ask("remove", lambda member: [token, member.process])
    unseen = {process: sorted(set(writers) - set(own)) for process, own in seen.items()}
    return unwritten, {process: others for process, others in unseen.items() if others}


def _rows(members, answers: Answers) -> list[dict]:
    rows = []
    for member in members:
        if member.process in answers.facts:
            clock = answers.clocks.get(member.process, (0.0 if not member.process else None, 0))
            rows.append(
                {
                    "process": member.process,
                    "address": member.host,
                    "clock": clock[0],
                    **answers.facts[member.process],
                }
            )
    return rows
