"""Upgrade a gallery of vectors from one embedding model to another.

  python -m fct_jax.upgrade fit      learn a map from old to new vectors on a sample of pairs
  python -m fct_jax.upgrade assess   what each way of upgrading would gain and cost
  python -m fct_jax.upgrade plan     which items to re-embed, in which order, within a budget
  python -m fct_jax.upgrade apply    translate the gallery, then take re-embedded vectors
  python -m fct_jax.upgrade status   how far an upgrade has come
  python -m fct_jax.upgrade rollback go back to an earlier batch

Each takes --config configs/upgrade.py --workdir DIR and any key of the config,
--config.old=DIR say; fct_jax/upgrade_config.py explains all of them, docs/upgrade.md leads through.
"""

import importlib
import sys

from absl import flags
from ml_collections import config_flags

from fct_jax.errors import UserError, unknown
from fct_jax.runtime import command_line as cli

# Subcommand -> (module, function taking the config and the work directory).
COMMANDS = {
    "fit": ("maps.fitting", "fit_command"),
    "assess": ("assessment.assessing", "assess_command"),
    "plan": ("migration.config_commands", "plan_command"),
    "apply": ("migration.config_commands", "apply_command"),
    "status": ("migration.config_commands", "status_command"),
    "rollback": ("migration.config_commands", "rollback_command"),
}

_CONFIG = config_flags.DEFINE_config_file("config", None, "config file; see configs/")
_WORKDIR = flags.DEFINE_string("workdir", None, "directory that the subcommand makes or works in")
flags.mark_flags_as_required(["config", "workdir"])


def _subcommand(argv: list[str]) -> str | None:
    """Takes the subcommand off the command line; None where the first word is a flag."""
    if len(argv) > 1 and not argv[1].startswith("-"):
        return argv.pop(1)
    return None


def main(command: str | None) -> None:
    """Imports late, so that --help and mistakes in flags are answered at once."""
    if command is None:
        raise UserError(f"give a subcommand first: {', '.join(COMMANDS)}")
    module, function = COMMANDS[command]
    found = importlib.import_module(f"fct_jax.upgrade.{module}")
    try:
        getattr(found, function)(_CONFIG.value, _WORKDIR.value)
    except OSError as error:  # a full disk, a folder that may not be written to
        where = error.filename or _WORKDIR.value
        raise UserError(
            f"{where}: {error.strerror or error}; give the same command again once that is mended"
        ) from error


def _start() -> None:
    command = _subcommand(sys.argv)
    if command is not None and command not in COMMANDS:
        print(f"error: {unknown('subcommand', command, COMMANDS)}", file=sys.stderr)
        sys.exit(1)
    cli.run(lambda: main(command), __doc__)


if __name__ == "__main__":
    _start()
