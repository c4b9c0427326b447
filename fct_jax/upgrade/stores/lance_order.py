"""Read the rows of a Lance table by ascending id, although the table itself is unordered.

One pass over the column of ids gives the next `WINDOW` rows, sorted; a table of N rows thus needs
N / WINDOW passes over that column, and none over its vectors. A row in a window takes 16 bytes
with integer ids, about 50 with UUIDs as text, and twice as much while the window is being filled.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fct_jax.errors import UserError
from fct_jax.storage.ids import listed

WINDOW = 1 << 19


class Ordered:
    """Some columns of a table, window by window; each window shows one version of the table."""

    def __init__(self, store, key: str, columns: list[str], row_ids: bool = False, where=None):
        """Take a store with ``latest()``, the newest table, and ``literal(id)``, for conditions.

        where: a condition that rows must meet, or None.
        """
        self._where = where
        self._store, self._key, self._columns, self._row_ids = store, key, columns, row_ids
        self._rows = self._last = self.table = None
        self._at, self._cut = 0, False

    def after(self, position, limit: int) -> pa.Table:
        """Return at most ``limit`` rows with ids above a position, or no rows at the end."""
        elsewhere = self._rows is None or position is None or position != self._last
        if elsewhere or (self._at == len(self._rows) and self._cut):
            self._fill(">", position)
        return self._give(limit, position)

    def between(self, first, last) -> pa.Table:
        """Return the rows with ids from ``first`` to ``last``; fast if calls are ascending."""
        if self._rows is None or first <= self._last:
            self._fill(">=", first)
        parts = []
        while True:
            ids = self._rows[self._key].slice(self._at)
            parts.append(self._give(pc.sum(pc.less_equal(ids, last)).as_py() or 0, last))
            if self._at < len(self._rows) or not self._cut:
                break
            self._fill(">", self._rows[self._key][-1].as_py())
        self._last = last
        return pa.concat_tables(parts)

    def _give(self, count: int, position) -> pa.Table:
        found = self._rows.slice(self._at, count)
        self._at += len(found)
        self._last = found[self._key][-1].as_py() if len(found) else position
        return found

    def _fill(self, sign: str, position) -> None:
        self.table = self._store.latest()
        query = self.table.search().select(self._columns).with_row_id(self._row_ids)
        some = [self._where] if self._where else []
        if position is not None:
            some.append(f"{self._key} {sign} {self._store.literal(position)}")
        if some:
            query = query.where(" and ".join(some))
        kept, size, self._cut = [], 0, False
        for batch in query.to_batches():
            kept.append(pa.table(batch))
            size += len(batch)
            if size > 2 * WINDOW:
                kept = [self._least(kept)]
                size = len(kept[0])
        empty = pa.table({name: pa.array([]) for name in self._columns})
        self._rows = self._least(kept) if kept else empty
        self._at = 0

    def _least(self, tables: list[pa.Table]) -> pa.Table:
        """Return the rows of the least ids, sorted. Raises UserError for repeated ids."""
        rows = pa.concat_tables(tables)
        rows = rows.take(pc.sort_indices(rows[self._key])).combine_chunks()
        ids = rows[self._key]
        if ids.null_count:
            raise UserError(f"{self._store.uri}: {ids.null_count} rows have no id")
        same = np.flatnonzero(pc.equal(ids[1:], ids[:-1]).to_numpy()) if len(ids) > 1 else []
        if len(same):
            some = listed([ids[int(at)].as_py() for at in same])
            raise UserError(
                f"{self._store.uri}: {len(same)} repeated ids ({some}), which Lance permits but "
                "an upgrade does not; keep one row of each"
            )
        self._cut = self._cut or len(rows) > WINDOW
        return rows.slice(0, WINDOW)
