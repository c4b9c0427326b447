"""The pointer that readers follow: one value that names the store and the model for queries."""

import abc

from fct_jax.errors import UserError
from fct_jax.upgrade.stores.base import Store
from fct_jax.upgrade.stores.uri import parse


class Pointer(abc.ABC):
    """Names the store to query and the model to query it with, in one value.

    Readers get the value from `current`. Switching the store without the model for its queries
    would break them.
    """

    def __init__(self, first: Store):
        self.first = first

    @abc.abstractmethod
    def load(self) -> dict | None:
        """Return the value that was last stored, or None."""

    @abc.abstractmethod
    def swap(self, value: dict, expect: int) -> bool:
        """Store the value if the stored generation is ``expect`` (0: none is stored)."""

    def current(self) -> dict:
        """Return {store, fingerprint, calibration, generation, previous}.

        The generation is 0 before the first switch.
        """
        start = {
            "store": str(self.first.uri),
            "fingerprint": self.first.meta.get("fingerprint"),
            "calibration": None,
            "generation": 0,
            "previous": None,
        }
        return self.load() or start

    def switch(self, to: dict, expect_generation: int) -> dict:
        """Point readers to another store if nobody switched since ``expect_generation``.

        The previous value is what `undo` returns to; it stays if only the model or the calibration
        of the same store changes.

        Args:
          to: {store, fingerprint, calibration}; the last two may be missing.

        Returns the new value. Raises UserError if the generation has changed since.
        """
        names = ("store", "fingerprint", "calibration")
        unknown = set(to) - set(names)
        if unknown or "store" not in to:
            raise UserError(f"a pointer has {', '.join(names)}; it was given {', '.join(to)}")
        parse(to["store"])  # rejects secrets
        before = self.current()
        value = {name: to.get(name) for name in names}
        value["generation"] = expect_generation + 1
        same = before["store"] == to["store"] and before["previous"] is not None
        value["previous"] = before["previous"] if same else {name: before[name] for name in names}
        if before["generation"] != expect_generation or not self.swap(value, expect_generation):
            raise UserError(
                f"the pointer of {self.first.uri} is at generation "
                f"{self.current()['generation']}, not {expect_generation}: somebody else has "
                "switched it; check it again before you switch"
            )
        return value

    def undo(self) -> dict:
        """Switch back to the previous value; a second undo restores the current one."""
        now = self.current()
        if now["previous"] is None:
            raise UserError(f"the pointer of {self.first.uri} was never switched")
        return self.switch(now["previous"], now["generation"])
