"""``fct-jax rollback``."""

from fct_jax.cli import DONE

FUNCTION = "fct_jax.upgrade.migration.upgrade:Upgrade.rollback"
EXAMPLE = """
Take an upgrade back to the end of an earlier batch: items of later batches get their translated
vectors again. `fct-jax apply` resumes from there. For a store, without --to its readers are sent
back, as by `fct-jax switch UPGRADE --back`.

  fct-jax rollback upgrade --to 2
"""


def add_arguments(parser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("upgrade", metavar="UPGRADE", help="directory of the upgrade")
    parser.add_argument("--to", type=int, help="number of the last batch to keep; 0: no item stays "
                        "re-embedded")  # fmt: skip


def run(arguments):
    """Roll back, and return (result, exit code)."""
    from fct_jax.upgrade import Upgrade

    left = Upgrade(arguments.upgrade).rollback(getattr(arguments, "to", None))
    return {"reembedded": left}, DONE
