"""Runs a command on a store that kills itself (signal 9) at its n-th step.

    python tests/helpers/kill_command.py STEP WORDS…

A step is a write, a deletion, building an index, a record of the journal, or a change of the
pointer. At an even step the process dies before the step is done, at an odd one after it. STEP 0
runs to the end.
"""

import sys

from killing import Fuse

from fct_jax import cli
from fct_jax.runtime.plugins import imported
from fct_jax.upgrade.migration.journal import Journal
from fct_jax.upgrade.stores import STORES
from fct_jax.upgrade.stores.pointer import Pointer


def main(moment: int, words: list[str]) -> int:
    """Run the command, or die on the way."""
    fuse, scheme = Fuse(moment), words[0].partition("://")[0]
    fuse.on_methods(imported(STORES[scheme].opener), "write", "delete", "build_index")
    fuse.on_methods(Journal, "append")
    fuse.on_methods(Pointer, "switch")
    return cli.main(words[1:])


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
