"""Run a subcommand: build its parser, print its output, and report each error in one line."""

import contextlib
import json
import os
import sys

from fct_jax import cli
from fct_jax.cli.parser import Parser
from fct_jax.errors import UserError, unknown
from fct_jax.runtime import starting


def run(name: str, words: list[str]) -> int:
    """Run a subcommand and return its exit code."""
    try:
        if name not in cli.COMMANDS:
            raise unknown("command", name, cli.COMMANDS)
        module = cli.load(name)
        if hasattr(module, "run_words"):  # experiments parse their own words
            return module.run_words(name, words)
        parser = build_parser(name)
        mixed = getattr(module, "MIXED", False)  # words also after options
        arguments = (parser.parse_intermixed_args if mixed else parser.parse_args)(words)
        starting.begun()
        return _run(module, arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return cli.MISTAKE
    except KeyboardInterrupt:
        print("stopped; repeat the command to resume", file=sys.stderr)
        return cli.INTERRUPTED
    except BrokenPipeError:  # the reader ended, as in `fct-jax … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return cli.DONE
    except ModuleNotFoundError as error:
        from fct_jax.runtime.extras import missing

        said = missing(error)
        if said is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        return cli.MISTAKE
    except OSError as error:  # a full disk, a folder that may not be written to
        where = error.filename or "the disk"
        reason = error.strerror or _short_write(error)
        print(f"error: {where}: {reason}; fix this and repeat the command",
              file=sys.stderr)  # fmt: skip
        return cli.MISTAKE


def _short_write(error: OSError) -> str:
    """Return the reason of an error without a number, such as NumPy's of a disk that is full."""
    said = str(error)
    return "No space left on device" if "requested and" in said else said


def build_parser(name: str) -> Parser:
    """Return the parser of a subcommand; its module adds the arguments."""
    module = cli.load(name)
    parser = Parser(name, module.EXAMPLE, getattr(module, "FUNCTION", None))
    module.add_arguments(parser)
    parser.add_argument(
        "--json",
        action="store_true",
        default=False,
        help="print the result as one JSON object; everything else goes to standard error",
    )
    parser.add_argument(
        "--quiet", action="store_true", default=False, help="suppress progress and tables"
    )
    return parser


def _run(module, arguments) -> int:
    wants_json, quiet = arguments.json, arguments.quiet
    del arguments.json, arguments.quiet
    if quiet:
        from fct_jax.runtime import progress

        progress.silence()
    with contextlib.ExitStack() as stack:
        if quiet:
            nowhere = stack.enter_context(open(os.devnull, "w"))  # noqa: PTH123
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        elif wants_json:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        result, code = module.run(arguments)
    if wants_json:
        print(json.dumps(result, indent=2, default=_plain))
    elif quiet and isinstance(result, dict) and "text" in result:
        print(result["text"])
    return code


def _plain(value):
    """Convert a NumPy scalar or array, or a path, to a JSON value."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
