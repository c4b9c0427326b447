"""Plans for a store: ids on disk in the order of re-embedding, and a forecast from a sample.

Planning takes one pass over the store. Memory holds a batch, and 8 bytes per item for sorting.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.evaluate.orders import Items, Order
from fct_jax.runtime.progress import Bar
from fct_jax.storage.files import new_directory
from fct_jax.storage.ids import Finder
from fct_jax.upgrade.checks.guards import sound, without
from fct_jax.upgrade.migration.budget import cut, forecast
from fct_jax.upgrade.migration.planning import Wanted, order_of, ranked, settings_of, show
from fct_jax.upgrade.migration.traffic import load_traffic
from fct_jax.upgrade.stores.base import Store
from fct_jax.upgrade.stores.id_file import IdFile
from fct_jax.upgrade.stores.samples import Drawn
from fct_jax.upgrade.stores.screen import Screen
from fct_jax.upgrade.ways.judgements import of_kind

_MOST = 1 << 32  # most items, because a row's number is the lower half of its 64-bit sort key
_BLOCK = 1 << 16
# Facts that an order may use. Scores are computed batch by batch, so it must not compare items.
_NEEDS = frozenset({"uncertainty", "traffic", "old"})


@dataclasses.dataclass(frozen=True)
class StorePlan:
    """The items of a store to re-embed, first item first.

    Attributes:
      ids: an `IdFile`.
      digest: fingerprint of ids and order.
      description: contents of ``plan.json``.
    """

    ids: IdFile
    digest: str
    description: dict

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, folder: Path, kind: str, description: dict) -> "StorePlan":
        """Open the ids in a folder."""
        digest = hashlib.sha256()
        for path in sorted(Path(folder).iterdir()):
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return cls(IdFile(folder, kind), digest.hexdigest()[:16], description)


class _Traffic:
    """Weights of items by id; items that the file does not name have weight 0."""

    def __init__(self, path, integers: bool):
        """Read a file; ``integers``: whether the store's ids are integers, not text."""
        ids, weights = load_traffic(path)
        ids, kept = of_kind(ids, integers)
        known, place = np.unique(ids, return_inverse=True)
        self._weights = np.append(np.bincount(place, weights[kept]), 0.0)  # last: items not named
        self._find = Finder(known)

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        return self._weights[self._find(ids)]


def make_store_plan(
    folder: Path, store: Store, mapping, drawn: Drawn, probe, wanted: Wanted, screen: Screen
) -> StorePlan:
    """Make a plan in a new folder: the ids in their order, and plan.json.

    Args:
      drawn: a sample of the store with the probe's items, for the forecast.
      screen: checks the rows if the order reads vectors. Items with unusable vectors then come
        first in the plan.

    Raises UserError if the order compares items with each other, or a target is never reached.
    """
    traffic = None if wanted.traffic is None else _Traffic(wanted.traffic, store.id_kind == "int")
    asked = order_of(wanted, mapping, traffic is not None)
    if not _NEEDS.issuperset(asked.needs) or "×" in asked.name:
        raise UserError(
            f"order {asked.name!r} cannot be used for stores, whose items are scored one by one: "
            "use random, traffic, uncertainty or certainty, the latter two also with traffic"
        )
    found = _forecast(asked, drawn, mapping, probe, traffic, wanted)
    with new_directory(folder) as partial:
        everything, count = (
            partial / "all",
            _order_all(partial, store, mapping, asked, traffic, wanted.seed, screen),
        )
        whole = _scaled(found, len(drawn), count)
        items, reason = cut(whole, count, wanted)
        keys = np.fromfile(partial / "keys.bin", "<u8")
        keys.sort()
        ids, planned = IdFile(everything, store.id_kind), IdFile(partial / "ids", store.id_kind)
        for start in range(0, items, _BLOCK):
            rows = keys[start : min(start + _BLOCK, items)] & np.uint64(_MOST - 1)
            planned.append(ids[rows.astype(np.int64)])
        planned.sync()
        description = {
            "gallery": str(store.uri),
            "id_kind": store.id_kind,
            "count": count,
            **settings_of(wanted, asked, mapping, items, reason),
            # An order that needs no vectors reads none; `apply` then checks them.
            "checked": {"bad": len(screen.bad) if _reads_vectors(asked) else None},
            "forecast": dataclasses.asdict(whole),
            "forecast_by": f"a sample of {len(drawn):,}",
        }
        for path in everything.iterdir():
            path.unlink()
        everything.rmdir()
        (partial / "keys.bin").unlink()
        (partial / "plan.json").write_text(json.dumps(description, indent=2) + "\n")
    show(description, whole)
    return read_store_plan(folder, store, mapping)


def read_store_plan(folder: Path, store: Store, mapping) -> StorePlan:
    """Read the plan in a directory. Raises UserError if it is for another store or map."""
    try:
        description = json.loads((folder / "plan.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"the plan in {folder} cannot be read: {error}") from None
    for what, planned, ours in (
        ("store", description["gallery"], str(store.uri)),
        ("map", description["map"], mapping.fingerprint),
    ):
        if planned != ours:
            raise UserError(f"the plan in {folder} is for another {what} ({planned}, not {ours})")
    made = StorePlan.of(folder / "ids", store.id_kind, description)
    if len(made) != description["items"]:
        raise UserError(f"the plan in {folder} is damaged: it has {len(made)} ids")
    return made


def _order_all(folder: Path, store, mapping, order: Order, traffic, seed: int, screen) -> int:
    """Write every id to ``all``, and its sort key with its number to ``keys.bin``."""
    ids, count, after = IdFile(folder / "all", store.id_kind), 0, None
    sees = _reads_vectors(order)
    with Bar("planning", store.count(), "vectors") as bar, (folder / "keys.bin").open("wb") as file:
        while len(batch := store.page(after, store.batch_rows, vectors=sees)):
            if count + len(batch) > _MOST:
                raise UserError(f"{store.uri}: a plan can have at most {_MOST:,} items")
            weights = None if traffic is None else traffic(batch.ids)
            score = _scores(order, batch, mapping, weights, seed + count)
            if sees:
                _, bad = screen.take(batch)
                score[np.isin(batch.ids, [one for one, _ in bad])] = np.inf
            rows = np.arange(count, count + len(batch), dtype=np.uint64)
            file.write((_descending(score) << np.uint64(32) | rows).astype("<u8").tobytes())
            ids.append(batch.ids)
            count, after = count + len(batch), batch.last
            bar.advance(len(batch))
    return count


def _reads_vectors(order: Order) -> bool:
    return bool({"uncertainty", "old"} & set(order.needs))


def _scores(order: Order, batch, mapping, weights, seed: int) -> np.ndarray:
    """Return the scores (n,) that an order gives a batch, times the traffic if it is given."""
    uncertainty = None
    if "uncertainty" in order.needs:
        good = sound(batch.vectors)
        _, uncertainty = mapping.transform(without(batch.vectors, good))
        if uncertainty is None:
            uncertainty = np.zeros(len(batch), np.float32)
    items = Items(len(batch), seed, uncertainty=uncertainty, traffic=weights, old=batch.vectors)
    score = np.asarray(order.score(items), np.float64)
    if not order.needs:  # random: ranks 0..n-1, and batches have different sizes
        score = score / len(batch)
    if weights is not None and order.log_gain is not None:
        with np.errstate(divide="ignore"):
            score = order.log_gain(score) + np.log(weights)
    if np.isnan(score).any():
        raise UserError(
            f"order of re-embedding {order.name!r}: the score of id "
            f"{batch.ids[int(np.argmax(np.isnan(score)))]} is NaN"
        )
    return score


def _descending(score: np.ndarray) -> np.ndarray:
    """Return 32-bit numbers (n,) uint64 whose ascending order is the scores' descending order."""
    bits = np.asarray(score + 0.0, np.float32).view(np.uint32)
    ascending = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return (~ascending).astype(np.uint64)


def _forecast(asked: Order, drawn: Drawn, mapping, probe, traffic, wanted: Wanted):
    """Return the forecast that an order gives for the sample."""
    vectors = drawn.read(0, len(drawn))
    _, uncertainty = mapping.transform(without(vectors, sound(vectors)))
    has = uncertainty is not None
    uncertainty = uncertainty if has else np.zeros(len(drawn), np.float32)
    weights = None if traffic is None else traffic(drawn.ids)
    if weights is not None and not weights.any():
        weights = np.ones(len(drawn))  # no item of the sample has traffic
    needs = "old" in asked.needs
    order = (
        asked.rank(Items(len(drawn), wanted.seed, old=vectors, uncertainty=uncertainty))
        if needs
        else ranked(asked, uncertainty, weights, wanted.seed)
    )
    rows = None if probe is None else probe.rows(drawn)
    return forecast(order, uncertainty, has, weights, probe, rows, mapping, wanted.serve, drawn)


def _scaled(found, sampled: int, count: int):
    """Scale a forecast for the sample to the whole store."""
    items = [round(items * count / sampled) for items in found.items]
    return dataclasses.replace(found, items=items)
