"""An argument parser whose defaults are those of the library function behind it."""

import argparse
import difflib
import importlib
import inspect

from fct_jax.errors import UserError

_NOTHING = (None, "", False, 0, 0.0, ())  # defaults that a help page need not show


class Parser(argparse.ArgumentParser):
    """The parser of one subcommand.

    Options have no defaults of their own: an option that is not given is not passed on. Each
    default thus stands once, in the function's signature, and ``--help`` reads it there.

    Args:
      name: name of the subcommand.
      text: description and example that ``--help`` shows.
      function: ``module:function`` whose signature holds the defaults; None if there is none.
    """

    def __init__(self, name: str, text: str, function: str | None = None):
        super().__init__(
            prog=f"fct-jax {name}",
            description=text.strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )
        self._function = function

    def parse_args(self, words=None, namespace=None):
        """Parse the words; unknown options are reported before missing arguments."""
        known = self._option_string_actions
        for word in words or ():
            option = word.split("=")[0]
            if word == "--":
                break
            if word.startswith("--") and option not in known:
                close = difflib.get_close_matches(option, known, n=1, cutoff=0.4)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise UserError(f"{self.prog} has no option {option}{hint}")
        return super().parse_args(words, namespace)

    def format_help(self) -> str:
        """Return the help page, with the defaults of the function's signature."""
        defaults = self._signature_defaults()
        for action in self._actions:
            default = defaults.get(action.dest)
            if default not in _NOTHING and "(default" not in (action.help or ""):
                if isinstance(default, tuple | list):
                    default = ",".join(map(str, default))
                action.help = f"{action.help} (default: {default})".replace("%", "%%")
        return super().format_help()

    def _signature_defaults(self) -> dict:
        if self._function is None:
            return {}
        module, _, name = self._function.partition(":")
        try:
            target = importlib.import_module(module)
        except ModuleNotFoundError:
            return {}  # an extra is not installed: show the page without defaults
        for part in name.split("."):
            target = getattr(target, part)
        return {
            parameter.name: parameter.default
            for parameter in inspect.signature(target).parameters.values()
            if parameter.default is not parameter.empty
        }

    def error(self, message: str):
        """Raise UserError; argparse itself would print its usage and exit with 2."""
        raise UserError(f"{message} (see {self.prog} --help)")


def shares(text: str) -> tuple[float, ...]:
    """Parse ``0,0.1,0.5``, shares of a whole."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be numbers separated by commas, such as 0,0.1,0.5"
        ) from None


def names(text: str) -> tuple[str, ...]:
    """Parse ``a,b,c``."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
