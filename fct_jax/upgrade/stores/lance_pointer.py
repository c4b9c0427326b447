"""The pointer of a Lance table."""

import contextlib
import json
import uuid

from fct_jax.upgrade.stores.pointer import Pointer


class LancePointer(Pointer):
    """A pointer in small tables, one per generation, of which the first version counts.

    If two processes create the same table at once, Lance lets both succeed, but only one of them
    gets the first version.
    """

    @property
    def _prefix(self) -> str:
        return f"{self.first.name}__pointer_"

    def _read(self, name: str) -> dict:
        table = self.first.db.open_table(name)
        table.checkout(1)
        return table.to_arrow().to_pylist()[0]

    def load(self):
        db, found, token = self.first.db, [], None
        while token != "":
            page = db.list_tables(page_token=token, limit=1000)
            found += [name for name in page.tables if name.startswith(self._prefix)]
            token = page.page_token or ""
        for name in sorted(found, reverse=True):
            try:
                return json.loads(self._read(name)["value"])
            except ValueError as error:
                # A table's folder exists before the table does, so nobody has switched yet.
                if "not found" not in str(error):
                    raise
        return None

    def swap(self, value, expect):
        name, mark = f"{self._prefix}{expect + 1:09}", str(uuid.uuid4())
        rows = self.first._pa.table({"value": [json.dumps(value)], "mark": [mark]})
        # The error means that another process has made this generation.
        with contextlib.suppress(ValueError, RuntimeError, OSError):
            self.first.db.create_table(name, rows)
            return self._read(name)["mark"] == mark
        return False
