"""Rows that are set aside, each with its reason and place, so that the others can be used."""

import json
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.storage.files import write_synced
from fct_jax.storage.ids import listed

REPEATED = "repeated id"
MOST = 0.001  # largest tolerated share of unusable rows in a gallery


class Quarantine:
    """Rows of a gallery that cannot be used, by their number in the gallery as it is stored.

    Attributes:
      entries: {row: (id, reason, where)}, with where as in ``part-2.parquet, row 17``.
    """

    def __init__(self):
        self.entries: dict[int, tuple] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, row: int, id_, reason: str, where: str) -> None:
        """Set a row aside; its first reason is kept."""
        self.entries.setdefault(int(row), (getattr(id_, "item", lambda: id_)(), reason, where))

    @property
    def rows(self) -> np.ndarray:
        """Return the rows (n,) int64, ascending."""
        return np.array(sorted(self.entries), np.int64)

    @property
    def ids(self) -> list:
        """Return the id of each row, in the order of ``rows``."""
        return [self.entries[row][0] for row in sorted(self.entries)]

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of rows of each reason, the most frequent first."""
        kinds = [reason for _, reason, _ in self.entries.values()]
        return dict(sorted(((k, kinds.count(k)) for k in set(kinds)), key=lambda e: (-e[1], e[0])))

    def summary(self) -> str:
        """Return ``3 zero (7, 12, 40); 2 NaN (5, 9)``: counts by reason and the first ten ids."""
        ids: dict[str, list[str]] = {}
        for _, (id_, reason, _) in sorted(self.entries.items()):
            ids.setdefault(reason, []).append(str(id_))
        return "; ".join(
            f"{count:,} {reason} ({listed(ids[reason])})" for reason, count in self.counts.items()
        )

    def check(self, count: int, name: str, most: float = MOST) -> None:
        """Raise UserError if more than a share ``most`` of ``count`` rows is unusable.

        Repeated ids do not count, because one of their rows is kept.
        """
        unusable = len(self) - self.counts.get(REPEATED, 0)
        if unusable > most * count:
            raise UserError(
                f"{name}: {unusable:,} of {count:,} rows are unusable, more than {most:.1%}: "
                f"{self.summary()}"
            )

    def write(self, path) -> None:
        """Write a table of row, id, reason and where: Parquet, or JSON lines for ``.jsonl``."""
        path, records = Path(path), self._records()
        if path.suffix == ".jsonl":
            lines = "".join(json.dumps(record) + "\n" for record in records)
            write_synced(path, lines.encode())
            return
        # Imported here: most galleries need no pyarrow.
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {key: [r[key] for r in records] for key in ("row", "id", "reason", "where")}
        kinds = {"row": pa.int64(), "reason": pa.string(), "where": pa.string()}
        pq.write_table(
            pa.table({k: pa.array(v, type=kinds.get(k)) for k, v in columns.items()}), path
        )

    def _records(self) -> list[dict]:
        return [
            {"row": row, "id": self.entries[row][0], "reason": reason, "where": where}
            for row, (_, reason, where) in sorted(self.entries.items())
        ]

    @classmethod
    def read(cls, path) -> "Quarantine":
        """Read a file that `write` made. Raises UserError if it cannot be read."""
        path, made = Path(path), cls()
        try:
            if path.suffix == ".jsonl":
                records = [json.loads(line) for line in path.read_text().splitlines()]
            else:
                import pyarrow.parquet as pq

                records = pq.read_table(path).to_pylist()
            for record in records:
                made.add(record["row"], record["id"], record["reason"], record["where"])
        except (OSError, ValueError, KeyError) as error:  # pyarrow's are of these, too
            raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
        return made


def reasons(vectors: np.ndarray) -> dict[int, str]:
    """Return {row: reason} of the unusable ones among vectors (n, D) float32, in one fast pass.

    The square of a length is not finite exactly if a value is not finite or is far too large.
    """
    squares = np.einsum("nd,nd->n", vectors, vectors, dtype=np.float32)
    found = {int(row): "zero" for row in np.flatnonzero(squares == 0) if not vectors[row].any()}
    for row in np.flatnonzero(~np.isfinite(squares)):
        values = vectors[row]
        kind = "NaN" if np.isnan(values).any() else "infinite"
        found[int(row)] = kind if not np.isfinite(values).all() else "too large for float32"
    return found
