"""The settings that an upgrade's directory remembers, in ``WORKDIR/upgrade.json``."""

import dataclasses
import json
import os
from pathlib import Path

from fct_jax.errors import UserError, unknown
from fct_jax.storage.files import write_synced
from fct_jax.upgrade.galleries.base import Options, split_columns
from fct_jax.upgrade.galleries.stored import TYPES

FORMAT_VERSION = 1
_NAMES = ("map", "gallery", "probe")  # settings that name something on disk
# Settings that a plan depends on, and further ones that a translation depends on. A map is
# recognised by its fingerprint, wherever it is.
_PLANNED = ("map_fingerprint", "gallery", "probe", "id_column", "vector_column", "duplicates")
_TRANSLATED = ("batch_size", "dtype", "on_bad", "output", "in_place")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings that all calls of one upgrade share.

    Attributes:
      map, gallery, probe: paths, or other names that `load_map` and `open_gallery` understand.
      map_fingerprint: fingerprint of the map, which identifies it wherever it is.
      batch_size: number of vectors translated together; the last bits of the result depend on it.
      dtype: type of new vectors, a name in `TYPES`; None: the gallery's own.
      id_column, vector_column: columns of the gallery; None: found by their kind.
      on_bad: "quarantine" sets unusable vectors aside, up to one in a thousand; "raise" stops.
      duplicates: "first" or "last" keeps that row of a repeated id; "raise" stops.
      output: URI of the new gallery in an object store; None: ``gallery`` in the directory.
      in_place: whether a store's new vectors go to the same rows, beside the old ones.
    """

    map: str | None = None
    map_fingerprint: str | None = None
    gallery: str | None = None
    probe: str | None = None
    batch_size: int = 4096
    dtype: str | None = None
    id_column: str | None = None
    vector_column: str | None = None
    on_bad: str = "quarantine"
    duplicates: str = "raise"
    output: str | None = None
    in_place: bool = False

    def check(self) -> None:
        """Raise UserError for an impossible setting."""
        if self.batch_size < 1:
            raise UserError(f"batch_size must be 1 or more, not {self.batch_size}")
        if self.output is not None and not self.output.startswith(("s3://", "gs://")):
            raise UserError(
                f"output={self.output} is not the URI of an object store, s3://… or gs://…; on "
                "disk the new gallery is in the upgrade's directory"
            )
        if self.dtype not in (None, *TYPES):
            raise unknown("dtype", self.dtype, TYPES)
        self.open_options()

    def open_options(self) -> dict:
        """Return the arguments of `open_gallery`. Raises UserError for impossible ones."""
        options = {
            "id_column": self.id_column,
            "vector_column": self.vector_column,
            "on_bad": self.on_bad,
            "duplicates": self.duplicates,
        }
        Options(**options)  # checks them
        return options


def named(what) -> str | None:
    """Return an absolute path with ``~`` expanded, or another name unchanged; None for none."""
    if what is None or not str(what):
        return None
    path = expanded(what)
    return os.path.abspath(path) if path.exists() else str(what)  # noqa: PTH100 – keeps links


def expanded(path) -> Path:
    """Return a path with ``~`` expanded."""
    return Path(path).expanduser()


def remembered(workdir: Path) -> Settings | None:
    """Return the settings in a directory, or None. Raises UserError if they cannot be read."""
    path = workdir / "upgrade.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
        version = found.pop("format_version")
        if version > FORMAT_VERSION:
            raise UserError(
                f"{path} has format version {version}; "
                f"this fct_jax reads versions up to {FORMAT_VERSION}"
            )
        return Settings(**found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read: {error}; restore it from a backup") from None


def merged(workdir: Path, given: dict) -> Settings:
    """Return the settings of a call: given ones, else remembered ones, else defaults.

    Args:
      workdir: the upgrade's directory.
      given: settings by name; None for a setting that the call omits.

    Raises:
      UserError: a given setting contradicts one that a plan or a begun migration depends on.
    """
    if given.get("gallery") is not None:
        path, columns = split_columns(given["gallery"])
        columns = {f"{key}_column": name for key, name in columns.items() if name}
        given = {**columns, **{k: v for k, v in given.items() if v is not None}, "gallery": path}
    given = {
        key: named(value) if key in _NAMES else value
        for key, value in given.items()
        if value is not None
    }
    kept = remembered(workdir)
    settings = Settings(**{**({} if kept is None else vars(kept)), **given})
    binding = _binding(workdir) if kept is not None else ()
    differ = [
        f"{key}: {getattr(kept, key)} there, {given[key]} now"
        for key in given
        if key in binding and getattr(kept, key) not in (None, given[key])
    ]
    if differ:
        raise UserError(
            f"{workdir} is an upgrade with other settings ({'; '.join(differ)}); "
            "omit them to continue with its own, or choose another directory"
        )
    settings.check()
    return settings


def _binding(workdir: Path) -> tuple[str, ...]:
    """Return the settings that a plan or a begun migration depends on."""
    if any((workdir / name).is_file() for name in ("journal.jsonl", "parts/layout.json")):
        return _PLANNED + _TRANSLATED
    return _PLANNED if (workdir / "plan").is_dir() else ()


def remember(workdir: Path, settings: Settings) -> None:
    """Write the settings if they are new."""
    if settings != remembered(workdir):
        content = {"format_version": FORMAT_VERSION, **dataclasses.asdict(settings)}
        data = (json.dumps(content, indent=2) + "\n").encode()
        write_synced(workdir / "upgrade.json", data, shared=True)
