"""What the tools share: the help of each is its docstring, and a mistake is one line.

A tool is run as a file or as a module; it puts the repository on ``sys.path`` before it imports
anything of the project.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fct_jax.errors import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser whose help shows the text as it is, and whose errors are one line."""

    def __init__(self, text: str):
        super().__init__(
            prog=Path(sys.argv[0]).name,
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str):
        """Raise UserError instead of printing the usage."""
        raise UserError(f"{message} (see --help)")


def status(run: Callable[[Sequence[str]], int | None], arguments: Sequence[str] | None = None):
    """Run a tool by its arguments (by default those of the command line); return its exit status.

    That is what ``run`` returns (None: 0), and 1 for a mistake of the user, which is one line.
    """
    try:
        return run(sys.argv[1:] if arguments is None else arguments) or 0
    except (UserError, OSError) as error:
        if isinstance(error, OSError):
            error = f"{error.filename}: {error.strerror}" if error.filename else error
        print(f"error: {error}", file=sys.stderr)
        return 1


def read_json(path: Path):
    """Return what a JSON file holds. Raises UserError for a missing or damaged one."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from None
