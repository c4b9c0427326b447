"""One point of an assessment: its figures with intervals, its groups, and its cost."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from fct_jax.upgrade.assessment.verdict import Bootstrap
from fct_jax.upgrade.assessment.world import KEEP
from fct_jax.upgrade.ways import Way

_SMALLEST_GROUP = 10  # queries; smaller groups are not evidence


@dataclasses.dataclass(frozen=True)
class Budget:
    """The cost of embedding ``items``, the whole gallery: items per second, price of 1,000."""

    items: int
    items_per_second: float = 0.0
    cost_per_1000: float = 0.0
    currency: str = "USD"

    def of(self, share: float) -> dict:
        """Return {"items", "hours", "cost"} of a re-embedded share; None without speed or price."""
        count = int(share * self.items)
        hours = count / self.items_per_second / 3600 if self.items_per_second else None
        cost = count * self.cost_per_1000 / 1000 if self.cost_per_1000 else None
        return {"items": count, "hours": hours, "cost": cost}


@dataclasses.dataclass(frozen=True)
class Point:
    """One way of serving with a share of the gallery re-embedded.

    Attributes:
      way: "keep", "translate", "re-embed all", or the name of a way of the table on a curve.
      settings: settings of the way.
      order: order of re-embedding; "candidates" if candidates are embedded on demand, "" if
        nothing is re-embedded.
      share: share re-embedded in advance.
      values: every metric, as fractions.
      interval: 95 % interval of the target.
      gain: gain of the target against keep, with its 95 % interval.
      negative_flips: share of all queries whose first result is relevant with keep, but not here.
      groups: {group: target} and their gap, if groups are given.
      budget: items, hours and cost.
      cost: a query's cost in words.
    """

    way: str
    settings: dict
    order: str
    share: float
    values: dict[str, float]
    interval: tuple[float, float]
    gain: tuple[float, float, float]
    negative_flips: float
    groups: dict | None
    budget: dict
    cost: str

    @property
    def label(self) -> str:
        """Return the way with its settings."""
        said = (f"{v:g}" if isinstance(v, float) else str(v) for v in self.settings.values())
        return " ".join([self.way, *said])

    @property
    def path(self) -> tuple[str, str]:
        """Return the way with its settings, and the order."""
        return self.label, self.order


def points_of(
    measured: Mapping[tuple[str, str, float], dict[str, np.ndarray]],
    ways: Mapping[tuple, Way],
    target: str,
    bootstrap: Bootstrap,
    budget: Budget,
    groups: np.ndarray | None,
    baseline: tuple[str, str, float],
) -> list[Point]:
    """Return the points of what was measured: {(way, order, share): {metric: (Q,)}}.

    ways: the ways of those names that are in the table; groups: (Q,) or None; baseline: the name of
    the point that gains are measured against.
    """
    keep = measured[baseline]
    values = np.stack([of[target] for of in measured.values()])
    changes = values - keep[target]
    intervals, gains = bootstrap.intervals(values), bootstrap.intervals(changes)
    found = []
    for i, ((label, order, share), of) in enumerate(measured.items()):
        way = ways.get((label, order, share))
        flips = (keep["cmc@1"] > 0) & (of["cmc@1"] == 0)
        found.append(
            Point(
                way.name if way else label,
                dict(way.settings) if way else {},
                order,
                share,
                values={metric: float(np.mean(each)) for metric, each in of.items()},
                interval=intervals[i],
                gain=(float(np.mean(changes[i])), *gains[i]),
                negative_flips=float(flips.mean()),
                groups=None if groups is None else group_values(of[target], groups),
                budget=budget.of(share),
                cost=way.cost if way else ("old model" if label == KEEP else "new model"),
            )
        )
    return found


def group_values(values: np.ndarray, groups: np.ndarray) -> dict:
    """Return {"gap": best − worst, "best": [group, value], "worst": …, "values": {group: mean}}.

    Groups of fewer than 10 queries are left out; gap is None if fewer than two groups are left.
    """
    names, counts = np.unique(groups, return_counts=True)
    means = {
        str(name): float(values[groups == name].mean())
        for name, count in zip(names, counts, strict=True)
        if count >= _SMALLEST_GROUP
    }
    if len(means) < 2:
        return {"gap": None, "best": None, "worst": None, "values": means}
    best, worst = max(means, key=means.get), min(means, key=means.get)
    return {
        "gap": means[best] - means[worst],
        "best": [best, means[best]],
        "worst": [worst, means[worst]],
        "values": means,
    }
