"""Set aside the rows of a store without a usable vector, so that the others can be used."""

import json
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.storage.files import write_synced
from fct_jax.upgrade.galleries.quarantine import Quarantine, reasons
from fct_jax.upgrade.stores.base import Batch, Store, plain


class Screen:
    """Checks every row that is read.

    Attributes:
      bad: {id: reason} of the rows set aside.
    """

    def __init__(self, store: Store, on_bad: str = "quarantine", bad: dict | None = None):
        """Prepare the check of a store's rows.

        Args:
          on_bad: "quarantine" sets unusable vectors aside, at most one in a thousand; "raise"
            stops at the first.
          bad: rows that earlier runs have set aside.
        """
        self._store, self._on_bad, self.bad = store, on_bad, dict(bad or {})

    def take(self, batch: Batch) -> tuple[Batch, list]:
        """Return the usable rows, and [id, reason] of each unusable row.

        Raises UserError if too many rows are unusable.
        """
        found = reasons(batch.vectors)
        if self.bad:
            for one in batch.ids.tolist():
                self.bad.pop(one, None)  # it may have been repaired
        if not found:
            return batch, []
        new = [[plain(batch.ids[row]), reason] for row, reason in sorted(found.items())]
        self.bad.update(dict(new))
        if self._on_bad == "raise":
            one, reason = new[0]
            raise UserError(f"{self._store.uri}: the vector of id {one} is {reason}")
        self.check()
        keep = np.ones(len(batch), bool)
        keep[list(found)] = False
        return batch.take(keep), new

    def check(self) -> None:
        """Raise UserError if there are more unusable rows than may be set aside."""
        listed = Quarantine()
        for row, (one, reason) in enumerate(self.bad.items()):
            listed.add(row, one, reason, "")
        listed.check(self._store.count(), str(self._store.uri))

    def write(self, path) -> None:
        """Write ``quarantine.jsonl`` with id and reason of every row set aside, if there is one."""
        path = Path(path)
        if self.bad or path.is_file():
            rows = [{"id": one, "reason": reason} for one, reason in self.bad.items()]
            write_synced(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
