"""Ids of items, integers or text: repetitions and look-up of rows, for millions in little memory.

Text is compared by 64-bit hashes first, and as text only if these agree: sorting millions of
strings is slow, and NumPy needs four bytes per character.
"""

from collections.abc import Iterator

import numpy as np

from fct_jax.errors import UserError
from fct_jax.storage import spilled

BLOCK = 1 << 17  # ids processed together


def text_keys(ids: np.ndarray, block: int = BLOCK) -> np.ndarray:
    """Return a hash for each text, equal for equal texts in arrays of any width: (N,) uint64.

    ``block`` texts are processed together.
    """
    width = ids.dtype.itemsize // 4
    factors = np.random.default_rng(2023).integers(0, 2**63, max(width, 1), np.uint64) * 2 + 1
    keys = spilled.empty(len(ids), np.uint64)
    for start in range(0, len(ids), block):
        part = np.ascontiguousarray(ids[start : start + block])
        codes = part.view(np.uint32).reshape(len(part), width)
        # Squares distinguish texts in which equal differences are swapped.
        mixed = (codes.astype(np.uint64) + factors[:width]) ** 2
        keys[start : start + block] = ((mixed - factors[:width] ** 2) * factors[:width]).sum(1)
    return keys


def repeated(ids: np.ndarray, numbers=text_keys) -> np.ndarray:
    """Return the ids that occur more than once, ascending, each once.

    ``numbers`` gives texts their numbers; equal texts need equal ones.
    """
    is_text = ids.dtype.kind == "U"
    keys = numbers(ids) if is_text else _copied(ids)
    keys.sort()
    several = [keys[:0]]
    for part in spilled.blocks(len(keys) - 1):
        several.append(keys[part][keys[part] == keys[part.start + 1 : part.stop + 1]])
    several = np.unique(np.concatenate(several))
    if not is_text or not len(several):
        return several if not is_text else ids[:0]
    # Texts that share a number are compared as text.
    alike = [part[np.isin(numbers(part), several)] for part in _parts(ids)]
    found = np.sort(np.concatenate(alike))
    return np.unique(found[1:][found[1:] == found[:-1]])


def _copied(ids: np.ndarray) -> np.ndarray:
    copy = spilled.empty(len(ids), ids.dtype)
    copy[:] = ids
    return copy


def _parts(ids: np.ndarray) -> Iterator[np.ndarray]:
    return (ids[part] for part in spilled.blocks(len(ids), BLOCK))


class Finder:
    """A look-up of the rows of ids, which are sorted once."""

    def __init__(self, ids: np.ndarray, *, block: int = BLOCK, numbers=text_keys):
        """Sort the ids (N,), each of which occurs once.

        ``block`` ids are looked for together; ``numbers`` gives texts their numbers.
        """
        self._ids, self._text, self._block = ids, ids.dtype.kind == "U", block
        self._keys = numbers if self._text else np.asarray
        self._sorted = self._keys(ids)
        self._order = np.argsort(self._sorted, kind="stable")
        if self._text and (np.diff(self._sorted[self._order]) == 0).any():
            # Two texts share a number, so ids are compared as text.
            self._keys, self._sorted = np.asarray, ids
            self._order = np.argsort(ids, kind="stable")

    def __call__(self, wanted: np.ndarray) -> np.ndarray:
        """Return rows (len(wanted),) int64, −1 for absent ids; integers and text never match."""
        if not len(self._ids) or (wanted.dtype.kind == "U") != self._text:
            return np.full(len(wanted), -1)
        rows = np.empty(len(wanted), np.int64)
        for start in range(0, len(wanted), self._block):
            part = wanted[start : start + self._block]
            place = np.searchsorted(self._sorted, self._keys(part), sorter=self._order)
            found = self._order[np.minimum(place, len(self._ids) - 1)]
            rows[start : start + self._block] = np.where(self._ids[found] == part, found, -1)
        return rows


def find_rows(ids: np.ndarray, wanted: np.ndarray, numbers=text_keys) -> np.ndarray:
    """Return rows as `Finder` does, for a single question.

    The fewer wanted ids are sorted, and all ids pass by them, in little memory.

    >>> find_rows(np.array([5, 3, 9]), np.array([9, 4])).tolist()
    [2, -1]
    """
    is_text = ids.dtype.kind == "U"
    if not len(wanted) or len(wanted) > len(ids) or (wanted.dtype.kind == "U") != is_text:
        return Finder(ids, numbers=numbers)(wanted)
    keys_of = numbers if is_text else np.asarray
    # Texts stay where they are, perhaps on disk; only their numbers are held.
    keys, first, places = np.unique(keys_of(wanted), return_index=True, return_inverse=True)
    if is_text and not all(
        np.array_equal(wanted[first[places[part]]], wanted[part])
        for part in spilled.blocks(len(wanted), BLOCK)
    ):  # two texts share a number
        return Finder(ids, numbers=numbers)(wanted)
    rows, start = np.full(len(keys), -1), 0
    for part in _parts(ids):
        found = keys_of(part)
        place = np.minimum(np.searchsorted(keys, found), len(keys) - 1)
        hit = np.flatnonzero(keys[place] == found)
        hit = hit[part[hit] == wanted[first[place[hit]]]]
        rows[place[hit]] = start + hit
        start += len(part)
    return rows[places]


def uuid_text(data: np.ndarray) -> np.ndarray:
    """Return UUIDs, (n, 16) uint8, as text in lower case, (n,).

    >>> uuid_text(np.arange(16, dtype=np.uint8)[None])[0]
    np.str_('00010203-0405-0607-0809-0a0b0c0d0e0f')
    """
    digits = np.frombuffer(b"0123456789abcdef", np.uint8).astype(np.uint32)
    codes = np.full((len(data), 36), ord("-"), np.uint32)
    places = [place for place in range(36) if place not in (8, 13, 18, 23)]
    codes[:, places[0::2]], codes[:, places[1::2]] = digits[data >> 4], digits[data & 15]
    return codes.view("U36").ravel()


def rows_of(ids: np.ndarray, wanted, what: str, name: str) -> np.ndarray:
    """Return the row of each wanted id, (len(wanted),) int64.

    Args:
      ids: (N,) the existing ids, each once.
      wanted: (n,) the ids to find.
      what, name: names of the wanted ids and of the searched place, for the message.

    Raises:
      UserError: an id is missing, or one side has integers and the other text.
    """
    wanted = np.asarray(wanted)
    if (wanted.dtype.kind == "U") != (ids.dtype.kind == "U"):
        raise UserError(f"{what} are {wanted.dtype}, but the ids of {name} are {ids.dtype}")
    rows = find_rows(ids, wanted)
    missing = wanted[rows < 0]
    if len(missing):
        raise UserError(f"{what}: {first_ten(missing)} not in {name}")
    return rows


def first_ten(ids, noun: str = "id", count: int | None = None) -> str:
    """Return a count and the first ten of some ids: ``3 ids (7, 12, 40)``.

    ``count`` is the number of all if ``ids`` are only the first of them.

    >>> first_ten([7, 12, 40])
    '3 ids (7, 12, 40)'
    """
    count = len(ids) if count is None else count
    return f"{count} {noun}{'s' * (count != 1)} ({listed(ids, count)})"


def listed(ids, count: int | None = None) -> str:
    """Return the first ten of some ids, ``7, 12, 40``, and an ellipsis if there are more."""
    count = len(ids) if count is None else count
    return ", ".join(map(str, ids[:10])) + ", …" * (count > 10)
