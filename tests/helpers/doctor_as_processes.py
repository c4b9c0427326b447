"""Runs ``fct-jax doctor`` on a host with a fault; tests/cluster/test_doctor_cluster.py does so.

Usage: doctor_as_processes.py FAULTS WORD …, with FAULTS {"facts": {…}, "clock": seconds,
"read_only": true} in JSON; {} for a host without faults, whose devices are still looked for.
"""

import errno
import json
import sys
from pathlib import Path

from fct_jax import cli
from fct_jax.cluster import examination
from fct_jax.cluster.actions import Actions


def make(facts=None, clock=0.0, read_only=False) -> None:
    """Make this host report other facts and another time, and refuse to write."""
    examination._SEE_SECONDS = 1.0  # what is not seen here never will be
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


if __name__ == "__main__":
    make(**json.loads(sys.argv[1]))
    sys.exit(cli.main(["doctor", *sys.argv[2:]]))
