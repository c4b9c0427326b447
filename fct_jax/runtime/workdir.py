"""A work directory belongs to one config, which it stores in ``config.json``."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from fct_jax.errors import UserError
from fct_jax.storage.files import write_synced

_SHOWN = 5  # differences that a message names


def to_json(config: ConfigDict) -> dict:
    """Convert the config to JSON values (tuples become lists)."""
    return json.loads(config.to_json())


def usable(workdir) -> Path:
    """Return the path of a work directory, ``~`` expanded.

    Raises UserError if it, or one of its parent folders, is a file.
    """
    path = Path(workdir).expanduser()
    for folder in (path, *path.parents):
        if folder.is_dir():
            break
        if folder.exists():
            raise UserError(f"--workdir={workdir}: {folder} is a file; name a folder")
    return path


def claim_workdir(
    config: ConfigDict,
    workdir: Path,
    allow_change: bool = False,
    defaults: ConfigDict | None = None,
) -> None:
    """Write ``config.json``, or find that the directory belongs to the same config.

    Args:
      config: config of the command.
      workdir: the directory.
      allow_change: accept a config that differs from the directory's.
      defaults: values of keys that the directory's config lacks, if an earlier version wrote it.

    Raises UserError, with the differing keys, if the directory holds another config.
    """
    path = workdir / "config.json"
    # A killed run of this or an earlier version may have left these behind.
    leftovers = {path.with_name(f".{path.name}.partial"), path.with_suffix(".partial")}
    new = to_json(config)
    if path.is_file():
        try:
            old = json.loads(path.read_text())
        except ValueError:
            raise UserError(
                f"{path} cannot be read; remove it or choose another --workdir"
            ) from None
        if not isinstance(old, dict) or "task" not in old:
            raise UserError(f"{path} is not the config of a run; choose another --workdir")
        changes = _differences(_completed(old, to_json(defaults)) if defaults else old, new)
        # A command that failed before its first checkpoint left nothing that could be mixed up.
        begun = any(f.is_file() and f not in {path, *leftovers} for f in workdir.rglob("*"))
        if changes and begun and not allow_change:
            more = f"; and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
            raise UserError(
                f"{workdir} holds a run with another config ({'; '.join(changes[:_SHOWN])}{more}); "
                "choose another --workdir, or pass --allow_config_change to continue with the new "
                "one"
            )
        if not changes and old == new:
            return
    elif workdir.is_dir() and any(file not in leftovers for file in workdir.iterdir()):
        raise UserError(f"{workdir} is not empty and holds no run; choose another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    write_synced(path, (json.dumps(new, indent=2) + "\n").encode())
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)


def _completed(old: dict, defaults: dict) -> dict:
    """Return the config with defaults for missing keys."""
    missing = {key: value for key, value in defaults.items() if key not in old}
    inner = {
        key: _completed(value, defaults[key])
        for key, value in old.items()
        if isinstance(value, dict) and isinstance(defaults.get(key), dict)
    }
    return {**old, **missing, **inner}


def _differences(old, new, where: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        inner = [_differences(old.get(k), new.get(k), f"{where}.{k}" if where else k) for k in keys]
        return [line for lines in inner for line in lines]
    return [] if old == new else [f"{where}: {old!r} there, {new!r} now"]
