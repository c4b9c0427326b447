"""Queries and items of a common space, derived from those of both models."""

import numpy as np

from fct_jax.errors import UserError
from fct_jax.upgrade.maps.backward import Backward
from fct_jax.upgrade.ways import Way


def add_moved(way: Way, queries: dict, items: dict, backward: Backward | None) -> None:
    """Add the queries and items that a common space has, by kind, as far as a way needs them.

    Items are moved when they are read. Raises UserError if the way needs a backward map.
    """
    if not way.needs_backward:
        return
    new = queries.get("new")
    needed = {"backward": backward, "query_new": new}
    needed |= {kind: items.get(kind) for kind in (*way.items, "new")}
    for name, given in needed.items():
        if given is None:
            raise UserError(f"{way.name} search needs {name}=…")
    queries["moved"] = backward.moved(new)
    if "common" in way.queries:
        queries["common"] = backward.asked(new, np.shape(items["old"])[1])
    for kind, source in (("moved", items["new"]), ("forward", items.get("translated"))):
        items[kind] = None if source is None else _Moved(source, backward)


class _Moved:
    """Rows of a gallery, moved to the common space when they are read."""

    def __init__(self, vectors, backward: Backward):
        self._vectors, self._backward = vectors, backward
        self.shape = (len(vectors), len(backward.bias))
        self.ndim = 2

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows) -> np.ndarray:
        return self._backward.moved(self._vectors[rows])
