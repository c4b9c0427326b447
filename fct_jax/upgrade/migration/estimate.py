"""The cores, hours and money that an upgrade of a gallery needs, from rates that are measured."""

import dataclasses
import time
import zlib

import numpy as np

from fct_jax.runtime import threads
from fct_jax.runtime.progress import console
from fct_jax.runtime.tables import Table
from fct_jax.upgrade.checks.guards import sound, without
from fct_jax.upgrade.galleries.base import Gallery

_TIMES = 8  # how often a block is translated at most
_SECONDS = 0.5  # it is not translated again after this time
CORE_HOUR = 0.05  # assumed price of an hour of a core


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The time and money of translating a whole gallery and re-embedding the planned items.

    Attributes:
      vectors, cores: number of vectors, and cores that this process may use.
      cpu: measured CPU seconds of a translated vector, with reading, checks and checksums.
      sample: number of vectors that were translated to measure it.
      read, written: bytes of an old vector, and of a new one with its log-variance.
      core_hour: price of an hour of a core.
      items: number of planned items.
      items_per_second, cost_per_1000: speed and price of the new model, None: unknown.
    """

    vectors: int
    cores: int
    cpu: float
    sample: int
    read: int
    written: int
    core_hour: float
    items: int
    items_per_second: float | None
    cost_per_1000: float | None

    @property
    def core_hours(self) -> float:
        """Return the core hours of translating."""
        return self.vectors * self.cpu / 3600

    def table(self) -> Table:
        """Return a table of the two steps; what is unknown is empty."""
        hours, cost = "", ""
        if self.items_per_second:
            hours = _number(self.items / self.items_per_second / 3600)
        if self.cost_per_1000 is not None:
            cost = f"{self.items * self.cost_per_1000 / 1000:,.2f}"
        rows = [
            ["translate", f"{self.vectors:,}", _number(self.core_hours), str(self.cores),
             _number(self.core_hours / self.cores), f"{self.core_hours * self.core_hour:,.2f}"],
            ["re-embed", f"{self.items:,}", "", "", hours, cost],
        ]  # fmt: skip
        columns = ["step", "vectors", "core hours", "cores", "hours", "cost"]
        return Table("What it takes", columns, rows)

    def show(self) -> None:
        """Print the table and its assumptions."""
        self.table().show(console)
        said = (
            f"Translating took {self.cpu * 1e6:,.1f} µs of a core for each of {self.sample:,} "
            f"vectors; a core hour costs {self.core_hour:g}. It is assumed that disks keep up "
            f"with {_number(self.vectors * self.read / 1e9)} GB that are read and "
            f"{_number(self.vectors * self.written / 1e9)} GB that are written; parts (--part) "
            "do both twice where the new gallery is one file."
        )
        missing = [
            name
            for name, value in (
                ("items_per_second", self.items_per_second),
                ("cost_per_1000", self.cost_per_1000),
            )
            if value is None
        ]
        if missing:
            said += f" Give {' and '.join(missing)} of the new model for its hours and cost."
        console.print(said)


def _number(value: float) -> str:
    return f"{value:,.1f}" if value >= 10 else f"{value:.2g}"


def estimated(gallery: Gallery, mapping, batch_size: int, items: int, wanted) -> Estimate:
    """Translate the first block of a gallery without keeping it, and estimate the whole.

    It is read once, and translated several times; a network is compiled for it before.

    Args:
      gallery, mapping, batch_size: as for `steps.Migration`.
      items: number of planned items.
      wanted: `planning.Wanted`, with speed and price of the new model.
    """
    size = min(batch_size, len(gallery))
    mapping.transform(np.zeros((size, gallery.dim), np.float32), size)
    before = time.process_time()
    vectors = gallery.read(0, size)
    reading = time.process_time() - before
    begun, before, times = time.monotonic(), time.process_time(), 0
    while times < _TIMES and (times == 0 or time.monotonic() - begun < _SECONDS):
        zlib.crc32(np.ascontiguousarray(vectors))
        made, _ = mapping.transform(without(vectors, sound(vectors)), size)
        with np.errstate(over="ignore"):
            zlib.crc32(np.ascontiguousarray(made.astype(gallery.dtype, copy=False)))
        times += 1
    cpu = reading + (time.process_time() - before) / times
    width = gallery.stored_as.width  # bytes of a dimension
    return Estimate(
        len(gallery),
        threads.available(),
        cpu / size,
        size,
        round(gallery.dim * width),
        round(mapping.dim_out * width) + 4 * mapping.has_uncertainty,
        CORE_HOUR if wanted.cost_per_core_hour is None else wanted.cost_per_core_hour,
        items,
        wanted.items_per_second,
        wanted.cost_per_1000,
    )
