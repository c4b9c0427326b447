"""Searching at every point of every curve of an assessment."""

import numpy as np

from fct_jax.evaluate.backfill import backfill_order
from fct_jax.progress import Bar
from fct_jax.upgrade.calibration import Calibration
from fct_jax.upgrade.relevance import per_query
from fct_jax.upgrade.serving import search
from fct_jax.upgrade.verdict import ORDERS


class Curves:
    """Measures every point, each once."""

    def __init__(self, found, old, new, queries, calibration: Calibration, metric, depth):
        self._old = np.asarray(old.vectors, np.float32)
        self._new = np.asarray(new.vectors, np.float32)
        self._queries, self._calibration, self._metric = queries, calibration, metric
        self._depth = max(10, min(depth, len(old)))
        self._translated, self._uncertainty = found.transform(self._old)
        # Without an uncertainty there is nothing to order by.
        self.orders = ORDERS if found.has_uncertainty else ORDERS[1:]

    def run(self, ways, shares, seed: int) -> dict:
        """{(way or option, order, share): {metric: (Q,)}}."""
        count = len(self._old)
        order = {
            kind: backfill_order(kind, uncertainty=self._uncertainty, n=count, seed=seed)
            for kind in self.orders
        }
        none, every = np.zeros(count, bool), np.ones(count, bool)
        inner = [(w, o, s) for w in ways for o in order for s in shares if 0 < s < 1]
        with Bar("assessing", len(inner) + 3 + ("fused" in ways), "searches") as bar:

            def measure(way, migrated):
                values = self._measure(way, migrated)
                bar.advance()
                return values

            ends = {
                "keep": measure("dual", none),
                "translate": measure("translated", none),
                "re-embed all": measure("dual", every),
            }
            found = {
                ("keep", "", 0.0): ends["keep"],
                ("translate", "", 0.0): ends["translate"],
                ("re-embed all", "", 1.0): ends["re-embed all"],
            }
            if "fused" in ways:
                ends["fused"] = measure("fused", every)
            for way in ways:
                for kind in order:
                    for share in shares:
                        if share == 0:
                            values = ends["translate" if way == "translated" else "keep"]
                        elif share == 1:
                            values = ends["fused" if way == "fused" else "re-embed all"]
                        else:
                            migrated = none.copy()
                            migrated[order[kind][: int(share * count)]] = True
                            values = measure(way, migrated)
                        found[way, kind, share] = values
        return found

    def _measure(self, way: str, migrated) -> dict[str, np.ndarray]:
        q = self._queries
        _, rows = search(
            way,
            q.old,
            q.new,
            self._old,
            self._new,
            migrated,
            self._depth,
            self._calibration,
            translated=self._translated,
            metric=self._metric,
            own=q.own,
        )
        return per_query(rows, q.relevance)
