"""The lists of the best items of a batch of queries at every point of an assessment.

A hundred points are measured on the same few scores: each is a mix of the inner products of one or
two pairs of spaces, chosen item by item, by whether the item is re-embedded. Most items are far
from entering any list. So the largest scores of each pair are found once for a stretch of items and
for each small part of it; the mix of the largest is a bound, exact in float32 because rounding is
monotone, and only parts whose bound exceeds a list's worst result are looked at item by item. Each
list is a heap of keys (see `keys`), the worst result at the top.
"""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from numba import njit

from fct_jax.upgrade.assessment.keys import NOTHING, bits_of, decoded, key_of
from fct_jax.upgrade.assessment.world import Wish
from fct_jax.upgrade.ways import Mix

STRETCH = 1024  # items whose scores are held together
PART = 32  # of these, so many share a bound
_LOWEST, _ZERO = np.float32(-np.inf), np.float32(0)


def masks_of(wished: Sequence[Mapping[Hashable, Wish]]) -> list[np.ndarray]:
    """Return the different arrays (N,) bool of re-embedded items that wishes name."""
    return list({id(w.migrated): w.migrated for each in wished for w in each.values()}.values())


class Lists:
    """The best items of a batch of queries for each wish, from a gallery in the order of its rows.

    Scores descend, and of equal scores the lower row comes first.
    """

    def __init__(
        self, wishes: Mapping[Hashable, Wish], masks: Sequence[np.ndarray], pairs: Sequence[str],
        own: np.ndarray,
    ):  # fmt: skip
        """Take the wishes by name.

        Args:
          masks: those of `masks_of`, in the order in which `add` gets their blocks.
          pairs: names of the pairs of spaces, in the order in which `add` gets their scores.
          own: (q,) rows that are not results, −1 for none.
        """
        self._wishes, self._own, self._pairs = wishes, np.asarray(own, np.int64), list(pairs)
        self._sums: list[Mix] = []  # of more than two pairs, which are made one score
        count = len(own)
        # Wishes that differ in their width alone share the longest list.
        self._alike = {name: _without_width(wish, count) for name, wish in wishes.items()}
        listed = {self._alike[name]: w for name, w in sorted(wishes.items(), key=_by_width)}
        self._place = {alike: i for i, alike in enumerate(listed)}
        mixes = [(w.left, w.done) for w in listed.values()]
        self._terms = sum((self._terms_of([m[i] for m in mixes], count) for i in (0, 1)), ())
        places = {id(mask): i for i, mask in enumerate(masks)}
        self._state = np.array([places[id(w.migrated)] for w in listed.values()], np.int64)
        self._ends = np.cumsum([0, *(w.width for w in listed.values())])
        self._keys = np.full((count, self._ends[-1]), NOTHING, np.int64)
        self._worst = np.full((count, len(listed)), -np.inf, np.float32)

    @property
    def slots(self) -> int:
        """Return the number of scores that `add` needs room for: pairs, and sums of three or more.

        The scores of the pairs come first.
        """
        return len(self._pairs) + len(self._sums)

    def add(self, scores: np.ndarray, masks: np.ndarray, start: int) -> None:
        """Add some items.

        Args:
          scores: (slots, q, m) float32, of which those of the pairs are filled.
          masks: (masks, m) bool, whether the items are re-embedded.
          start: the gallery's row of the first item, after the rows of earlier calls.
        """
        for slot, mix in enumerate(self._sums, len(self._pairs)):
            parts = ((self._pairs.index(name), f) for name, f in mix.factors.items())
            scores[slot] = sum(_whole(f, len(self._own))[:, None] * scores[i] for i, f in parts)
        bounds = np.empty((*scores.shape[:2], -(-scores.shape[2] // PART)), np.float32)
        _largest_of_parts(scores, bounds)
        _improve(
            scores, bounds, *self._terms, self._state, masks, self._own - start, start, self._ends,
            self._worst, self._keys,
        )  # fmt: skip

    def ranked(self) -> dict[Hashable, tuple[np.ndarray, np.ndarray]]:
        """Return by name the scores and rows (q, width), −inf and −1 at the end; adds no more."""
        lists = [
            decoded(np.sort(self._keys[:, start:end], axis=1))
            for start, end in zip(self._ends, self._ends[1:], strict=False)
        ]
        found = {}
        for name, wish in self._wishes.items():
            scores, rows = lists[self._place[self._alike[name]]]
            found[name] = scores[:, : wish.width], rows[:, : wish.width]
        return found

    def _terms_of(self, mixes: Sequence[Mix], count: int) -> tuple[np.ndarray, ...]:
        """Return slots (L,) and factors (q, L) of two scores each, and the shifts (q, L)."""
        slots = np.zeros((2, len(mixes)), np.int64)
        factors = np.zeros((3, count, len(mixes)), np.float32)
        for i, mix in enumerate(mixes):
            terms = [(self._pairs.index(name), f) for name, f in mix.factors.items()]
            if len(terms) > 2:
                self._sums.append(mix)
                terms = [(len(self._pairs) + len(self._sums) - 1, 1.0)]
            for place, (slot, factor) in enumerate(terms):
                slots[place, i] = slot
                factors[place, :, i] = _whole(factor, count)
            factors[2, :, i] = _whole(mix.shift, count)
        return slots[0], factors[0], slots[1], factors[1], factors[2]


def best_lists(
    scores: Mapping[str, np.ndarray], wishes: Mapping[Hashable, Wish], own: np.ndarray, items: int
) -> dict[Hashable, tuple[np.ndarray, np.ndarray]]:
    """Return what `Lists.ranked` does, for the first ``items`` items of known scores.

    scores: pair -> (q, M) float32; own: as for `Lists`.
    """
    masks = masks_of([wishes])
    lists = Lists(wishes, masks, list(scores), own)
    room = np.empty((lists.slots, len(own), STRETCH), np.float32)
    for start in range(0, items, STRETCH):
        part = slice(start, min(start + STRETCH, items))
        here = room[:, :, : part.stop - start]
        for slot, values in enumerate(scores.values()):
            here[slot] = values[:, part]
        lists.add(here, np.stack([mask[part] for mask in masks]), start)
    return lists.ranked()


def _whole(factor, count: int) -> np.ndarray:
    return np.ascontiguousarray(np.broadcast_to(np.asarray(factor, np.float32), count))


def _by_width(named: tuple[Hashable, Wish]) -> int:
    return named[1].width


def _without_width(wish: Wish, count: int) -> tuple:
    """Return what two wishes have in common if their lists are the same as far as both go."""
    found: list = [id(wish.migrated)]
    for mix in (wish.left, wish.done):
        found += mix.factors
        found += [_whole(factor, count).tobytes() for factor in (*mix.factors.values(), mix.shift)]
    return tuple(found)


@njit(nogil=True, cache=True)
def _replace_worst(heap, key):
    """Replace the key at the top of a heap, whose largest key is there."""
    place, size = 0, len(heap)
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] > heap[child]:
            child += 1
        if heap[child] <= key:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = key


# Without NaN, and as −0 is 0 to a bound, the maxima can be vectorised.
@njit(nogil=True, cache=True, fastmath={"nnan", "nsz"})
def _largest_of_parts(scores, found):
    for s in range(scores.shape[0]):
        for q in range(scores.shape[1]):
            row = scores[s, q]
            for part in range(found.shape[2]):
                most = row[part * PART]
                for j in range(part * PART, min((part + 1) * PART, len(row))):
                    most = max(most, row[j])
                found[s, q, part] = most


@njit(nogil=True, cache=True)
def _mixed(first, by, second, times, shift):
    """Return the score of a mix; with factors of 0 or more, at least that of smaller scores."""
    return (by * first + shift) + times * second


@njit(nogil=True, cache=True)
def _improve(
    scores, bounds, first, by, second, times, shift, first_done, by_done, second_done, times_done,
    shift_done, state, masks, own, row, ends, worst, heaps,
):  # fmt: skip
    """Update the heaps of all lists; ``row`` is the gallery's row of the first item."""
    slots, count, items = scores.shape
    parts = bounds.shape[2]
    done = np.zeros(len(masks), np.int64)  # re-embedded items of each mask
    for s in range(len(masks)):
        for j in range(items):
            done[s] += masks[s, j]
    tops, chunk = np.empty(slots, np.float32), np.empty(PART, np.float32)
    lowest = np.empty(1, np.float32)
    bits, top = chunk.view(np.int32), lowest.view(np.int32)
    for q in range(count):
        for s in range(slots):
            tops[s] = bounds[s, q].max()
        for i in range(len(state)):
            mask, least = masks[state[i]], worst[q, i]
            some_left, some_done = done[state[i]] < items, done[state[i]] > 0
            a, b, c, d = first[i], second[i], first_done[i], second_done[i]
            fa, fb, fs = by[q, i], times[q, i], shift[q, i]
            fc, fd, ft = by_done[q, i], times_done[q, i], shift_done[q, i]
            # A negative factor turns the order round, so that nothing is bounded.
            every = (some_left and (fa < 0 or fb < 0)) or (some_done and (fc < 0 or fd < 0))
            if not every:
                most = _LOWEST
                if some_left:
                    most = _mixed(tops[a], fa, tops[b], fb, fs)
                if some_done:
                    most = max(most, _mixed(tops[c], fc, tops[d], fd, ft))
                if not most > least:
                    continue
            heap = heaps[q, ends[i] : ends[i + 1]]
            for part in range(parts):
                if not every:
                    most = _LOWEST
                    if some_left:
                        most = _mixed(bounds[a, q, part], fa, bounds[b, q, part], fb, fs)
                    if some_done:
                        more = _mixed(bounds[c, q, part], fc, bounds[d, q, part], fd, ft)
                        most = max(most, more)
                    if not most > least:
                        continue
                begin = part * PART
                size = min(PART, items - begin)
                # Both mixes are computed, so that the loop is vectorised.
                for j in range(size):
                    at = begin + j
                    left = _mixed(scores[a, q, at], fa, scores[b, q, at], fb, fs)
                    anew = _mixed(scores[c, q, at], fc, scores[d, q, at], fd, ft)
                    chunk[j] = (anew if mask[at] else left) + _ZERO  # -0.0 is 0.0
                # Rows ascend, so a later row with an equal score ranks lower.
                for j in range(size):
                    if chunk[j] > least and begin + j != own[q]:
                        _replace_worst(heap, key_of(bits[j], row + begin + j))
                        top[0] = bits_of(heap[0])
                        least = lowest[0]
            worst[q, i] = least
