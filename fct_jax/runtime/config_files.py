"""Config files, found by path or by the name of a packaged one."""

import difflib
import runpy
from pathlib import Path

from fct_jax.errors import UserError
from fct_jax.runtime.plugins import brief

_PACKAGE = Path(__file__).parents[1]


def packaged_configs() -> dict[str, Path]:
    """Return the configs that the package brings, by name.

    An installed package holds them as ``fct_jax/configs``; in a checkout they stand beside it.
    """
    for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):
        if folder.is_dir():
            return {p.stem: p for p in sorted(folder.glob("*.py")) if not p.stem.startswith("_")}
    return {}


def find_config(given: str) -> Path:
    """Return the file of a config: a path, or the name of a packaged one, such as ``digits_fct``.

    Raises UserError, with the nearest name, if there is neither.
    """
    path, packaged = Path(given).expanduser(), packaged_configs()
    if path.is_file():
        return path
    if given in packaged:
        return packaged[given]
    there = {file.name: str(file) for file in sorted(path.parent.glob("*.py"))}
    # A bare name may mean a file or a packaged config.
    choices = there if path.suffix or path.parent != Path() else {n: n for n in packaged}
    close = difflib.get_close_matches(path.name, choices, n=1, cutoff=0.4)
    hint = f"; did you mean {choices[close[0]]}?" if close else ""
    raise UserError(f"no config file {given}{hint}")


def run_config(path: Path) -> dict:
    """Return what a config file defines, ``get_config`` among it.

    Raises UserError, with the place, if the file cannot be run or has no such function.
    """
    try:
        found = runpy.run_path(str(path))
    except UserError:
        raise
    except SyntaxError as error:
        place = f"{error.filename or path}, line {error.lineno}"
        raise UserError(f"config file {path} is not Python: {error.msg} ({place})") from None
    except Exception as error:
        raise UserError(f"config file {path} cannot be run: {brief(error)}") from error
    if not callable(found.get("get_config")):
        raise UserError(
            f"config file {path} has no function get_config(); it must return the config, as those "
            "in configs/ do"
        )
    return found


def read_config(path: Path):
    """Return the config that the file's ``get_config`` makes.

    Raises UserError, with the place, if the file cannot be run or has no such function.
    """
    found = run_config(path)
    try:
        return found["get_config"]()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"get_config() of {path} failed: {brief(error)}") from error
