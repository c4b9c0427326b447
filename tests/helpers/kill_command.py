"""Runs a command on a store, which kills itself (signal 9) at its n-th step.

    python tests/helpers/kill_command.py STEP WORDS…

A step is a write, a deletion, building an index, a record of the journal, or a change of the
pointer. An even step dies before it is done, an odd one after. STEP 0 runs to the end.
"""

import sys

from kill_migrate import dying

from fct_jax import cli
from fct_jax.runtime.plugins import imported
from fct_jax.upgrade.migration.journal import Journal
from fct_jax.upgrade.stores import STORES
from fct_jax.upgrade.stores.pointer import Pointer


def main(moment: int, words: list[str]) -> int:
    """Run the command, or die on the way."""
    left, scheme = [moment or -1], words[0].partition("://")[0]
    kind = imported(STORES[scheme].opener)
    for owner, name in (
        (kind, "write"),
        (kind, "delete"),
        (kind, "build_index"),
        (Journal, "append"),
        (Pointer, "switch"),
    ):
        setattr(owner, name, dying(getattr(owner, name), left, moment))
    return cli.main(words[1:])


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
