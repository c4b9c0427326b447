"""Runs ``fct-jax doctor`` on a host with a fault; tests/cluster/test_doctor_cluster.py does so.

Usage: doctor_as_processes.py FAULTS WORD …, with FAULTS {"facts": {…}, "clock": seconds,
"read_only": true, "come": number} in JSON; {} for a host without faults, whose devices are still
looked for. With "come", the time to wait for the others is over once so many have come, and not
before.
"""

import errno
import json
import sys
import time
import types
from pathlib import Path

from patience import LONG

from fct_jax import cli
from fct_jax.cluster import actions, examination, meeting
from fct_jax.cluster.actions import Actions


def make(facts=None, clock=0.0, read_only=False, come=0) -> None:
    """Make this host report other facts and another time, and refuse to write."""
    actions.DEVICE_SECONDS = meeting.ASK_SECONDS = LONG
    examination._SEE_SECONDS = 1.0  # what is not seen here never will be
    if come:
        pass_time_when(come)
    tell, now, mkdir = Actions.facts, Actions.clock, Path.mkdir
    Actions.facts = lambda self: {**tell(self), **(facts or {})}
    Actions.clock = lambda self: now(self) + clock
    if facts and "devices" in facts:
        Actions._found_devices = lambda self: {}

    def refuse(path, *arguments, **keywords):
        if read_only and "doctor" in path.name:
            raise OSError(errno.EROFS, "Read-only file system")
        mkdir(path, *arguments, **keywords)

    Path.mkdir = refuse


def pass_time_when(come: int) -> None:
    """Let the clock of the meeting jump once so many processes are there, and stand until then."""
    here, welcome = [0], meeting._come

    def counting(line, place, members):
        member, refusal = welcome(line, place, members)
        here[0] = len(members) + (member is not None)
        return member, refusal

    def monotonic():
        return 1e6 if here[0] >= come else 0.0

    meeting._come = counting
    meeting.time = types.SimpleNamespace(sleep=time.sleep, monotonic=monotonic)


if __name__ == "__main__":
    make(**json.loads(sys.argv[1]))
    sys.exit(cli.main(["doctor", *sys.argv[2:]]))
