"""``fct-jax status``."""

import dataclasses

from fct_jax.cli import DONE

FUNCTION = "fct_jax.upgrade.migration.upgrade:Upgrade.status"
EXAMPLE = """
Show how far an upgrade has come; it may be under way meanwhile. Of a store: also its counts, where
the pointer sends readers, and the recall of the indexes against exact search.

  fct-jax status upgrade
"""


def add_arguments(parser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("upgrade", metavar="UPGRADE", help="directory of the upgrade")
    parser.add_argument("--recall-queries", type=int, help="of a store: items by which the recall "
                        "of its indexes is measured; 0: it is not")  # fmt: skip
    parser.add_argument("--probe", help="measure quality by another folder of queries")


def run(arguments):
    """Show the status, and return (result, exit code)."""
    from fct_jax.upgrade import Upgrade

    given = vars(arguments)
    found = Upgrade(given.pop("upgrade")).status(**given)
    print(found)
    return dataclasses.asdict(found), DONE
