"""How far an upgrade has come, and whether it brings what was forecast: ``upgrade status``."""

import json
from pathlib import Path

import numpy as np

from fct_jax import config as configs
from fct_jax.errors import UserError
from fct_jax.upgrade.galleries.base import VERSIONS, open_gallery
from fct_jax.upgrade.migration.budget import Forecast
from fct_jax.upgrade.migration.journal import Journal, Progress
from fct_jax.upgrade.migration.probe import Probe
from fct_jax.upgrade.ways import find_way

_RECENT = 20  # steps that the rate is taken from


def status_command(config, workdir) -> dict:
    """The command: `status` with the values of ``fct_jax.config.upgrade``."""
    configs.check(config)
    return status(
        workdir,
        probe=config.probe,
        id_column=config.id_column,
        vector_column=config.vector_column,
    )


def status(workdir, *, probe="", id_column: str = "id", vector_column: str = "vector") -> dict:
    """Prints and returns how far an upgrade is; it may be under way meanwhile.

    Args:
      workdir: the upgrade's directory.
      probe: probe set, or "" for no measurement; of the way of serving that the plan names.
      id_column, vector_column: of Parquet files.

    Returns:
      state ("not begun", "translating", "translated", "migrating", "rolling back", "finished"),
      count, translated (rows), planned, reembedded (items), share, batches, rate (items/s, of
      rows while translating), seconds_left, and, with a probe, way, measure, measured and
      forecast quality; None where unknown.
    """
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise UserError(f"no upgrade in {workdir}")
    records = Journal(workdir / "journal.jsonl").records
    done = Progress(records)
    plan = _plan(workdir)
    count = done.begin["meta"]["count"] if done.begin else plan.get("count")
    planned = done.plan["items"] if done.plan else plan.get("items")
    kind, total, at = ("batch", planned, done.items) if done.ready else ("chunk", count, done.rows)
    rate = _rate([r for r in records if r["kind"] == kind])
    left = None if rate is None or total is None else (total - at) / rate
    found = {
        "state": _state(done, planned),
        "count": count,
        "translated": count if done.ready else done.rows,
        "planned": planned,
        "reembedded": done.items,
        "share": done.items / count if count else None,
        "batches": len(done.stops),
        "rate": rate,
        "seconds_left": left,
        "way": plan.get("serve", "translated"),
        "measure": None,
        "measured": None,
        "forecast": None,
    }
    if plan and plan["forecast"]["quality"] is not None:
        found["measure"] = plan["forecast"]["measure"]
        found["forecast"] = Forecast(**plan["forecast"]).at(done.items)
    if probe and done.ready:
        gallery = open_gallery(
            workdir / "gallery",
            id_column=id_column,
            vector_column=vector_column,
            unfinished=True,
        )
        asked = Probe(probe, gallery.meta["metric"])
        found["measured"] = _measured(asked, gallery, plan, found["way"], id_column, vector_column)
        if found["measure"] not in (None, asked.measure):
            found["forecast"] = None  # made with another probe set
        found["measure"] = asked.measure
    _show(workdir, found)
    return found


def _measured(asked: Probe, gallery, plan: dict, way: str, *columns: str) -> float:
    rows = asked.rows(gallery)
    if not find_way(way).needs_old_queries:
        return asked.quality(gallery.rows(rows))
    source = open_gallery(plan["gallery"], id_column=columns[0], vector_column=columns[1])
    migrated = gallery.versions[rows] == VERSIONS.index("new")
    metric = source.meta.get("metric", asked.metric)
    return asked.served(way, source.rows(rows), gallery.rows(rows), migrated, metric)


def _state(done: Progress, planned: int | None) -> str:
    if done.begin is None:
        return "not begun"
    if not done.ready:
        return "translating"
    if done.rolling_back:
        return "rolling back"
    if done.plan is None or not (done.items or done.pending or planned == 0):
        return "translated"
    return "finished" if done.items == planned else "migrating"


def _rate(steps: list[dict]) -> float | None:
    """Rows or items a second over the latest steps, pauses between runs left out."""
    recent = steps[-_RECENT:]
    seconds = sum(step["seconds"] for step in recent)
    return sum(s["stop"] - s["start"] for s in recent) / max(seconds, 1e-3) if recent else None


def _plan(workdir: Path) -> dict:
    path = workdir / "plan" / "plan.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _show(workdir: Path, found: dict) -> None:
    if found["count"] is None:
        print(f"{workdir}: {found['state']}")
        return
    print(f"{workdir}: {found['state']}, {found['translated']:,} of {found['count']:,} translated")
    if found["planned"] is not None:
        print(
            f"  re-embedded {found['reembedded']:,} of {found['planned']:,} planned items in "
            f"{found['batches']} batches ({found['share']:.1%} of the gallery)"
        )
    if found["seconds_left"]:
        minutes, seconds = divmod(int(np.ceil(found["seconds_left"])), 60)
        left = f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
        print(f"  {found['rate']:,.0f} a second, {left} left")
    shown = [
        f"{name} {found[name]:.4f}" for name in ("measured", "forecast") if found[name] is not None
    ]
    if shown:
        print(f"  {found['measure']} ({found['way']}): {', '.join(shown)}")
