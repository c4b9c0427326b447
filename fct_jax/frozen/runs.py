"""Run directories and the descriptions of their exported models, without heavy imports."""

import json
from pathlib import Path

from fct_jax.errors import UserError
from fct_jax.runtime.plugins import is_import_name


def is_run(path) -> bool:
    """Return whether the directory is a run that has exported its model."""
    return (Path(path).expanduser() / "model" / "model.json").is_file()


def is_model(where) -> bool:
    """Return whether ``load_model`` accepts ``where``: a finished run, or "module:function"."""
    return isinstance(where, str | Path) and (is_run(where) or is_callable_name(where))


def read_description(run) -> dict:
    """Return the ``model.json`` of a run. Raises UserError if there is none."""
    path = Path(run).expanduser() / "model" / "model.json"
    if not path.is_file():
        reason = "training has not ended" if (Path(run) / "config.json").is_file() else "not a run"
        raise UserError(f"no exported model in {run} ({reason})")
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def is_callable_name(where) -> bool:
    """Return whether ``where`` has the form "module:function" and is not an existing path."""
    return is_import_name(where) and not Path(where).exists()
