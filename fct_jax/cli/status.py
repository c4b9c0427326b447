"""``fct-jax status``."""

import dataclasses

from fct_jax.cli import DONE

FUNCTION = "fct_jax.upgrade.migration.upgrade:Upgrade.status"
EXAMPLE = """
Show how far an upgrade is; `fct-jax apply` may be running meanwhile. For a store, also show its
counts, where the pointer sends readers, and the recall of the indexes against exact search.

  fct-jax status upgrade
"""


def add_arguments(parser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("upgrade", metavar="UPGRADE", help="directory of the upgrade")
    parser.add_argument("--recall-queries", type=int, help="for a store: number of items with "
                        "which the recall of its indexes is measured; 0: not measured")  # fmt: skip
    parser.add_argument("--probe", help="folder of other queries for measuring quality")


def run(arguments):
    """Show the status, and return (result, exit code)."""
    from fct_jax.upgrade import Upgrade

    given = vars(arguments)
    found = Upgrade(given.pop("upgrade")).status(**given)
    print(found)
    return dataclasses.asdict(found), DONE
