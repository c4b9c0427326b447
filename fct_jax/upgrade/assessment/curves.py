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
from fct_jax.upgrade.assessment.world import (
    KEEP,
    TRANSLATE,
    WHOLE,
    Candidates,
    Spot,
    Wish,
    World,
)
from fct_jax.upgrade.ways import PAIRS, Asked, Mix, Way, angle_between
from fct_jax.upgrade.ways.calibration import (
    REFERENCE,
    Tail,
    affine_of,
    fused_factors,
    shifted,
    tail_of,
    tail_size,
    typical_spread,
)
from fct_jax.upgrade.ways.relevance import per_query
from fct_jax.upgrade.ways.scores import Space
from fct_jax.upgrade.ways.stages import second_stage, union

if TYPE_CHECKING:
    from fct_jax.upgrade.assessment.tops import Scores

TYPICAL = 256  # queries whose tails define the typical spread
_BLOCK = 1 << 22  # scores of one pair held by one thread
_PLAIN = "plain "  # prefix of pairs of spaces without damping


@dataclasses.dataclass(frozen=True)
class State:
    """A re-embedded share of the gallery, and the items that a calibration then has."""

    migrated: np.ndarray
    columns: np.ndarray

    @property
    def tail(self) -> int:
        return tail_size(len(self.columns))


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
        if "moved" in world.items:
            moved = Space.of(world.queries["moved"], c.new.metric)
            self._plain |= {"moved": moved, "forward": moved}
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
        measured = []
        with Bar("assessing", total, "queries") as bar:
            calibrated = self._calibrated(states, spots)
            typical = self._typical(calibrated, asked, size) if calibrated else {}
            work = functools.partial(self._measure, spots, states, typical, asked)
            for rows, part in zip(blocks, threads.in_order(work, blocks), strict=True):
                measured.append(part)
                bar.advance(len(rows))
        return self._collected(blocks, measured)

    def _collected(self, blocks, measured) -> dict[tuple, dict[str, np.ndarray]]:
        """Put what `_measure` returned for blocks of queries together."""
        total = sum(len(rows) for rows in blocks)
        found: dict[tuple, dict[str, np.ndarray]] = {}
        kept: dict[tuple, list] = {}
        for rows, (values, candidates) in zip(blocks, measured, strict=True):
            for name, metrics in values.items():
                mine = found.setdefault(name, {m: np.empty(total) for m in metrics})
                for metric, numbers in metrics.items():
                    mine[metric][rows] = numbers
            for name, parts in candidates.items():
                kept.setdefault(name, []).append(parts)
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

    def _states(self, spots) -> dict[tuple[str, float], State]:
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

    def _state(self, migrated: np.ndarray) -> State:
        """Return the state in which both models know the sample and all re-embedded items."""
        world = self._world
        start = world.count + np.arange(len(world.sample[0]))
        rest = migrated.copy()
        rest[world.inside] = False
        columns = np.concatenate([start, world.inside, np.flatnonzero(rest)])
        if len(columns) > REFERENCE:
            columns = columns[np.random.default_rng(0).permutation(len(columns))[:REFERENCE]]
        return State(migrated, np.sort(columns))

    def _calibrated(self, states, spots) -> dict[tuple[str, float], State]:
        """Return the states in which some way compares scores of two spaces."""
        names = {_state_of(spot) for spot in spots if spot.way.calibrated}
        return {name: state for name, state in states.items() if name in names}

    def _asked(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return pair -> (Q, E) queries and (M, E) items whose inner products are the scores."""
        asked = self._of_queries()
        found = self._of_items(self._world.items, self._world.sample)
        return {name: (asked[name], items) for name, items in found.items()}

    def _spaces(self) -> dict[str, tuple[str, str, Space]]:
        """Return pair -> kind of its queries, kind of its items, and the space of its scores."""
        world = self._world
        spaces = {"old": world.calibration.old, "new": world.calibration.new}
        found = {}
        for name, (by, of) in PAIRS.items():
            if by not in world.queries or of not in world.items:
                continue
            damped = self._damped and name in spaces
            if damped:
                found[_PLAIN + name] = by, of, self._plain[of]
            found[name] = by, of, spaces[name] if damped else self._plain[of]
        return found

    def _of_queries(self) -> dict[str, np.ndarray]:
        """Return pair -> (Q, E) prepared queries."""
        queries = self._world.queries
        return {name: of.queries(queries[by]) for name, (by, _, of) in self._spaces().items()}

    def _of_items(
        self, items: Mapping[str, np.ndarray], sample=None, pairs=None
    ) -> dict[str, np.ndarray]:
        """Return pair -> (M, E) prepared items of given kinds; the sample's come last, if any.

        pairs: names of those that are wanted, or None. Pairs of one space share an array.
        """
        extra = {} if sample is None else {"old": sample[0], "new": sample[1]}
        found, made = {}, {}
        for name, (_, of, space) in self._spaces().items():
            if of not in items or (pairs is not None and name not in pairs):
                continue
            more, key = extra.get(of, ()), (of, id(space))
            if key not in made:
                vectors = np.concatenate([items[of], more]) if len(more) else items[of]
                made[key] = space.items(vectors)
            found[name] = made[key] if name in extra else made[key][: len(items[of])]
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

    def _two_tails(self, scores: "Scores", own, state: State, typical) -> list[Tail]:
        return [
            tail_of(scores.largest(Mix({pair: 1.0}), state.columns, state.tail + 1), mine, spread)
            for pair, mine, spread in zip(("old", "new"), own, typical, strict=False)
        ]

    def _fused_tail(self, scores: "Scores", own, state: State, pair, typical: float) -> Tail:
        a, b = fused_factors(self._world.calibration.weights, *pair)
        largest = scores.largest(Mix({"old": a, "new": b}), state.columns, state.tail + 1)
        both = tail_of(largest, a * own[0] + b * own[1], typical)
        return shifted(both, a, pair[0], b, pair[1])

    def _measure(self, spots, states, typical, asked, rows: np.ndarray):
        """Return {name: {metric: (q,)}} of some queries, and the candidates of cascades."""
        from fct_jax.upgrade.assessment.lists import best_lists
        from fct_jax.upgrade.assessment.tops import FEW

        world, scores = self._world, self._scores(asked, rows)
        affine = {
            name: self._affine(scores, rows, states[name], spreads)
            for name, spreads in typical.items()
        }
        wishes, own = self._wishes(spots, states, affine, rows), self._own(rows)
        if world.count > FEW * max(wish.width for wish in wishes.values()):
            lists = best_lists(scores.by_pair, wishes, own, world.count)
        else:
            lists = {
                name: scores.best(wish.left, wish.done, wish.migrated, own, world.count, wish.width)
                for name, wish in wishes.items()
            }
        return self._judge(spots, affine, rows, lists, scores.at)

    def _own(self, rows: np.ndarray) -> np.ndarray:
        return np.full(len(rows), -1) if self._world.own is None else self._world.own[rows]

    def _affine(self, scores: "Scores", rows: np.ndarray, state: State, spreads):
        """Return the factors that make some queries' scores of both spaces comparable."""
        own = self._own_scores(rows)
        pair = self._two_tails(scores, own, state, spreads)
        both = self._fused_tail(scores, own, state, pair, spreads[2])
        return affine_of(self._world.calibration.weights, *pair, both)

    def _seen_by(self, spot: Spot, affine, rows: np.ndarray) -> Asked:
        """Return some queries as the functions of a spot's way see them."""
        queries = self._world.queries
        values = affine.get(_state_of(spot))
        return Asked(
            spot.way,
            None if values is None else lambda: values,
            functools.cache(lambda: angle_between(queries["old"][rows], queries["bridged"][rows])),
        )

    def _wishes(self, spots, states, affine, rows: np.ndarray) -> dict[tuple, Wish]:
        """Return the lists that the spots need; those of cascades are named by `_first_stage`."""
        none, every = states["", 0.0].migrated, states["", 1.0].migrated
        plain = self._undamped_names()
        start = plain["old"] if self.baseline[0] == KEEP else "translated"
        start, new = Mix({start: 1.0}), Mix({plain["new"]: 1.0})
        found = {
            self.baseline: Wish(start, start, none, self.depth),
            (WHOLE, "", 1.0): Wish(new, new, every, self.depth),
        }
        width = min(self._world.count, max(self.depth, _deepest(spots)))
        for spot in spots:
            way, now = spot.way, self._seen_by(spot, affine, rows)
            if way.reranked is None:
                left = _undamped(way.left(now), way, plain)
                done = left if way.done is None else _undamped(way.done(now), way, plain)
                if spot.share in (0, 1):  # the items are all alike
                    left = done = (left, done)[int(spot.share)]
                migrated = states[_state_of(spot)].migrated
                found[_list_of(spot)] = Wish(left, done, migrated, self.depth)
            elif _first_stage(way) not in found:
                left = _undamped(way.left(now), way, plain)
                found[_first_stage(way)] = Wish(left, left, none, width)
                if way.beside is not None:
                    left = _undamped(way.beside(now), way, plain)
                    found[_first_stage(way, "beside")] = Wish(left, left, none, width)
        return found

    def _judge(self, spots, affine, rows: np.ndarray, lists, at):
        """Return what `_measure` does, from the lists; at: the scores of a mix at given rows."""
        relevance = self._world.relevance.of(rows)
        plain, deepest = self._undamped_names(), _deepest(spots)
        every = np.ones(self._world.count, bool)
        found = {
            name: self._judged(name, rows, lists[name], relevance)
            for name in (self.baseline, (WHOLE, "", 1.0))
        }
        recalled, candidates = {}, {}
        for spot in spots:
            way, now = spot.way, self._seen_by(spot, affine, rows)
            if way.reranked is None:
                found[spot.name] = self._judged(spot.name, rows, lists[_list_of(spot)], relevance)
                continue
            first = _first_stage(way)
            if first not in recalled:
                some = lists[first]
                if way.beside is not None:
                    more = lists[_first_stage(way, "beside")]
                    joined = union(some[1], more[1])[:, : some[1].shape[1]]
                    some = at(_undamped(way.left(now), way, plain), joined), joined
                anew = at(_undamped(way.reranked(now), way, plain), some[1][:, :deepest])
                recalled[first] = (*some, anew)
                candidates[way.name, way.settings["score"]] = (
                    some[1][:, :deepest], some[0][:, :deepest], anew,
                )  # fmt: skip
            score, ranked, anew = recalled[first]
            depth = min(way.settings["depth"], anew.shape[1])
            ranked = second_stage(score, ranked, anew[:, :depth], every, self.depth)
            found[spot.name] = self._judged(spot.name, rows, ranked, relevance)
        return found, candidates

    def _undamped_names(self) -> dict[str, str]:
        plain = {pair: (_PLAIN if self._damped else "") + pair for pair in ("old", "new")}
        if "moved" not in self._world.items:
            plain |= {"moved": plain["new"], "forward": "translated"}
        return plain


def _state_of(spot: Spot) -> tuple[str, float]:
    return (spot.order if 0 < spot.share < 1 else ""), spot.share


def _list_of(spot: Spot) -> tuple[str, str, float]:
    """Return the name of a spot's list; no order matters before and after the re-embedding."""
    return spot.way.label, *_state_of(spot)


def _deepest(spots: Sequence[Spot]) -> int:
    """Return the largest number of candidates that a cascade re-ranks; 0 without cascades."""
    return max((s.way.settings["depth"] for s in spots if s.way.reranked is not None), default=0)


def _first_stage(way: Way, which: str = "recalled") -> tuple[str, str, str]:
    return which, way.name, way.settings["score"]


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
