"""Progress of a translation in pieces, from what is published: for ``fct-jax status``."""

import dataclasses
import itertools
import json

from fct_jax.upgrade.parts.places import Place

FOLDER, LAYOUT = "parts", "layout.json"  # in the upgrade's directory, and in it
_RECENT = 20  # latest pieces, from which the rate is measured


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The pieces of all parts.

    Attributes:
      count: number of pieces.
      done: number of published pieces.
      writing: number of pieces that some process is writing, where this is known.
      rows, translated: number of rows of the gallery, and of the published pieces.
      rate: recent rows per second of all parts together; None before two are published.
      finished_by: host and directory that have made the pieces a gallery in an object store.
    """

    count: int
    done: int
    writing: int
    rows: int
    translated: int
    rate: float | None
    finished_by: str | None = None

    def __str__(self) -> str:
        left = self.count - self.done - self.writing
        by = "" if self.finished_by is None else f"; finished by {self.finished_by}"
        return (
            f"{self.done:,} of {self.count:,} pieces published, {self.writing:,} being written, "
            f"{left:,} missing{by}"
        )


def progress_of(place: Place) -> Pieces | None:
    """Return the progress at a place, or None if nothing has begun there."""
    layout = place.read(f"{place.records}{LAYOUT}")
    if layout is None:
        return None
    found = json.loads(layout)
    borders = [*found["borders"], found["count"]]
    sizes = [last - first for first, last in itertools.pairwise(borders)]
    ends = {}
    for name, (_, time) in place.names().items():
        stem, _, kind = name.removeprefix(place.records).partition(".")
        if kind == "json" and stem.startswith("piece-"):
            ends[int(stem.removeprefix("piece-"))] = time
    writing = {int(n.removeprefix("piece-")) for n in place.writing() if n.startswith("piece-")}
    latest = sorted(ends, key=ends.get)[-_RECENT:]
    rate = None
    if len(latest) > 1:
        seconds = ends[latest[-1]] - ends[latest[0]]
        rate = sum(sizes[number] for number in latest[1:]) / max(seconds, 1e-3)
    return Pieces(
        len(sizes),
        len(ends),
        len(writing - set(ends)),
        found["count"],
        sum(sizes[number] for number in ends),
        rate,
        place.finished_by(),
    )
