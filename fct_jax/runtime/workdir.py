"""A work directory belongs to one config, which it keeps in ``config.json``."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from fct_jax.errors import UserError
from fct_jax.storage.files import write_synced


def to_json(config: ConfigDict) -> dict:
    """The config as JSON holds it (tuples become lists)."""
    return json.loads(config.to_json())


def usable(workdir) -> Path:
    """Return the path of a work directory, ``~`` expanded.

    Raises UserError if it, or a folder that it is to lie in, is a file.
    """
    path = Path(workdir).expanduser()
    for folder in (path, *path.parents):
        if folder.is_dir():
            break
        if folder.exists():
            raise UserError(f"--workdir={workdir}: {folder} is a file; name a folder")
    return path


def claim_workdir(config: ConfigDict, workdir: Path, allow_change: bool = False) -> None:
    """Writes ``config.json``, or finds that the directory belongs to the same config.

    Raises UserError, with the differing keys, where it holds another one.
    """
    path = workdir / "config.json"
    # What a kill may have left behind, of this version and an earlier one.
    leftovers = {path.with_name(f".{path.name}.partial"), path.with_suffix(".partial")}
    new = to_json(config)
    if path.is_file():
        try:
            old = json.loads(path.read_text())
        except ValueError:
            raise UserError(
                f"{path} cannot be read; remove it or choose another --workdir"
            ) from None
        changes = _differences(old, new)
        if changes and not allow_change:
            raise UserError(
                f"{workdir} holds a run with another config ({'; '.join(changes)}); "
                "choose another --workdir, or pass --allow_config_change to go on with the new one"
            )
        if not changes:
            return
    elif workdir.is_dir() and any(file not in leftovers for file in workdir.iterdir()):
        raise UserError(f"{workdir} is not empty and holds no run; choose another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    write_synced(path, (json.dumps(new, indent=2) + "\n").encode())


def _differences(old, new, where: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        inner = [_differences(old.get(k), new.get(k), f"{where}.{k}" if where else k) for k in keys]
        return [line for lines in inner for line in lines]
    return [] if old == new else [f"{where}: {old!r} there, {new!r} now"]
