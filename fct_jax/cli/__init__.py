"""The command ``fct-jax``: one table of subcommands, each in a file of this folder.

Exit codes: 0 done; 1 a mistake, explained in one line; 2 look at this (a verdict other than
"upgrade", findings of ``doctor``); 3 interrupted, and the same command resumes.
"""

from __future__ import annotations

import importlib
import sys
from typing import NamedTuple


class Command(NamedTuple):
    """A row of `COMMANDS`: the module in this folder that implements it, and its one-line help."""

    module: str
    help: str


COMMANDS = {
    "demo": Command("demo", "upgrade a small bundled gallery and show the verdict (a minute)"),
    "doctor": Command(
        "doctor", "check a file of vectors, or the hosts of a run, before you trust it"
    ),
    "fit": Command("fit", "learn a map from old to new vectors on a sample of pairs"),
    "assess": Command("assess", "measure what each way of upgrading would gain and cost"),
    "plan": Command("plan", "choose which items to re-embed first, within a budget"),
    "apply": Command("apply", "translate the gallery, then replace vectors by re-embedded ones"),
    "status": Command("status", "show how far an upgrade is"),
    "switch": Command("switch", "send the readers of a store to the upgraded one, or back"),
    "rollback": Command("rollback", "take an upgrade back to the end of an earlier batch"),
    "export": Command("export", "write a way of serving as a file for services with NumPy alone"),
    "train": Command("experiments", "train a model from a config"),
    "embed": Command("experiments", "embed images with a model, or vectors with a transformation"),
    "evaluate": Command("experiments", "measure retrieval and draw backfilling curves"),
    "compare": Command("compare", "judge models, or orders of re-embedding, side by side"),
    "compile": Command("compile", "compile a config's programs for TPUs that are not attached"),
    "completion": Command("completion", "print a script that completes this command in your shell"),
}

DONE, MISTAKE, LOOK, INTERRUPTED = 0, 1, 2, 3

_USAGE = """usage: fct-jax COMMAND …        fct-jax COMMAND --help        fct-jax --version

Change the embedding model of a retrieval service without re-embedding its gallery.

{commands}

Start with `fct-jax demo`, or with two files of vectors of the same items:

  fct-jax assess vectors_old.npy vectors_new.npy

Exit codes: 0 done, 1 mistake, 2 look at this (verdict, findings), 3 interrupted and resumable.
"""


def usage() -> str:
    """Return the page that ``fct-jax --help`` prints."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{command.help}" for name, command in COMMANDS.items()]
    return _USAGE.format(commands="\n".join(lines))


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code; a user's mistake raises nothing.

    Args:
      argv: the words after ``fct-jax``; None: those of this process.
    """
    from fct_jax.runtime import starting

    argv = sys.argv[1:] if argv is None else list(argv)
    starting.exit_status(INTERRUPTED)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return DONE if argv else MISTAKE
    if argv[0] in ("-V", "--version", "version"):
        from fct_jax import __version__

        print(f"fct-jax {__version__}")
        return DONE
    # Modules are imported late, so that --help answers at once.
    from fct_jax.cli.running import run

    return run(argv[0], argv[1:])


def load(name: str):
    """Import the module that implements a subcommand."""
    return importlib.import_module(f"fct_jax.cli.{COMMANDS[name].module}")
