"""What to re-embed first, how far to go, and what it will bring: ``upgrade plan``."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from rich.table import Table

from fct_jax import config as configs
from fct_jax.errors import UserError, unknown
from fct_jax.evaluate.orders import Items, Order, find_order, times_traffic
from fct_jax.runtime.progress import Bar, console
from fct_jax.storage.checksums import digest_of
from fct_jax.storage.files import new_directory
from fct_jax.storage.ids import find_rows, first_ten
from fct_jax.upgrade.checks.guards import (
    as_found,
    check_gallery_fits,
    check_known_pairs,
    check_space,
    check_vectors,
    new_space,
)
from fct_jax.upgrade.galleries.base import Gallery, open_gallery
from fct_jax.upgrade.maps.loading import load_map
from fct_jax.upgrade.maps.map import Map
from fct_jax.upgrade.migration.budget import Forecast, check_budget, cut, forecast
from fct_jax.upgrade.migration.probe import Probe
from fct_jax.upgrade.ways import find_way

SHARED = ("probe", "serve", "batch_size", "seed", "id_column", "vector_column")


@dataclasses.dataclass(frozen=True)
class Plan:
    """The items to re-embed, first item first.

    ids (K,), rows (K,) int64: of the gallery; description: what ``plan.json`` holds.
    """

    ids: np.ndarray
    rows: np.ndarray
    description: dict

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def digest(self) -> str:
        """Names the plan: its rows in their order."""
        return digest_of(self.rows)


def plan_command(config, workdir) -> Plan:
    """The command: `plan` with the values of ``fct_jax.config.upgrade``."""
    configs.check(config)
    gallery, map = opened(config)
    return _checked_plan(config, workdir, gallery, map)


def plan(map, gallery, workdir, **settings) -> Plan:
    """Writes ``WORKDIR/plan``: ids.npy, rows.npy, uncertainty.npy (of the gallery), plan.json.

    Args:
      map: a Map or its directory.
      gallery: path of the old gallery, as of `open_gallery`.
      workdir: the upgrade's directory.
      settings: order, traffic, budget_items, budget_money, target_quality, items_per_second,
        cost_per_1000, probe, serve, batch_size, seed, id_column, vector_column, as in
        ``fct_jax.config.upgrade``.

    Raises:
      UserError: there is a plan already, or the gallery, the map or the settings do not fit.
    """
    config = configured("plan", map, gallery, settings)
    return _checked_plan(config, workdir, *opened(config, map))


def check_settings(config) -> None:
    """Of the plan, before anything long is begun. Raises UserError."""
    find_order(config.plan.order)
    find_way(config.serve)
    if config.batch_size < 1:
        raise UserError(f"config.batch_size must be 1 or more, not {config.batch_size}")
    check_budget(config.plan)


def _checked_plan(config, workdir, gallery: Gallery, map) -> Plan:
    check_settings(config)
    folder = Path(workdir) / "plan"
    if folder.exists():
        raise UserError(f"{folder} exists already; nothing was overwritten")
    check_gallery_fits(gallery, map)
    with Bar("checking vectors", len(gallery), "vectors") as bar:
        check_vectors(gallery, bar.advance)
    check_known_pairs(gallery, map)
    return make_plan(config, workdir, gallery, map, open_probe(config, map))


def make_plan(config, workdir, gallery: Gallery, map, probe: Probe | None) -> Plan:
    """`plan` of a gallery that was checked."""
    weights = _traffic(config.plan.traffic, gallery) if config.plan.traffic else None
    asked = find_order(config.plan.order)
    if "uncertainty" in asked.needs and not map.has_uncertainty and weights is None:
        raise UserError(
            f"the map ({map.method}) gives no uncertainty to order by; "
            "take config.plan.order=random, or give config.plan.traffic"
        )
    rows = None if probe is None else probe.rows(gallery)
    uncertainty = _uncertainties(gallery, map, config.batch_size)
    order = ranked(asked, uncertainty, weights, config.seed)
    found = forecast(
        order,
        uncertainty,
        map.has_uncertainty,
        weights,
        probe,
        rows,
        map,
        config.serve,
        gallery,
    )
    items, reason = cut(found, len(order), config.plan)
    rows = order[:items]
    made = Plan(
        gallery.ids[rows],
        rows,
        {
            "gallery": gallery.name,
            "count": len(gallery),
            "gallery_ids": digest_of(gallery.ids),
            "map": map.fingerprint,
            "order": config.plan.order,
            "serve": config.serve,
            "traffic": config.plan.traffic or None,
            "items": items,
            "cut": reason,
            "cost_per_1000": config.plan.cost_per_1000,
            "items_per_second": config.plan.items_per_second,
            "forecast": dataclasses.asdict(found),
        },
    )
    with new_directory(Path(workdir) / "plan") as folder:
        np.save(folder / "ids.npy", made.ids)
        np.save(folder / "rows.npy", made.rows)
        np.save(folder / "uncertainty.npy", uncertainty)
        (folder / "plan.json").write_text(json.dumps(made.description, indent=2) + "\n")
    _show(made, found)
    return made


def read_plan(workdir, gallery: Gallery, map) -> Plan:
    """The plan in a directory. Raises UserError where it is of another gallery or map."""
    folder = Path(workdir) / "plan"
    try:
        description = json.loads((folder / "plan.json").read_text())
        ids = np.load(folder / "ids.npy", allow_pickle=False)
        rows = np.load(folder / "rows.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"the plan in {folder} cannot be read: {error}") from None
    for what, planned, ours in (
        ("gallery", description["gallery_ids"], digest_of(gallery.ids)),
        ("map", description["map"], map.fingerprint),
    ):
        if planned != ours:
            raise UserError(f"the plan in {folder} is of another {what} ({planned}, not {ours})")
    if not np.array_equal(gallery.ids[rows], ids):
        raise UserError(f"the plan in {folder} is damaged: its rows and ids differ")
    return Plan(ids, rows, description)


def opened(config, map=None) -> tuple:
    """(gallery, map) of a config; ``map``: a Map instead of its directory. Raises UserError."""
    if not config.gallery:
        raise UserError("config.gallery is empty")
    gallery = open_gallery(
        config.gallery, id_column=config.id_column, vector_column=config.vector_column
    )
    if isinstance(map, Map):
        return gallery, map.forward().for_dim(gallery.dim)
    if not config.map:
        raise UserError("config.map is empty; give a directory that `fit` made")
    return gallery, load_map(config.map).forward().for_dim(gallery.dim)


def configured(section: str, map, gallery, settings: dict) -> ConfigDict:
    """The config of keyword arguments, which are keys of a section or shared ones."""
    config = configs.upgrade()
    config.gallery, config.map = str(gallery), "" if isinstance(map, Map) else str(map)
    for key, value in settings.items():
        if key in config[section]:
            config[section][key] = value
        elif key in SHARED:
            config[key] = str(value) if key == "probe" else value
        else:
            raise unknown(f"setting of upgrade.{section}", key, [*config[section], *SHARED])
    return config


def open_probe(config, map) -> Probe | None:
    """The probe set of a config, or None. Raises UserError where it is of another space."""
    if not config.probe:
        return None
    probe = Probe(config.probe, map.metric)
    if probe.new.shape[1] != map.dim_out:
        raise UserError(
            f"{config.probe} has dimension {probe.new.shape[1]}; the map's new one is {map.dim_out}"
        )
    # Queries may well have a prefix of their own.
    query_meta = {k: v for k, v in probe.query_meta.items() if k != "prefix"}
    for part, meta, vectors in (("new", probe.meta, probe.new), ("query", query_meta, probe.query)):
        check_space(f"{config.probe}/{part}", as_found(meta, vectors), new_space(map), "new")
    return probe


def ranked(order: str | Order, uncertainty: np.ndarray, weights, seed: int) -> np.ndarray:
    """Return the rows in the order of re-embedding, (N,) int64.

    The traffic ``weights`` (N,), where given, multiply the error that each item's order is by.
    """
    order = find_order(order)
    if weights is not None and order.log_gain is not None:
        order = times_traffic(order)
    return order.rank(Items(len(uncertainty), seed, uncertainty=uncertainty, traffic=weights))


def _uncertainties(gallery: Gallery, map, batch_size: int) -> np.ndarray:
    """Log-variance of every row, (N,)."""
    uncertainty = np.zeros(len(gallery), np.float32)
    if not map.has_uncertainty:
        return uncertainty
    row = 0
    with Bar("uncertainty", len(gallery), "vectors") as bar:
        for ids, vectors in gallery.blocks(16 * batch_size):
            for _, log_variance in map.blocks(vectors, batch_size):
                uncertainty[row : row + len(log_variance)] = log_variance
                row += len(log_variance)
            bar.advance(len(ids))
    if np.isnan(uncertainty).any():
        missing = first_ten(gallery.ids[np.isnan(uncertainty)])
        raise UserError(f"the map gives no uncertainty (NaN) for {missing}")
    return uncertainty


def _traffic(path, gallery: Gallery) -> np.ndarray:
    """Weight of each row, (N,) float64: 0 for ids that the file does not name."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"config.plan.traffic={path} cannot be read: {error}") from None
    if found.dtype.names is None or set(found.dtype.names) != {"id", "weight"}:
        raise UserError(
            f"config.plan.traffic={path} must be a structured .npy array with the fields "
            f"'id' and 'weight', not {found.dtype}"
        )
    given = found["weight"].astype(np.float64)
    if not (np.isfinite(given) & (given >= 0)).all() or not given.any():
        raise UserError(f"config.plan.traffic={path}: weights must be finite, ≥ 0 and not all 0")
    rows = find_rows(gallery.ids, found["id"])
    if (rows < 0).all():
        raise UserError(f"config.plan.traffic={path}: none of its ids is in {gallery.name}")
    if (rows < 0).any():
        console.print(f"traffic: {first_ten(found['id'][rows < 0])} not in the gallery, left out")
    weights = np.zeros(len(gallery))
    np.add.at(weights, rows[rows >= 0], given[rows >= 0])
    return weights


def _show(made: Plan, found: Forecast) -> None:
    """The forecast as a table, of the columns that are known."""
    described = made.description
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
    table = Table(title=f"{len(made):,} of {described['count']:,} items: {described['cut']}")
    for heading in columns:
        table.add_column(heading, justify="right")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    console.print(table)
