"""The forecast of quality by the re-embedded share, and the number of items in a budget."""

import dataclasses
import itertools

import numpy as np

from fct_jax.errors import UserError
from fct_jax.storage import spilled
from fct_jax.upgrade.checks.guards import sound, without
from fct_jax.upgrade.ways import find_way

_STEPS = 20


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Gains of re-embedding the first items of an order, for some numbers of items.

    Attributes:
      items, share: numbers of items, and shares of the gallery, from none to all.
      error_left: expected squared error of the vectors that are still translated, weighted by
        traffic, relative to the start; None if the map gives no uncertainty.
      measure, quality: measure of the probe set and its values, None without a probe.
      way: way of serving of the forecast quality.
    """

    items: list[int]
    share: list[float]
    error_left: list[float | None]
    measure: str | None = None
    quality: list[float] | None = None
    way: str = "translated"

    def at(self, items: int) -> float | None:
        """Forecast the quality once ``items`` items are re-embedded."""
        return None if self.quality is None else float(np.interp(items, self.items, self.quality))


def forecast(
    order, uncertainty, has_uncertainty: bool, weights, probe, rows, mapping, way: str, gallery
) -> Forecast:
    """Return the forecast for an order (N,) of rows of a gallery with a way of serving.

    uncertainty: (N,) log-variances; weights: (N,) traffic, or None; probe: the probe set, or None;
    rows: (m,) rows of the probe's items in the gallery.
    """
    count = len(order)
    items = np.unique(np.linspace(0, count, _STEPS + 1).astype(np.int64))
    left = [None] * len(items)
    if has_uncertainty:
        left = _error_left(order, uncertainty, weights, items)
    share = [float(i / count) for i in items]
    if probe is None:
        return Forecast(items.tolist(), share, left)
    place = places(order, rows)  # of each probe item in the order
    own, old = place, gallery.rows(rows)
    old = without(old, sound(old))
    served = find_way(way)
    mixed = [None] * len(items)
    if served.needs_translated:
        translated, _ = mapping.transform(old)
        mixed = (np.where(own[:, None] < i, probe.new, translated) for i in items)
    if served.one_index:
        quality = [probe.quality(vectors) for vectors in mixed]
    else:
        metric = gallery.meta.get("metric", probe.metric)
        quality = [
            probe.served(served, old, probe.new, own < i, metric, vectors)
            for i, vectors in zip(items, mixed, strict=True)
        ]
    return Forecast(items.tolist(), share, left, probe.measure, quality, way)


def _error_left(order, uncertainty, weights, items: np.ndarray) -> list[float]:
    """Return the share of the expected squared error that is left after ``items`` (k,) items."""
    # The error is relative to the largest, so that the exponential cannot overflow.
    largest = max(float(uncertainty[part].max()) for part in spilled.blocks(len(order)))
    total, done = 0.0, [0.0]
    for part in (slice(*ends) for ends in itertools.pairwise(items.tolist())):
        for some in spilled.blocks(part.stop - part.start):
            taken = order[part][some]
            error = np.exp(uncertainty[taken].astype(np.float64) - largest)
            total += float((error if weights is None else error * weights[taken]).sum())
        done.append(total)
    return [1 - d / total for d in done]


def places(order: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the place of each of some rows (m,) in an order (N,) of all rows, (m,) int64."""
    sorted_, back = np.unique(rows, return_inverse=True)
    found = np.empty(len(sorted_), np.int64)
    for part in spilled.blocks(len(order)):
        near = np.searchsorted(sorted_, order[part])
        near[near == len(sorted_)] = 0
        here = np.flatnonzero(sorted_[near] == order[part])
        found[near[here]] = part.start + here
    return found[back]


def check_budget(wanted) -> None:
    """Check the budgets of `planning.Wanted`. Raises UserError for impossible values."""
    for key in (
        "budget_items",
        "budget_money",
        "target_quality",
        "cost_per_1000",
        "cost_per_core_hour",
    ):
        value = getattr(wanted, key)
        if value is not None and not 0 <= value < np.inf:
            raise UserError(f"{key} must be 0 or more, not {value}")
    if wanted.budget_money is not None and not wanted.cost_per_1000:
        raise UserError("budget_money needs cost_per_1000")


def cut(found: Forecast, count: int, wanted) -> tuple[int, str]:
    """Return the number of items to re-embed, by the smallest budget, and the reason.

    Raises UserError for a target that is never reached.
    """
    limits = [(count, "no budget: all items")]
    if wanted.budget_items is not None:
        limits.append((int(wanted.budget_items), f"budget of {wanted.budget_items:,} items"))
    if wanted.budget_money is not None:
        # A rounding error must not cost an item.
        affordable = int(wanted.budget_money / wanted.cost_per_1000 * 1000 + 1e-6)
        limits.append((affordable, f"budget of {wanted.budget_money:g}"))
    if wanted.target_quality is not None:
        limits.append(_reaching(found, wanted.target_quality))
    return min(limits, key=lambda limit: limit[0])


def _reaching(found: Forecast, target: float) -> tuple[int, str]:
    if found.quality is None:
        raise UserError("target_quality needs a probe on which quality is measured")
    quality = np.asarray(found.quality)
    if quality.max() < target:
        raise UserError(
            f"target_quality={target} is never reached: the forecast "
            f"{found.measure} goes from {quality[0]:.3f} to {quality[-1]:.3f}, "
            f"at most {quality.max():.3f}"
        )
    first = int(np.argmax(quality >= target))
    items = found.items[first]
    if first:
        low, high = quality[first - 1], quality[first]
        gap = items - found.items[first - 1]
        items = found.items[first - 1] + int(np.ceil(gap * (target - low) / (high - low)))
    return items, f"forecast {found.measure} ({found.way}) of {target:g}"
