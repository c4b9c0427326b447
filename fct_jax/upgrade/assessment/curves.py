"""All points of all curves of an assessment, from scores that are computed once.

The queries are processed in small batches: first their scores with all items, for each pair of
spaces, then the best items at each point. `fct_jax.upgrade.search` gives the same results for a
single point, up to rounding (a test compares them).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fct_jax.evaluate.orders import Items, find_order
from fct_jax.runtime import threads
from fct_jax.runtime.progress import Bar
from fct_jax.upgrade.ways import PAIRS, Asked, Mix, Way, angle_between
from fct_jax.upgrade.ways.calibration import (
    REFERENCE,
    Calibration,
    Tail,
    affine_of,
    fused_factors,
    shifted,
    tail_of,
    tail_size,
    typical_spread,
)
from fct_jax.upgrade.ways.relevance import Relevance, per_query
from fct_jax.upgrade.ways.stages import second_stage, union

if TYPE_CHECKING:
    from fct_jax.upgrade.assessment.tops import Scores

TYPICAL = 256  # queries whose tails define the typical spread
_BLOCK = 1 << 22  # scores of one pair held by one thread
_PLAIN = "plain "  # prefix of pairs of spaces without damping

# names of points outside the table of ways
KEEP, WHOLE = "keep", "re-embed all"
TRANSLATE = "translate"


@dataclasses.dataclass(frozen=True)
class World:
    """The vectors that an assessment searches.

    Attributes:
      items: kind -> (N, D) float32 gallery vectors: "old", "new", "translated".
      queries: kind -> (Q, D) float32: "old", "new", and "bridged" and "common" if they exist.
      relevance: relevance of the Q queries.
      own: (Q,) rows that are not results, or None.
      calibration: calibration on the sample; its spaces and weights hold everywhere.
      sample: (R, do), (R, dn) items outside the gallery that a calibration starts from.
      inside: rows of the gallery that a calibration starts from if there are no other items.
    """

    items: Mapping[str, np.ndarray]
    queries: Mapping[str, np.ndarray]
    relevance: Relevance
    own: np.ndarray | None
    calibration: Calibration
    sample: tuple[np.ndarray, np.ndarray]
    inside: np.ndarray

    @property
    def count(self) -> int:
        """Return the number of gallery items."""
        return len(self.items["old"])


@dataclasses.dataclass(frozen=True)
class Spot:
    """One point to measure: a way with a share of the gallery re-embedded in an order."""

    way: Way
    order: str
    share: float

    @property
    def name(self) -> tuple[str, str, float]:
        return self.way.label, self.order, self.share


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Rows (Q, K) found by a cascade's first stage, and their scores before and after re-ranking.

    Scores are on one scale, and −inf for a row of −1.
    """

    rows: np.ndarray
    old_scores: np.ndarray
    new_scores: np.ndarray


@dataclasses.dataclass(frozen=True)
class _State:
    """A re-embedded share of the gallery, and the items that a calibration then has."""

    migrated: np.ndarray
    columns: np.ndarray

    @property
    def tail(self) -> int:
        return tail_size(len(self.columns))


def spots_of(ways: Sequence[Way], orders: Mapping[str, Sequence[str]], shares) -> list[Spot]:
    """Return the points to measure; orders: way -> names; shares include 0 and 1."""
    found = []
    for way in (variant for row in ways for variant in row.all_variants()):
        if way.done is not None:
            found += [Spot(way, order, share) for order in orders[way.name] for share in shares]
        else:
            # Nothing is re-embedded in advance; a cascade makes vectors on demand.
            found.append(Spot(way, "candidates" if way.reranked else "", 0.0))
    return found


class Curves:
    """Measures points, as the module's docstring describes.

    After `run`, ``candidates`` has the `Candidates` of the cascades, by (way, score).
    """

    def __init__(self, world: World, known: Items, depth: int):
        """Take ``known`` facts of the items for orders, and ``depth``, judged results per query."""
        self._world, self._known = world, known
        self.depth = max(10, min(depth, world.count))
        c = world.calibration
        self._plain = {"old": c.old.damped(0.0, None), "new": c.new.damped(0.0, None)}
        self._plain["translated"] = self._plain["new"]
        self._damped = bool(c.old.damping)
        self.candidates: dict[tuple[str, str], Candidates] = {}
        self._ranked: dict[tuple, dict[int, tuple]] | None = None  # kept by `rankings` only

    @property
    def baseline(self) -> tuple[str, str, float]:
        """Return the name of the point that gains are measured against.

        That is today's gallery, or the translated one if there are no queries by the old model.
        """
        return (KEEP if "old" in self._world.queries else TRANSLATE), "", 0.0

    def run(self, spots: Sequence[Spot]) -> dict[tuple, dict[str, np.ndarray]]:
        """Return {name of a spot: {metric: (Q,)}}, with `KEEP` and `WHOLE`."""
        world, total = self._world, len(self._world.queries["new"])
        states = self._states(spots)
        asked = self._asked()
        size = int(np.clip(_BLOCK // (world.count + len(world.sample[0])), 8, 128))
        blocks = [np.arange(i, min(i + size, total)) for i in range(0, total, size)]
        found: dict[tuple, dict[str, np.ndarray]] = {}
        kept: dict[tuple, list] = {}
        with Bar("assessing", total, "queries") as bar:
            typical = self._typical(states, asked, size) if self._calibrated(spots) else {}
            work = functools.partial(self._measure, spots, states, typical, asked)
            for rows, (values, candidates) in zip(
                blocks, threads.in_order(work, blocks), strict=True
            ):
                for name, metrics in values.items():
                    mine = found.setdefault(name, {m: np.empty(total) for m in metrics})
                    for metric, numbers in metrics.items():
                        mine[metric][rows] = numbers
                for name, parts in candidates.items():
                    kept.setdefault(name, []).append(parts)
                bar.advance(len(rows))
        self.candidates = {
            name: Candidates(*(np.concatenate(part) for part in zip(*parts, strict=True)))
            for name, parts in kept.items()
        }
        return found

    def rankings(self, spots: Sequence[Spot]) -> dict[tuple, tuple[np.ndarray, np.ndarray]]:
        """Return {name of a spot: scores and rows (Q, depth)}, with `KEEP` and `WHOLE`."""
        self._ranked = {}
        self.run(spots)
        blocks, self._ranked = self._ranked, None
        return {
            name: tuple(
                np.concatenate([parts[start][i] for start in sorted(parts)]) for i in (0, 1)
            )
            for name, parts in blocks.items()
        }

    def _judged(self, name: tuple, asked: np.ndarray, found, relevance) -> dict[str, np.ndarray]:
        """Return the metrics of the scores and rows found for the queries in rows ``asked``."""
        if self._ranked is not None:
            self._ranked.setdefault(name, {})[int(asked[0])] = found
        return per_query(found[1], relevance)

    def _states(self, spots) -> dict[tuple[str, float], _State]:
        count = self._world.count
        found = {}
        for order in dict.fromkeys(spot.order for spot in spots if spot.way.done is not None):
            rows = find_order(order).rank(self._known)
            for share in dict.fromkeys(spot.share for spot in spots if spot.order == order):
                if 0 < share < 1:
                    migrated = np.zeros(count, bool)
                    migrated[rows[: int(share * count)]] = True
                    found[order, share] = self._state(migrated)
        found["", 0.0] = self._state(np.zeros(count, bool))
        found["", 1.0] = self._state(np.ones(count, bool))
        return found

    def _state(self, migrated: np.ndarray) -> _State:
        """Return the state in which both models know the sample and all re-embedded items."""
        world = self._world
        start = world.count + np.arange(len(world.sample[0]))
        rest = migrated.copy()
        rest[world.inside] = False
        columns = np.concatenate([start, world.inside, np.flatnonzero(rest)])
        if len(columns) > REFERENCE:
            columns = columns[np.random.default_rng(0).permutation(len(columns))[:REFERENCE]]
        return _State(migrated, np.sort(columns))

    def _calibrated(self, spots) -> bool:
        return any(spot.way.calibrated for spot in spots)

    def _asked(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return pair -> (Q, E) queries and (M, E) items whose inner products are the scores."""
        world = self._world
        queries, items, sample = dict(world.queries), world.items, world.sample
        extra = {"old": sample[0], "new": sample[1]}
        spaces = {"old": world.calibration.old, "new": world.calibration.new}
        found = {}
        for name, (by, of) in PAIRS.items():
            if by not in queries or of not in items:
                continue
            vectors, plain = items[of], self._plain[of]
            if self._damped and name in spaces:
                found[_PLAIN + name] = plain.queries(queries[by]), plain.items(vectors)
            if name in extra and len(extra[name]):
                vectors = np.concatenate([vectors, extra[name]])
            space = spaces.get(name, plain)
            found[name] = space.queries(queries[by]), space.items(vectors)
        return found

    def _scores(self, asked, rows: np.ndarray, pairs=None) -> "Scores":
        from fct_jax.upgrade.assessment.tops import Scores  # late: importing Numba takes a second

        return Scores({name: asked[name][0][rows] @ asked[name][1].T for name in pairs or asked})

    def _own_scores(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores (q,) of queries with themselves as items, old and new."""
        c, queries = self._world.calibration, self._world.queries
        return tuple(
            np.einsum("qe,qe->q", space.queries(v), space.items(v))
            for space, v in ((c.old, queries["old"][rows]), (c.new, queries["new"][rows]))
        )

    def _typical(self, states, asked, size) -> dict[tuple, tuple[float, float, float]]:
        """Return the typical spreads of the old, new and fused tail in each state."""
        total = len(self._world.queries["new"])
        some = typical_queries(total)
        blocks = [some[i : i + size] for i in range(0, len(some), size)]

        def scored(rows):
            return self._scores(asked, rows, ("old", "new")), self._own_scores(rows)

        held = list(threads.in_order(scored, blocks))
        found = {}
        for name, state in states.items():
            tails = [self._two_tails(scores, own, state, (0, 0)) for scores, own in held]
            spreads = tuple(typical_spread([pair[i] for pair in tails]) for i in (0, 1))
            fused = []
            for scores, own in held:
                pair = self._two_tails(scores, own, state, spreads)
                fused.append(self._fused_tail(scores, own, state, pair, 0))
            found[name] = (*spreads, typical_spread(fused))
        return found

    def _two_tails(self, scores: "Scores", own, state: _State, typical) -> list[Tail]:
        return [
            tail_of(scores.largest(Mix({pair: 1.0}), state.columns, state.tail + 1), mine, spread)
            for pair, mine, spread in zip(("old", "new"), own, typical, strict=False)
        ]

    def _fused_tail(self, scores: "Scores", own, state: _State, pair, typical: float) -> Tail:
        a, b = fused_factors(self._world.calibration.weights, *pair)
        largest = scores.largest(Mix({"old": a, "new": b}), state.columns, state.tail + 1)
        both = tail_of(largest, a * own[0] + b * own[1], typical)
        return shifted(both, a, pair[0], b, pair[1])

    def _measure(self, spots, states, typical, asked, rows: np.ndarray):
        """Return {name: {metric: (q,)}} of some queries, and the candidates of cascades."""
        world = self._world
        scores = self._scores(asked, rows)
        own_scores = self._own_scores(rows) if typical else None
        own = np.full(len(rows), -1) if world.own is None else world.own[rows]
        relevance = world.relevance.of(rows)
        affine = {}
        for name, spreads in typical.items():
            pair = self._two_tails(scores, own_scores, states[name], spreads)
            both = self._fused_tail(scores, own_scores, states[name], pair, spreads[2])
            affine[name] = affine_of(world.calibration.weights, *pair, both)
        angle = functools.cache(
            lambda: angle_between(world.queries["old"][rows], world.queries["bridged"][rows])
        )
        none, every = states["", 0.0].migrated, states["", 1.0].migrated

        def judged(name: tuple, left: Mix, done: Mix, migrated) -> dict[str, np.ndarray]:
            ranked = scores.best(left, done, migrated, own, world.count, self.depth)
            return self._judged(name, rows, ranked, relevance)

        plain = {pair: (_PLAIN if self._damped else "") + pair for pair in ("old", "new")}
        ends = self.baseline, (WHOLE, "", 1.0)
        start = plain["old"] if ends[0][0] == KEEP else "translated"
        start, new = Mix({start: 1.0}), Mix({plain["new"]: 1.0})
        found = {
            ends[0]: judged(ends[0], start, start, none),
            ends[1]: judged(ends[1], new, new, every),
        }
        recalled, candidates = {}, {}
        for spot in spots:
            way, share = spot.way, spot.share
            state = (spot.order if 0 < share < 1 else "", share)
            values = affine.get(state)
            now = Asked(way, None if values is None else lambda values=values: values, angle)
            left = _undamped(way.left(now), way, plain)
            if way.reranked is None:
                done = left if way.done is None else _undamped(way.done(now), way, plain)
                found[spot.name] = judged(spot.name, left, done, states[state].migrated)
                continue
            first = (way.name, way.settings["score"])
            if first not in recalled:
                deepest = max(s.way.settings["depth"] for s in spots if s.way.reranked is not None)
                width = min(world.count, max(self.depth, deepest))
                some = scores.best(left, left, none, own, world.count, width)
                if way.beside is not None:
                    beside = _undamped(way.beside(now), way, plain)
                    more = scores.best(beside, beside, none, own, world.count, width)
                    joined = union(some[1], more[1])[:, :width]
                    some = scores.at(left, joined), joined
                anew = scores.at(_undamped(way.reranked(now), way, plain), some[1][:, :deepest])
                recalled[first] = (*some, anew)
                candidates[first] = some[1][:, :deepest], some[0][:, :deepest], anew
            score, ranked, anew = recalled[first]
            depth = min(way.settings["depth"], anew.shape[1])
            ranked = second_stage(score, ranked, anew[:, :depth], every, self.depth)
            found[spot.name] = self._judged(spot.name, rows, ranked, relevance)
        return found, candidates


def typical_queries(total: int) -> np.ndarray:
    """Return the rows of the queries whose tails define the typical spread."""
    if total <= TYPICAL:
        return np.arange(total)
    return np.sort(np.random.default_rng(0).permutation(total)[:TYPICAL])


def _undamped(mix: Mix, way: Way, plain: Mapping[str, str]) -> Mix:
    """Return the mix without damping for ways of one space, which no calibration changes."""
    if way.calibrated:
        return mix
    return Mix({plain.get(pair, pair): f for pair, f in mix.factors.items()}, mix.shift)
