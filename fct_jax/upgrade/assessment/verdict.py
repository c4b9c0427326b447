"""Which way of upgrading to take, how far, or none at all."""

import dataclasses

import numpy as np

from fct_jax.evaluate.orders import find_order
from fct_jax.upgrade.ways import find_way, simplicity

_ENOUGH = 0.95  # of the gain that a path reaches


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What to do.

    action: "keep", "upgrade" or "re-embed, then switch".
    way, order, share: of the path, where there is one; share is the least with 95 % of its gain.
    gain: what that changes in the target against keep, with its confidence interval.
    text: the same in a sentence or two.
    """

    action: str
    text: str
    way: str | None = None
    order: str | None = None
    share: float | None = None
    gain: tuple[float, float, float] | None = None


class Bootstrap:
    """Percentile intervals of means over queries, the queries drawn anew ``resamples`` times.

    Differences are paired: both sides are means over the same draws.
    """

    def __init__(self, queries: int, resamples: int, seed: int, level: float = 0.95):
        rng = np.random.default_rng(seed)
        draws = rng.multinomial(queries, np.full(queries, 1 / queries), size=resamples)
        self._shares = draws / queries
        self._quantiles = (50 - 50 * level, 50 + 50 * level)

    def interval(self, values: np.ndarray) -> tuple[float, float]:
        """Of the mean of values (Q,)."""
        low, high = np.percentile(self._shares @ values, self._quantiles)
        return float(low), float(high)


def recommend(paths: dict, shares, keep: np.ndarray, whole: np.ndarray, bootstrap) -> Verdict:
    """The verdict from the target's value for each query.

    Args:
      paths: {(way, order): (points, Q)}.
      shares: (points,) re-embedded at each point.
      keep: (Q,) of the old model alone; whole: (Q,) of the new model alone.
      bootstrap: a `Bootstrap` over the queries.

    A path on which some point is below keep, by more than its confidence interval, is out; so is
    one that nowhere is above keep by as much.
    """

    def compared(values):
        return float(np.mean(values - keep)), *bootstrap.interval(values - keep)

    gains = {name: [compared(point) for point in values] for name, values in paths.items()}
    safe = {name for name, found in gains.items() if all(gain[2] >= 0 for gain in found)}
    useful = {name: paths[name] for name in paths if name in safe and max(gains[name])[1] > 0}
    whole_gain = compared(whole)
    if useful:
        way, order = name = _best(useful, bootstrap)
        enough = _ENOUGH * max(gains[name])[0]
        point = next(i for i, gain in enumerate(gains[name]) if gain[0] >= enough)
        share, gain = float(shares[point]), gains[name][point]
        return Verdict("upgrade", _advice(way, order, share, gain), way, order, share, gain)
    if whole_gain[1] > 0:
        return Verdict(
            "re-embed, then switch",
            "No half-migrated gallery is better than today's: keep serving the old one, re-embed "
            f"all items beside it, and switch when that is done ({_said(whole_gain)}).",
            share=1.0,
            gain=whole_gain,
        )
    return Verdict(
        "keep",
        "Don't upgrade: no way of serving is both safe on the way and better than today's beyond "
        f"chance; re-embedding all items would change {_said(whole_gain)}.",
    )


def _best(paths: dict, bootstrap: Bootstrap) -> tuple[str, str]:
    """The highest path on average; of those that the data cannot tell from it the simplest."""
    means = {name: values.mean(axis=0) for name, values in paths.items()}
    highest = max(means, key=lambda name: means[name].mean())
    alike = [n for n in means if bootstrap.interval(means[n] - means[highest])[1] >= 0]
    simplest = min(simplicity(way) for way, _ in alike)
    same_way = [n for n in alike if simplicity(n[0]) == simplest]
    return max(same_way, key=lambda name: means[name].mean())


def _advice(way: str, order: str, share: float, gain) -> str:
    how, by = find_way(way).text, find_order(order).text
    if share == 0:
        return f"Upgrade ({way}): {how}. No item need be re-embedded ({_said(gain)})."
    return f"Upgrade ({way}): {how}; re-embed {100 * share:.0f} % {by} ({_said(gain)})."


def _said(gain) -> str:
    return (
        f"{100 * gain[0]:+.1f} points, 95 % interval {100 * gain[1]:+.1f} to {100 * gain[2]:+.1f}"
    )
