"""All points of all curves for a gallery that is larger than memory.

The gallery is read once, block by block: a block's scores with all queries update the best items of
every point, and are forgotten. Only the lists of the best are held, whose size depends on the
queries and the points, and the vectors of one block. The results are those of `Curves`, up to
rounding (a test compares them).
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fct_jax.runtime import threads
from fct_jax.runtime.progress import Bar
from fct_jax.upgrade.assessment.curves import Curves, State
from fct_jax.upgrade.assessment.world import Spot, World
from fct_jax.upgrade.ways import Mix

if TYPE_CHECKING:
    from fct_jax.upgrade.assessment.lists import Lists

ROWS = 1 << 15  # gallery rows in a block
PREPARED = 1 << 12  # of these, rows that one thread reads and prepares together
QUERIES = 256  # queries whose scores with a few items are held by one thread
LISTS = 1 << 30  # bytes of lists, beyond which the queries are divided and the gallery read again
GATHERED = 1 << 22  # numbers of candidates' vectors that are held together


class Streamed(Curves):
    """`Curves` that hold no gallery; the items of its world may be anything that gives rows."""

    def run(self, spots: Sequence[Spot]):
        total = len(self._world.queries["new"])
        states = self._states(spots)
        asked = self._of_queries()
        batches = [np.arange(i, min(i + QUERIES, total)) for i in range(0, total, QUERIES)]
        affine = [{} for _ in batches]
        for name, state in self._calibrated(states, spots).items():
            for mine, factors in zip(affine, self._factors(state, asked, batches), strict=True):
                mine[name] = factors
        measured = []
        each = _bytes(self._wishes(spots, states, affine[0], batches[0]))
        together = max(1, LISTS // (each * QUERIES))
        readings = range(0, len(batches), together)
        with Bar("assessing", len(readings) * self._world.count, "items") as bar:
            for first in readings:
                part = slice(first, first + together)
                measured += self._search(
                    spots, states, asked, affine[part], batches[part], bar.advance
                )
        return self._collected(batches, measured)

    def _search(self, spots, states, asked, affine, batches, progress) -> list:
        """Return what `_measure` does, for each batch of queries, after one pass of the gallery."""
        from fct_jax.upgrade.assessment.lists import Lists, masks_of

        world, groups = self._world, self._sharing()
        pairs = [name for names in groups for name in names]
        wished = [
            self._wishes(spots, states, mine, rows)
            for mine, rows in zip(affine, batches, strict=True)
        ]
        masks = masks_of(wished)
        lists = [
            Lists(wishes, masks, pairs, self._own(rows))
            for wishes, rows in zip(wished, batches, strict=True)
        ]
        # Pairs of the same items share a room, by the name of the first.
        rooms = {
            names[0]: np.empty((min(ROWS, world.count), asked[names[0]].shape[1]), np.float32)
            for names in groups
        }
        for start in range(0, world.count, ROWS):
            stop = min(start + ROWS, world.count)
            items = self._fill(rooms, start, stop)
            here = np.stack([mask[start:stop] for mask in masks])

            def add(i: int, items=items, here=here, start=start) -> None:
                rows = batches[i]
                sides = [
                    (np.concatenate([asked[name][rows] for name in names]), items[names[0]])
                    for names in groups
                ]
                _add(lists[i], sides, len(rows), here, start)

            for _ in threads.in_order(add, range(len(batches))):
                pass
            progress(stop - start)

        def judge(i: int):
            at = functools.partial(self._at, asked, batches[i], {})
            return self._judge(spots, affine[i], batches[i], lists[i].ranked(), at)

        return list(threads.in_order(judge, range(len(batches))))

    def _fill(self, rooms: dict[str, np.ndarray], start: int, stop: int) -> dict[str, np.ndarray]:
        """Return pair -> (m, E) prepared items of some rows, in the first rows of ``rooms``.

        Threads read and prepare them side by side.
        """

        def prepare(first: int) -> None:
            rows = slice(first, min(first + PREPARED, stop))
            for name, items in self._of_items(_read(self._world, rows), pairs=rooms).items():
                rooms[name][first - start : rows.stop - start] = items

        for _ in threads.in_order(prepare, range(start, stop, PREPARED)):
            pass
        return {name: room[: stop - start] for name, room in rooms.items()}

    def _sharing(self) -> list[list[str]]:
        """Return the names of pairs, those of the same prepared items together."""
        found: dict[tuple, list[str]] = {}
        for name, (_, of, space) in self._spaces().items():
            found.setdefault((of, id(space)), []).append(name)
        return list(found.values())

    def _factors(self, state: State, asked, batches) -> list:
        """Return the factors of each batch of queries in a state."""
        world = self._world
        inside = state.columns[state.columns < world.count]
        beyond = state.columns[len(inside) :] - world.count
        items = self._of_items(
            {
                kind: np.concatenate(
                    [np.asarray(world.items[kind][inside], np.float32), extra[beyond]]
                )
                for kind, extra in zip(("old", "new"), world.sample, strict=True)
            },
            pairs=("old", "new"),
        )
        here = State(state.migrated, np.arange(len(state.columns)))
        block = {name: (asked[name], items[name]) for name in ("old", "new")}
        spreads = self._typical({"": here}, block, QUERIES)[""]

        def factors(rows: np.ndarray):
            return self._affine(self._scores(block, rows), rows, here, spreads)

        return list(threads.in_order(factors, batches))

    def _at(self, asked, queries: np.ndarray, known: dict, mix: Mix, rows: np.ndarray):
        """Return the scores of some queries, each with its own gallery rows (q, K).

        known: scores of each pair with the rows of earlier calls, because some cascades differ
        only in how they rank the same candidates.
        """
        from fct_jax.upgrade.assessment.tops import Scores

        which = rows.tobytes()
        missing = [name for name in mix.factors if (name, which) not in known]
        if missing:
            found = self._near(asked, queries, missing, rows)
            known |= {(name, which): scores for name, scores in found.items()}
        own = np.where(rows >= 0, np.arange(rows.shape[1]), -1)
        return Scores({name: known[name, which] for name in mix.factors}).at(mix, own)

    def _near(self, asked, queries: np.ndarray, pairs, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return pair -> inner products (q, K) of some queries, each with its own gallery rows."""
        spaces = self._spaces()
        kinds = {spaces[name][1] for name in pairs}
        near = {name: np.empty(rows.shape, np.float32) for name in pairs}
        width = max(1, GATHERED // (rows.shape[1] * max(asked[name].shape[1] for name in near)))
        for start in range(0, len(rows), width):
            part = slice(start, start + width)
            some, place = np.unique(np.maximum(rows[part], 0), return_inverse=True)
            place = place.reshape(rows[part].shape)
            items = self._of_items(_read(self._world, some, kinds), pairs=near)
            for name, scores in near.items():
                scores[part] = np.einsum(
                    "qe,qke->qk", asked[name][queries[part]], items[name][place]
                )
        return near


def _read(world: World, rows, kinds=None) -> dict[str, np.ndarray]:
    """Return kind -> vectors (m, D) float32 of some rows of the gallery."""
    return {
        kind: np.asarray(vectors[rows], np.float32)
        for kind, vectors in world.items.items()
        if kinds is None or kind in kinds
    }


def _add(lists: "Lists", sides, queries: int, masks: np.ndarray, start: int) -> None:
    """Add the items of a block, whose first row is ``start``, to the lists of some queries.

    sides: for each group of pairs with the same items, the ``queries`` queries of all its pairs
    (pairs * q, E) and the items (m, E), prepared; masks: as for `Lists.add`.
    """
    from fct_jax.upgrade.assessment.lists import STRETCH

    total = masks.shape[1]
    room = np.empty((lists.slots, queries, STRETCH), np.float32)
    for first in range(0, total, STRETCH):
        part, at = slice(first, min(first + STRETCH, total)), 0
        flat = room.reshape(-1, STRETCH)[:, : part.stop - first]
        for asked, items in sides:
            np.matmul(asked, items[part].T, out=flat[at : at + len(asked)])
            at += len(asked)
        lists.add(room[:, :, : part.stop - first], masks[:, part], start + first)


def _bytes(wishes) -> int:
    """Return the bytes of one query's lists."""
    return sum(8 * wish.width for wish in wishes.values())
