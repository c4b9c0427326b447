"""``fct-jax rollback``."""

from fct_jax.cli import DONE

FUNCTION = "fct_jax.upgrade.migration.upgrade:Upgrade.rollback"
EXAMPLE = """
Take an upgrade back to the end of an earlier batch: items of later batches get their translated
vectors again. `fct-jax apply` goes on from there.

  fct-jax rollback upgrade --to 2
"""


def add_arguments(parser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("upgrade", metavar="UPGRADE", help="directory of the upgrade")
    parser.add_argument("--to", type=int, required=True, help="number of a batch; 0: nothing stays "
                        "re-embedded")  # fmt: skip


def run(arguments):
    """Roll back, and return (result, exit code)."""
    from fct_jax.upgrade import Upgrade

    left = Upgrade(arguments.upgrade).rollback(arguments.to)
    return {"reembedded": left}, DONE
