"""Names that a user gives: rows of a table, entry points of other packages, ``module:name``."""

import importlib
import importlib.metadata
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fct_jax.errors import UserError, unknown


def is_import_name(name) -> bool:
    """Return whether ``name`` is a text of the form ``module:name``.

    A Windows drive (``C:…``), a URI (``scheme://…``) and a path with a folder are not.
    """
    module, colon, attribute = str(name).partition(":")
    parts = [*module.split("."), attribute]
    return bool(colon) and all(part.isidentifier() for part in parts)


def imported(name: str, what: str = "name") -> Any:
    """Import the object ``module:name``; the current folder is searched, too.

    Args:
      name: ``module:name``, for example ``mypackage.maps:Whitening``.
      what: kind of the wanted object, for the message.

    Raises:
      UserError: if the module or the attribute does not exist, or the module raises.
    """
    module_name, _, attribute = name.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # a console script does not search it by itself
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if f"{module_name}.".startswith(f"{error.name}."):
            reason = "there is no such module; its folder must be the current one or on PYTHONPATH"
        else:
            reason = f"its module needs {error.name}, which is not installed"
        raise UserError(f"{name}: {reason}") from None
    except Exception as error:
        raise UserError(f"{name}: its module cannot be imported: {brief(error)}") from error
    if not hasattr(module, attribute):
        offered = [key for key, value in vars(module).items() if callable(value)]
        raise unknown(f"{what} of {module_name}:", attribute, offered or ["(none)"])
    return getattr(module, attribute)


def find(table: Mapping[str, Any], name: str, what: str, group: str) -> Any:
    """Return a row of a table, or an object of another package or of the user's own module.

    Args:
      table: the project's own rows by name.
      name: a key of ``table``, the name of an entry point, or ``module:name``.
      what: kind of row, for the message: "map", "order", …
      group: entry points of ``fct_jax.<group>`` are searched after the table.

    Raises:
      UserError: if nothing has this name; the message names the nearest known one.

    Example (in another package's pyproject.toml, found as ``--order mine``):

        [project.entry-points."fct_jax.orders"]
        mine = "mypackage.orders:MINE"
    """
    if name in table:
        return table[name]
    if is_import_name(name):
        return imported(name, what)
    offered = {e.name: e for e in importlib.metadata.entry_points(group=f"fct_jax.{group}")}
    if name in offered:
        return imported(offered[name].value, what)
    raise unknown(what, name, [*table, *offered])


def brief(error: Exception) -> str:
    """Describe an error in a user's code in one line: its kind, its text and its place."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and not frame.filename.startswith("<")
    ]
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    said = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {said}{where}"
