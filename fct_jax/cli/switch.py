"""``fct-jax switch``."""

from fct_jax.cli import DONE

FUNCTION = "fct_jax.upgrade.migration.upgrade:Upgrade.switch"
EXAMPLE = """
Send the readers of a store to the upgraded one. Rows that the application has written since are
brought over until none is left, a sample is checked, the pointer {store, model, calibration,
generation} is switched unless somebody else has switched it, and a last pass follows.

  fct-jax switch upgrade
  fct-jax switch upgrade --back        # readers follow the old store again
"""


def add_arguments(parser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("upgrade", metavar="UPGRADE", help="directory of the upgrade")
    parser.add_argument("--back", action="store_true", help="send readers back to where they were")
    parser.add_argument("--leave", action="store_true", help="go back even if the old store lacks "
                        "rows that the application wrote to the new one")  # fmt: skip
    parser.add_argument("--calibration", help="folder of a calibration, which readers find in the "
                        "pointer, for searches of a half-migrated store")  # fmt: skip


def run(arguments):
    """Switch, and return (result, exit code)."""
    from fct_jax.upgrade import Upgrade

    given = vars(arguments)
    return Upgrade(given.pop("upgrade")).switch(**given), DONE
