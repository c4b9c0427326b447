"""The two kinds of sources that can be upgraded, files and stores: each has a `Side`."""

import abc
import dataclasses
from pathlib import Path
from typing import Any

from fct_jax.errors import UserError
from fct_jax.runtime.plugins import imported
from fct_jax.upgrade.maps.map import Map
from fct_jax.upgrade.migration.planning import Wanted
from fct_jax.upgrade.migration.probe import Probe
from fct_jax.upgrade.migration.reembed import Asking
from fct_jax.upgrade.migration.settings import Settings, named, remember
from fct_jax.upgrade.parts.engines import Engine
from fct_jax.upgrade.parts.numbers import Part
from fct_jax.upgrade.stores import is_store

# whether it is the URI of a store -> the side
_SIDES = {
    False: "fct_jax.upgrade.migration.gallery_side:GallerySide",
    True: "fct_jax.upgrade.stores.upgrading:StoreSide",
}


@dataclasses.dataclass(frozen=True)
class Opened:
    """The opened objects that the settings name.

    source: a Gallery or a Store; unnamed: whether the map was given as an object.
    """

    settings: Settings
    source: Any
    mapping: Map
    probe: Probe | None
    unnamed: bool

    def remember(self, workdir: Path) -> None:
        """Write the settings; a map that was given as an object is saved beside them."""
        settings, mapping = self.settings, self.mapping
        if self.unnamed:
            where = workdir / f"map-{mapping.fingerprint}"
            if not where.exists():
                mapping.save(where)
            settings = dataclasses.replace(settings, map=named(where))
        remember(workdir, settings)


@dataclasses.dataclass(frozen=True)
class Run:
    """The arguments of one run of `Upgrade.apply`."""

    reembed: Any = None
    asking: Asking = dataclasses.field(default_factory=Asking)
    batch_items: int = 4096
    max_batches: int | None = None
    unchecked: bool = False
    part: Part | None = None
    engine: Engine = dataclasses.field(default_factory=Engine)

    def check(self) -> None:
        """Raise UserError for a value that cannot be."""
        if self.batch_items < 1:
            raise UserError(f"batch_items must be 1 or more, not {self.batch_items}")
        if self.max_batches is not None and self.max_batches < 0:
            raise UserError(f"max_batches must be 0 or more, not {self.max_batches}")
        self.engine.check()
        if self.part is not None and self.engine.name is not None:
            raise UserError("--part divides the work by hand, --engine by itself; give one of them")
        if self.part is not None and self.reembed is not None:
            raise UserError(
                "a part only translates; once all parts are done, one process re-embeds: give "
                "--reembed without --part"
            )


class Side(abc.ABC):
    """The methods of `Upgrade` for one kind of source.

    Attributes:
      in_parts: whether several processes can translate it.
      chooses_dtype: whether the type of new vectors is a choice.
      in_place: whether new vectors can go to the rows of the old ones.
    """

    in_parts = False
    chooses_dtype = False
    in_place = False

    def __init__(self, workdir: Path, opened: Opened):
        self.workdir, self.opened = workdir, opened

    def close(self) -> None:  # noqa: B027 (files are closed when they are read)
        """Close the connections that `open` made."""

    @staticmethod
    @abc.abstractmethod
    def open(where, settings: Settings):
        """Open the source: the given object, or the name in the settings."""

    @abc.abstractmethod
    def plan(self, wanted: Wanted):
        """Make a plan. Raises UserError."""

    @abc.abstractmethod
    def apply(self, run: Run):
        """Translate and re-embed; return the result. Raises UserError."""

    @staticmethod
    @abc.abstractmethod
    def status(workdir: Path, settings: Settings, probe: str | None, queries: int):
        """Return the `Status`."""

    @abc.abstractmethod
    def rollback(self, to: int | None) -> int:
        """Go back to the end of a batch; return the number of items that stay re-embedded."""

    @abc.abstractmethod
    def switch(self, back: bool, calibration: str | None, leave: bool) -> dict:
        """Point readers to the result, or back; return the pointer."""


def side_of(where) -> type[Side]:
    """Return the side of a gallery, a store, or the name of one."""
    return imported(_SIDES[is_store(place_of(where))], "side")


def place_of(where) -> str | None:
    """Return the name under which an open gallery or store is remembered."""
    named = getattr(where, "uri", None) or getattr(where, "path", where)
    return None if named is None else str(named)
