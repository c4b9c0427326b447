"""Shared parts of the tools: their help is the docstring, and a user's mistake is one line.

A tool runs as a file or as a module; it puts the repository on ``sys.path`` before it imports
anything from the project.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fct_jax.errors import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser whose help keeps the text's line breaks, and whose errors are one line."""

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
    """Run a tool with its arguments (default: those of the command line); return its exit status.

    The status is the result of ``run`` (None: 0), or 1 after a user's mistake, printed as one line.
    """
    try:
        return run(sys.argv[1:] if arguments is None else arguments) or 0
    except (UserError, OSError) as error:
        if isinstance(error, OSError):
            error = f"{error.filename}: {error.strerror}" if error.filename else error
        print(f"error: {error}", file=sys.stderr)
        return 1


def read_json(path: Path):
    """Return the content of a JSON file. Raises UserError if it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from None
