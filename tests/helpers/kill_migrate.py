"""Runs a migration that kills itself (signal 9) at its n-th step: a write, a deletion or a record.

    python tests/helpers/kill_migrate.py URI JOURNAL STEP

An even step dies before it is done, an odd one after. STEP 0 runs to the end.
"""

import os
import signal
import sys

from store_apps import NEW, plain_map

from fct_jax.upgrade.migration.journal import Journal
from fct_jax.upgrade.stores import open_store
from fct_jax.upgrade.stores.migrate import migrate


def dying(function, left: list, moment: int):
    """The function, which kills the process at its turn."""

    def step(*arguments, **keywords):
        left[0] -= 1
        if left[0] == 0 and moment % 2 == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        found = function(*arguments, **keywords)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    return step


def main(uri: str, journal: str, moment: int) -> None:
    """Migrate, or die on the way."""
    store, left = open_store(uri), [moment or -1]
    target = store.sibling(NEW, {"fingerprint": "killed"})
    for name in ("write", "delete", "build_index"):
        setattr(target, name, dying(getattr(target, name), left, moment))
    Journal.append = dying(Journal.append, left, moment)
    now = migrate(store, target, plain_map, journal, limit=100)
    print(now["store"], now["generation"])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
