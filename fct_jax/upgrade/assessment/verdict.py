"""The verdict: whether to upgrade, how, and how far, or that the evidence cannot tell."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import ndtri, stdtrit

from fct_jax.evaluate.orders import find_order
from fct_jax.upgrade.assessment.world import WHOLE, Spot
from fct_jax.upgrade.ways import WAYS, Way, simplicity

ADVICE = ("upgrade", "keep", "cannot tell")
MARGIN = 0.01  # smallest gain of the target that is worthwhile: one point
_HEADROOM = 0.03  # distance to the best possible value below which no model can look better
_ENOUGH = 0.95  # sufficient share of the gain that a path reaches
_CERTAIN = 0.99  # probability that no gain called certain is below its bound
_FEWEST_CHANGED = 10  # smallest number of changed queries for a certain gain
_HALF_WIDTHS = (0.01, 0.02, 0.05)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The advice to the user.

    Attributes:
      advice: one of `ADVICE`.
      text: the advice in a few sentences.
      way, order, share: the advised path, if any; share is the smallest with 95 % of its gain.
      settings: settings of the way.
      gain: its change of the target against keep, with the 95 % interval.
      needed: {half-width of the interval: number of queries that would give it}.
    """

    advice: str
    text: str
    way: str | None = None
    order: str | None = None
    share: float | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    gain: tuple[float, float, float] | None = None
    needed: Mapping[float, int] = dataclasses.field(default_factory=dict)


class Bootstrap:
    """Percentile intervals of means over queries, from ``resamples`` resamples of the queries.

    Differences are paired: both sides are means over the same draws.
    """

    def __init__(self, queries: int, resamples: int, seed: int, level: float = 0.95):
        rng = np.random.default_rng(seed)
        draws = rng.multinomial(queries, np.full(queries, 1 / queries), size=resamples)
        self._shares = draws / queries
        self._quantiles = (50 - 50 * level, 50 + 50 * level)

    def interval(self, values: np.ndarray) -> tuple[float, float]:
        """Return the interval of the mean of values (Q,)."""
        return self.intervals(values[None])[0]

    def intervals(self, values: np.ndarray) -> list[tuple[float, float]]:
        """Return the interval of the mean of each row of values (n, Q)."""
        ends = np.percentile(values @ self._shares.T, self._quantiles, axis=1)
        return [(float(low), float(high)) for low, high in ends.T]

    def bounds(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return simultaneous lower and upper bounds (n,) of the means of values (n, Q).

        With probability 0.99 none of the n true means is below its lower bound, however large n
        is; likewise for the upper bounds. The largest of the n studentised deviations is
        bootstrapped (Romano and Wolf, Econometrica 2005), and widened like Student's t.
        """
        count = values.shape[1]
        means = values.mean(axis=1)
        error = values.std(axis=1, ddof=1) / count**0.5
        used = error > 0
        if not used.any():
            return means, means
        deviation = (values[used] @ self._shares.T - means[used, None]) / error[used, None]
        t = stdtrit(count - 1, _CERTAIN) / ndtri(_CERTAIN)
        below = t * np.quantile(deviation.max(axis=0), _CERTAIN)
        above = t * np.quantile(-deviation.min(axis=0), _CERTAIN)
        return means - below * error, means + above * error


def queries_needed(variance: float) -> dict[float, int]:
    """Return the numbers of queries that give the target 95 % intervals of some half-widths.

    variance: variance over queries of the difference of two ways.
    """
    return {w: max(20, int(np.ceil(1.96**2 * variance / w**2))) for w in _HALF_WIDTHS}


@dataclasses.dataclass(frozen=True)
class Option:
    """A path that could be advised: a way, an order, and the target at each share (points, Q)."""

    way: Way | None  # None: re-embed everything before switching
    order: str
    shares: tuple[float, ...]
    values: np.ndarray

    @property
    def simplicity(self) -> int:
        """Return the place among equals; the way that needs least of the service comes first."""
        return simplicity(self.way.name) if self.way else len(WAYS) + 1


def options_of(spots: Sequence[Spot], measured: Mapping, target: str) -> list[Option]:
    """Group the points into paths, with the target of each query."""
    paths: dict[tuple, list[Spot]] = {}
    for spot in spots:
        paths.setdefault((spot.way.label, spot.order), []).append(spot)
    return [
        Option(
            on[0].way,
            on[0].order,
            tuple(spot.share for spot in on),
            np.stack([measured[spot.name][target] for spot in on]),
        )
        for on in paths.values()
    ]


def recommend(options: list[Option], keep: np.ndarray, whole: np.ndarray, bootstrap) -> Verdict:
    """Return the verdict from the target's value for each query.

    Args:
      options: `Option`s.
      keep: (Q,) values of the old model alone.
      whole: (Q,) values of the new model alone.
      bootstrap: a `Bootstrap` over the queries.

    *Upgrade* needs a path on which no point is below keep beyond its interval, with a point that
    is above keep by a simultaneous bound over all points. The path with the highest bound leads.
    Among the paths that may well bring 95 % of its gain and have at least half of its bound, the
    one that re-embeds the fewest items in advance is taken, then the simplest. *Keep* needs
    evidence, too: the new model is clearly worse and no way promises a point, or no way can
    gain a point although there is room for one. Otherwise the verdict is *cannot tell*.
    """
    options = [*options, Option(None, "", (1.0,), whole[None])]
    changes = [option.values - keep for option in options]
    lows, highs = bootstrap.bounds(np.concatenate(changes))
    starts = np.cumsum([0, *(len(change) for change in changes)])
    low, high = ([bound[a:b] for a, b in itertools.pairwise(starts)] for bound in (lows, highs))
    means = [change.mean(axis=1) for change in changes]
    points = {}
    for i, change in enumerate(changes):
        sure = (low[i] > 0) & (means[i] >= MARGIN)
        sure &= (change != 0).sum(axis=1) >= _FEWEST_CHANGED
        if sure.any() and all(bootstrap.interval(point)[1] >= 0 for point in change):
            enough = sure & (means[i] >= _ENOUGH * means[i].max())
            points[i] = int(np.argmax(enough) if enough.any() else np.argmax(low[i]))
    if not points:
        return _no_upgrade(options, changes, means, high, bootstrap, float(keep.mean()))
    best = _best(points, options, changes, low, bootstrap)
    found = _upgrade(options[best], changes[best], points[best], bootstrap)
    alone = _compared(changes[-1][0], bootstrap)
    if alone[1] > 0:
        return found
    text = (
        f"{found.text} Not the new model alone brings this, but the way of serving: re-embedding "
        f"all items gives {_said(alone)}."
    )
    return dataclasses.replace(found, text=text)


def _best(points: dict[int, int], options, changes, low, bootstrap) -> int:
    """Return the option with the highest bound, or one that needs less and gains nearly as much.

    points: option -> its point to compare.
    """
    highest = max(points, key=lambda i: low[i][points[i]])
    leader, bound = changes[highest][points[highest]], low[highest][points[highest]]

    def asks(i: int) -> tuple:
        """Return the needs of an option, to be compared: items to re-embed, then simplicity."""
        option = options[i]
        return option.shares[points[i]], option.simplicity, -changes[i][points[i]].mean()

    alike = [
        i
        for i, point in points.items()
        if low[i][point] >= bound / 2
        and bootstrap.interval(changes[i][point] - _ENOUGH * leader)[1] >= 0
    ]
    return min(alike, key=asks)


def _upgrade(option: Option, change, point: int, bootstrap) -> Verdict:
    share, gain = option.shares[point], _compared(change[point], bootstrap)
    needed = queries_needed(float(change[point].var()))
    if option.way is None:
        text = (
            "Upgrade: no half-migrated gallery is certainly better than today's, so keep serving "
            "the old one, re-embed all items beside it, and switch when that is done "
            f"({_said(gain)})."
        )
        return Verdict("upgrade", text, WHOLE, None, share, {}, gain, needed)
    way = option.way
    text = _advice(way, option.order, share, gain)
    order = option.order or None
    return Verdict("upgrade", text, way.name, order, share, dict(way.settings), gain, needed)


def _no_upgrade(options, changes, means, high, bootstrap, today: float) -> Verdict:
    best = max(range(len(options)), key=lambda i: means[i].max())
    point = int(np.argmax(means[best]))
    gain = _compared(changes[best][point], bootstrap)
    whole_gain = _compared(changes[-1][0], bootstrap)
    needed = queries_needed(float(changes[best][point].var() or changes[-1][0].var()))
    promised = max(float(m.max()) for m in means)
    bounded = max(float(h.max()) for h in high)
    if_all = f"re-embedding all items would give {_said(whole_gain)}"
    if whole_gain[2] < 0 and promised < MARGIN:
        text = f"Don't upgrade: the new model is worse on these queries; {if_all}."
        return Verdict("keep", text, gain=whole_gain, needed=needed)
    if 1 - today < _HEADROOM:
        text = (
            f"Cannot tell: this test is too easy, since today's gallery already reaches "
            f"{100 * today:.1f} of 100; {if_all}. Use a larger gallery or harder queries."
        )
        return Verdict("cannot tell", text, gain=gain, needed=needed)
    if bounded < MARGIN:
        text = (
            "Don't upgrade: no way of serving can gain more than "
            f"{100 * max(bounded, 0):.1f} points; {if_all}."
        )
        return Verdict("keep", text, gain=whole_gain, needed=needed)
    label = options[best].way.label if options[best].way else WHOLE
    text = (
        f"Cannot tell: the most promising way ({label}) gives {_said(gain)}, and no way is both "
        f"safe and certainly better; {if_all}. {_more(needed)}"
    )
    return Verdict("cannot tell", text, gain=gain, needed=needed)


def _compared(change: np.ndarray, bootstrap) -> tuple[float, float, float]:
    return float(change.mean()), *bootstrap.interval(change)


def _advice(way: Way, order: str, share: float, gain) -> str:
    how = f"Upgrade ({way.label}): {way.text}"
    if way.done is None:
        return f"{how}. No item needs to be re-embedded in advance ({_said(gain)})."
    if share == 0:
        return f"{how}. No item needs to be re-embedded ({_said(gain)})."
    return f"{how}; re-embed {100 * share:.0f} % {find_order(order).text} ({_said(gain)})."


def _more(needed: Mapping[float, int]) -> str:
    said = ", ".join(f"±{100 * w:g} points with {n:,}" for w, n in needed.items())
    return f"Judged queries that would narrow the interval: {said}."


def _said(gain) -> str:
    return (
        f"{100 * gain[0]:+.1f} points, 95 % interval {100 * gain[1]:+.1f} to {100 * gain[2]:+.1f}"
    )


def without_keep(verdict: Verdict) -> Verdict:
    """Return the verdict where today's quality is unknown, for lack of queries by the old model.

    verdict: that of `recommend` against the translated gallery in place of today's. Its way is
    kept, but whether it is better than today cannot be said.
    """
    if verdict.advice == "keep":
        found = f"No way is surely better than the translated gallery. ({verdict.text})"
    else:
        found = f"Compared with the translated gallery: {verdict.text}"
    text = (
        "Cannot tell whether any way is better than today: there are no queries by the old model "
        f"(query_old). {found}"
    )
    return dataclasses.replace(verdict, advice="cannot tell", text=text)


def without_evidence(overlap: np.ndarray, how: str, both: bool = True) -> Verdict:
    """Return the verdict without any evidence of relevance.

    overlap: (Q,) share of the new model's ten nearest that are also among the old model's; or, if
    not ``both`` models were asked, among the translated gallery's. how: describes the queries.

    The number of judged queries is that for recall@10, if the relevant item is equally likely to be
    any of the items that the two models find. If c of their ten results are common, exactly one
    model finds it with probability 2 (10 − c) / (20 − c), which is the variance of the difference.
    """
    common = 10 * overlap
    needed = queries_needed(float(np.mean(2 * (10 - common) / (20 - common))))
    found = "Both models agree" if both else "The translated gallery and the new model agree"
    text = (
        f"Cannot tell: nothing says which items are relevant to {how}, so the new model may be "
        f"better or worse. {found} on {100 * overlap.mean():.0f} % of the ten nearest. "
        "To settle it, give labels, groups, or judged pairs (near-duplicates or clicks), or "
        f"judge 50 to 200 queries by hand. {_more(needed)}"
    )
    return Verdict("cannot tell", text, needed=needed)
