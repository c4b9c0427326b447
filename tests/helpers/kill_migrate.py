"""Runs a migration that kills itself (signal 9) at its n-th step: a write, a deletion or a record.

    python tests/helpers/kill_migrate.py URI JOURNAL STEP

At an even step it dies before the step is done, at an odd one after it. STEP 0 runs to the end.
"""

import sys

from killing import Fuse
from store_apps import NEW, plain_map

from fct_jax.upgrade.migration.journal import Journal
from fct_jax.upgrade.stores import open_store
from fct_jax.upgrade.stores.migrate import migrate


def main(uri: str, journal: str, moment: int) -> None:
    """Migrate, or die on the way."""
    store, fuse = open_store(uri), Fuse(moment)
    target = store.sibling(NEW, {"fingerprint": "killed"})
    fuse.on_methods(target, "write", "delete", "build_index")
    fuse.on_methods(Journal, "append")
    now = migrate(store, target, plain_map, journal, limit=100)
    print(now["store"], now["generation"])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
