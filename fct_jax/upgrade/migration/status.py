"""Progress of an upgrade, and its quality against the forecast: ``fct-jax status``."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from fct_jax.upgrade.galleries.base import VERSIONS, open_gallery
from fct_jax.upgrade.migration.budget import Forecast
from fct_jax.upgrade.migration.journal import Journal, Progress
from fct_jax.upgrade.migration.probe import Probe, probe_of
from fct_jax.upgrade.migration.settings import Settings
from fct_jax.upgrade.parts.bucket import place_for
from fct_jax.upgrade.parts.progress import Pieces, progress_of
from fct_jax.upgrade.ways import find_way

RECALL_QUERIES = 8  # queries with which a store's indexes are judged
_RECENT = 20  # latest steps, from which the rate is measured


@dataclasses.dataclass(frozen=True)
class Status:
    """Progress of an upgrade; unknown values are None. ``str()`` summarises it in a few lines.

    Attributes:
      workdir: the upgrade's directory.
      state: "not begun", "translating", "translated", "migrating", "rolling back" or "finished".
      count: vectors in the gallery.
      translated: number of translated rows.
      planned, reembedded: number of items in the plan, and of those that are re-embedded.
      share: re-embedded share of the gallery.
      batches: number of finished batches.
      rate: recent items per second; rows per second while translating.
      seconds_left: remaining time at this rate.
      unembedded: items that could not be embedded so far; see ``unembedded.jsonl``.
      quarantined: unusable source vectors, if they are checked; see ``quarantine.jsonl``.
      clipped: number of values that the stored type clipped, because they are outside its scales.
      pieces: progress of a translation by several processes, or None.
      way: way of serving in which quality is measured.
      measure, measured, forecast: measure of the probe set, its value and its forecast, if any.
      store, target, readers: for a store: its URI, its sibling's, and the pointer's.
      recall, recall_half: recall of the sibling's index, and of the half-migrated search, against
        the stores' own comparison with every row.
    """

    workdir: str
    state: str
    count: int | None
    translated: int
    planned: int | None
    reembedded: int
    share: float | None
    batches: int
    rate: float | None
    seconds_left: float | None
    unembedded: int
    quarantined: int | None
    way: str
    measure: str | None = None
    measured: float | None = None
    forecast: float | None = None
    store: str | None = None
    target: str | None = None
    readers: str | None = None
    recall: float | None = None
    recall_half: float | None = None
    pieces: Pieces | None = None
    clipped: int = 0

    def to_json(self) -> dict:
        """Return the values by name, as JSON values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        if self.count is None:
            return f"{self.workdir}: {self.state}"
        lines = [f"{self.workdir}: {self.state}, {self.translated:,} of {self.count:,} translated"]
        if self.pieces is not None:
            lines.append(f"  {self.pieces}")
        if self.planned is not None:
            lines.append(
                f"  re-embedded {self.reembedded:,} of {self.planned:,} planned items in "
                f"{self.batches} batches ({self.share:.1%} of the gallery)"
            )
        if self.unembedded:
            lines.append(
                f"  {self.unembedded:,} could not be embedded and stay translated (listed in "
                f"{self.workdir}/unembedded.jsonl); the next apply asks for them again"
            )
        if self.quarantined:
            lines.append(
                f"  {self.quarantined:,} unusable vectors set aside; see "
                f"{self.workdir}/quarantine.jsonl"
            )
        if self.clipped:
            lines.append(f"  {self.clipped:,} values clipped, outside the range of the scales")
        if self.seconds_left:
            minutes, seconds = divmod(int(np.ceil(self.seconds_left)), 60)
            left = f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
            lines.append(f"  {self.rate:,.0f} per second, {left} left")
        shown = [
            f"{name} {value:.4f}"
            for name, value in (("measured", self.measured), ("forecast", self.forecast))
            if value is not None
        ]
        if shown:
            lines.append(f"  {self.measure} ({self.way}): {', '.join(shown)}")
        for name in ("store", "target", "readers"):
            if getattr(self, name) is not None:
                lines.append(f"  {name}: {getattr(self, name)}")
        recalls = (self.recall, "the target"), (self.recall_half, "both stores together")
        for value, what in recalls:
            if value is not None:
                lines.append(f"  recall@10 of {what}, against exact search: {value:.3f}")
        return "\n".join(lines)


def status_of(workdir: Path, settings: Settings, probe: str | None) -> Status:
    """Return an upgrade's status from its journal, and its quality by a probe, if there is one.

    Args:
      workdir: the upgrade's directory.
      settings: its settings.
      probe: folder of a probe set, or None.
    """
    records = Journal(workdir / "journal.jsonl").records
    done = Progress(records)
    plan = _plan(workdir)
    count = done.begin["meta"]["count"] if done.begin else plan.get("count")
    planned = done.plan["items"] if done.plan else plan.get("items")
    kind, total, at = ("batch", planned, done.items) if done.ready else ("chunk", count, done.rows)
    rate = rate_of([r for r in records if r["kind"] == kind])
    way, pieces, at_state = plan.get("serve", "translated"), None, state_of(done, planned)
    if not done.ready:
        pieces = progress_of(place_for(workdir, settings.output))
    if pieces is not None:
        at_state = "translating" if pieces.finished_by is None else "translated"
        total = count = pieces.rows
        at, rate = max(pieces.translated, at), pieces.rate
    found = Status(
        workdir=str(workdir),
        state=at_state,
        count=count,
        translated=count if done.ready else at,
        planned=planned,
        reembedded=done.reembedded,
        share=done.reembedded / count if count else None,
        batches=len(done.stops),
        rate=rate,
        seconds_left=None if rate is None or total is None else (total - at) / rate,
        unembedded=len(done.failed),
        quarantined=len(done.bad) if done.ready else plan.get("checked", {}).get("bad", 0),
        way=way,
        pieces=pieces,
        clipped=done.clipped,
    )
    if plan and plan["forecast"]["quality"] is not None:
        forecast = Forecast(**plan["forecast"])
        found = dataclasses.replace(
            found, measure=forecast.measure, forecast=forecast.at(done.items)
        )
    if probe is None or not done.ready:
        return found
    columns = {"id_column": settings.id_column, "vector_column": settings.vector_column}
    gallery = open_gallery(settings.output or workdir / "gallery", unfinished=True, **columns)
    asked = probe_of(probe, gallery.meta["metric"], find_way(way), settings.map)
    if found.measure not in (None, asked.measure):
        found = dataclasses.replace(found, forecast=None)  # made with another probe set
    source = settings.gallery or plan.get("gallery")
    measured = _measured(asked, gallery, way, source, columns)
    return dataclasses.replace(found, measure=asked.measure, measured=measured)


def _measured(asked: Probe, gallery, way: str, source: str, columns: dict) -> float:
    """Return the probe's quality with the plan's way of serving."""
    rows = asked.rows(gallery)
    served, vectors = find_way(way), gallery.rows(rows)
    if served.one_index:
        return asked.quality(vectors)
    old = open_gallery(source, **columns, on_bad="quarantine")
    migrated = gallery.versions[rows] == VERSIONS.index("new")
    metric = old.meta.get("metric", asked.metric)
    return asked.served(served, old.rows(rows), vectors, migrated, metric, vectors)


def state_of(done: Progress, planned: int | None) -> str:
    """Return the state of an upgrade, one of the states of `Status`."""
    if done.begin is None:
        return "not begun"
    if not done.ready:
        return "translating"
    if done.rolling_back:
        return "rolling back"
    if done.plan is None or not (done.items or done.pending or planned == 0):
        return "translated"
    return "finished" if done.items == planned else "migrating"


def rate_of(steps: list[dict]) -> float | None:
    """Return rows or items per second over the latest steps, without pauses between runs."""
    recent = steps[-_RECENT:]
    seconds = sum(step["seconds"] for step in recent)
    return sum(s["stop"] - s["start"] for s in recent) / max(seconds, 1e-3) if recent else None


def _plan(workdir: Path) -> dict:
    path = workdir / "plan" / "plan.json"
    return json.loads(path.read_text()) if path.is_file() else {}
