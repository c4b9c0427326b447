"""Plans: the items to re-embed first, their number, and a forecast of the gain."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.evaluate.orders import Items, Order, find_order, times_traffic
from fct_jax.runtime.progress import console
from fct_jax.runtime.tables import Table
from fct_jax.storage import spilled
from fct_jax.storage.checksums import digest_of
from fct_jax.storage.files import new_directory
from fct_jax.upgrade.galleries.base import Gallery
from fct_jax.upgrade.galleries.rows import empty_npy
from fct_jax.upgrade.migration.budget import Forecast, check_budget, cut, forecast
from fct_jax.upgrade.migration.probe import Probe
from fct_jax.upgrade.migration.reading import Certificate
from fct_jax.upgrade.migration.traffic import read_traffic
from fct_jax.upgrade.ways import find_way


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The settings of a plan.

    Attributes:
      order: a name that `find_order` knows; None means by uncertainty if the map gives one, else
        by traffic if it is given, else random.
      traffic: path of a .npy file, as for `read_traffic`; it weights the order.
      budget_items, budget_money, target_quality: limits, of which the smallest counts; None: no
        limit.
      items_per_second, cost_per_1000: speed and price of the new model, for times and costs; None:
        unknown.
      cost_per_core_hour: price of an hour of a core, for the cost of translating; None: 0.05.
      serve: way of serving that the forecast is made for, a name in `fct_jax.upgrade.ways.WAYS`.
      seed: seed of a random order.
    """

    order: str | None = None
    traffic: str | None = None
    budget_items: int | None = None
    budget_money: float | None = None
    target_quality: float | None = None
    items_per_second: float | None = None
    cost_per_1000: float | None = None
    cost_per_core_hour: float | None = None
    serve: str = "translated"
    seed: int = 0

    def check(self) -> None:
        """Raise UserError for an impossible value, before any expensive work."""
        if self.order is not None:
            find_order(self.order)
        way = find_way(self.serve)
        if not way.reembeds:
            raise UserError(
                f"serve={way.name} re-embeds nothing, so there is nothing to plan: {way.text}"
            )
        check_budget(self)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The items to re-embed, first item first.

    Attributes:
      ids: (K,) ids of the items.
      rows: (K,) int64, their rows in the gallery.
      description: content of ``plan.json``.
    """

    ids: np.ndarray
    rows: np.ndarray
    description: dict

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def digest(self) -> str:
        """Return the fingerprint of the plan: its rows in their order."""
        return digest_of(self.rows)

    @property
    def certificate(self) -> Certificate:
        """Return the certificate of the pass that read the gallery for the plan."""
        return Certificate(**self.description["checked"])


def make_plan(
    folder: Path,
    gallery: Gallery,
    mapping,
    probe: Probe | None,
    wanted: Wanted,
    certificate: Certificate,
    uncertainty: np.ndarray,
    bad: list,
) -> Plan:
    """Make a plan and write it: ids.npy, rows.npy, uncertainty.npy (of the gallery), plan.json.

    Args:
      folder: directory to make.
      gallery, mapping, probe: the gallery, the map, and the probe set for quality.
      wanted: order and budgets.
      certificate, uncertainty, bad: as from `reading.read_through`. Items with unusable vectors
        come first in the plan in every order, because only new vectors can replace them.

    Raises:
      UserError: the order needs facts that are missing, or a target is never reached.
    """
    weights = None if wanted.traffic is None else read_traffic(wanted.traffic, gallery)
    asked = order_of(wanted, mapping, weights is not None)
    rows = None if probe is None else probe.rows(gallery)
    order = ranked(asked, uncertainty, weights, wanted.seed)
    if bad:
        order = _moved_first(order, np.array([row for row, _ in bad], np.int64))
    found = forecast(
        order,
        uncertainty,
        mapping.has_uncertainty,
        weights,
        probe,
        rows,
        mapping,
        wanted.serve,
        gallery,
    )
    items, reason = cut(found, len(order), wanted)
    with new_directory(folder) as partial:
        made = Plan(
            *_written(partial, gallery, order[:items]),
            {
                "gallery": gallery.name,
                "count": len(gallery),
                "gallery_ids": digest_of(gallery.ids),
                **settings_of(wanted, asked, mapping, items, reason),
                "checked": dataclasses.asdict(certificate),
                "forecast": dataclasses.asdict(found),
            },
        )
        np.save(partial / "uncertainty.npy", uncertainty)
        (partial / "plan.json").write_text(json.dumps(made.description, indent=2) + "\n")
    show(made.description, found)
    return made


def settings_of(wanted, asked, mapping, items: int, reason: str) -> dict:
    """Return the part of ``plan.json`` that says by which settings a plan was made and cut."""
    return {
        "map": mapping.fingerprint,
        "order": asked.name,
        "serve": wanted.serve,
        "seed": wanted.seed,
        "traffic": None if wanted.traffic is None else str(wanted.traffic),
        "items": items,
        "cut": reason,
        "cost_per_1000": wanted.cost_per_1000,
        "items_per_second": wanted.items_per_second,
    }


def _moved_first(order: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Return an order of rows in which some of them, in their order, precede all others."""
    moved, at = spilled.empty(len(order), np.int64), len(first)
    moved[:at] = first
    for part in spilled.blocks(len(order)):
        others = order[part][~np.isin(order[part], first)]
        moved[at : at + len(others)] = others
        at += len(others)
    return moved


def _written(folder: Path, gallery: Gallery, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Write ids.npy and rows.npy of planned rows, and return the two, which stay on disk."""
    np.save(folder / "rows.npy", rows)
    empty_npy(folder / "ids.npy", (len(rows),), gallery.ids.dtype)
    ids = np.load(folder / "ids.npy", mmap_mode="r", allow_pickle=False)
    with (folder / "ids.npy").open("r+b") as file:  # not mapped: the disk may be full
        file.seek(ids.offset)
        for part in spilled.blocks(len(rows)):
            gallery.ids[rows[part]].tofile(file)
    return ids, np.load(folder / "rows.npy", mmap_mode="r", allow_pickle=False)


def order_of(wanted: Wanted, mapping, has_traffic: bool) -> Order:
    """Return the wanted order, or a suitable one for the map. Raises UserError."""
    if wanted.order is None:
        if mapping.has_uncertainty:
            return find_order("uncertainty")
        return find_order("traffic" if has_traffic else "random")
    asked = find_order(wanted.order)
    if "uncertainty" in asked.needs and not mapping.has_uncertainty and not has_traffic:
        raise UserError(
            f"the map ({mapping.method}) gives no uncertainty to order by; "
            "use order=random, or give traffic"
        )
    return asked


def ranked(order: str | Order, uncertainty: np.ndarray, weights, seed: int) -> np.ndarray:
    """Return the rows in the order of re-embedding, (N,) int64.

    The traffic ``weights`` (N,), if given, multiply each item's expected error.
    """
    order = find_order(order)
    if weights is not None and order.log_gain is not None:
        order = times_traffic(order)
    return order.rank(Items(len(uncertainty), seed, uncertainty=uncertainty, traffic=weights))


def read_plan(folder: Path, gallery: Gallery, mapping) -> Plan:
    """Read the plan in a directory. Raises UserError if it is of another gallery or map."""
    try:
        description = json.loads((folder / "plan.json").read_text())
        ids = np.load(folder / "ids.npy", mmap_mode="r", allow_pickle=False)
        rows = np.load(folder / "rows.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"the plan in {folder} cannot be read: {error}") from None
    for what, planned, ours in (
        ("gallery", description["gallery_ids"], digest_of(gallery.ids)),
        ("map", description["map"], mapping.fingerprint),
    ):
        if planned != ours:
            raise UserError(f"the plan in {folder} is for another {what} ({planned}, not {ours})")
    parts = spilled.blocks(max(len(rows), len(ids)))
    if not all(np.array_equal(gallery.ids[rows[part]], ids[part]) for part in parts):
        raise UserError(f"the plan in {folder} is damaged: its rows and ids differ")
    return Plan(ids, rows, description)


def show(described: dict, found: Forecast) -> None:
    """Print the forecast of a plan as a table of the known columns."""
    price, rate = described["cost_per_1000"], described["items_per_second"]
    columns = {
        "items": [f"{items:,}" for items in found.items],
        "share": [f"{share:.0%}" for share in found.share],
    }
    if found.error_left[0] is not None:
        columns["error left"] = [f"{error:.3f}" for error in found.error_left]
    if found.quality is not None:
        columns[f"{found.measure} ({found.way})"] = [f"{quality:.3f}" for quality in found.quality]
    if price:
        columns["cost"] = [f"{items * price / 1000:,.2f}" for items in found.items]
    if rate:
        columns["hours"] = [f"{items / rate / 3600:,.1f}" for items in found.items]
    title = f"{described['items']:,} of {described['count']:,} items: {described['cut']}"
    rows = list(zip(*columns.values(), strict=True))
    Table(title, list(columns), rows, text=()).show(console)
