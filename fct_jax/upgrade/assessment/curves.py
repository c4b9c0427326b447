"""Searching at every point of every curve of an assessment."""

import numpy as np

from fct_jax.evaluate.orders import Items, find_order
from fct_jax.runtime.progress import Bar
from fct_jax.upgrade.ways import find_way
from fct_jax.upgrade.ways.calibration import Calibration, calibrate
from fct_jax.upgrade.ways.relevance import per_query
from fct_jax.upgrade.ways.serving import search


class Curves:
    """Measures every point, each once."""

    def __init__(
        self, found, old, new, sample, inside, queries, calibration: Calibration, metric, depth
    ):
        """Of the gallery by both models, ``old`` and ``new``.

        sample: (R, do), (R, dn) items by both models, which a calibration starts from.
        inside: (N,) bool, which of the gallery's items are in the sample.
        calibration: of the sample; dual and fused take its weights.
        """
        self._old = np.asarray(old.vectors, np.float32)
        self._new = np.asarray(new.vectors, np.float32)
        self._sample, self._calibration, self._metric = sample, calibration, metric
        self._queries, self._others = queries, ~inside
        self._depth = max(10, min(depth, len(old)))
        self._translated, self._uncertainty = found.transform(self._old)
        # Without an uncertainty there is nothing to order by.
        self._uncertainty = self._uncertainty if found.has_uncertainty else None

    def orders(self, way: str) -> tuple[str, ...]:
        """Return the names of the orders to try for a way of serving."""
        items = self._items(0)
        return tuple(o for o in find_way(way).orders if not find_order(o).lacks(items))

    def _items(self, seed: int) -> Items:
        return Items(
            len(self._old),
            seed,
            self._metric,
            old=self._old,
            transformed=self._translated,
            uncertainty=self._uncertainty,
        )

    def run(self, ways, shares, seed: int) -> dict:
        """{(way or option, order, share): {metric: (Q,)}}."""
        count = len(self._old)
        paths = [(way, order) for way in ways for order in self.orders(way)]
        inner = [share for share in shares if 0 < share < 1]
        none, every = np.zeros(count, bool), np.ones(count, bool)
        measured = {}
        c = self._calibration
        ends = 3 + ("fused" in ways) + 2 * bool(c.weights.damping)
        with Bar("assessing", len(inner) * len(paths) + ends, "searches") as bar:

            def measure(way, migrated, calibration=self._calibration):
                values = self._measure(way, migrated, calibration)
                bar.advance()
                return values

            # As today's search and the new model's own would be, without any correction.
            plain = calibrate(*self._sample, metric=c.new.metric, old_metric=c.old.metric)
            keep = measure("dual", none, plain)
            translate = measure("translated", none)
            whole = measure("dual", every, plain)
            both = measure("fused", every, self._grown(every)) if "fused" in ways else None
            first, last = keep, whole
            if c.weights.damping:
                first, last = measure("dual", none), measure("dual", every)
            for order in dict.fromkeys(order for _, order in paths):
                rows = find_order(order).rank(self._items(seed))
                for share in inner:
                    migrated = none.copy()
                    migrated[rows[: int(share * count)]] = True
                    grown = self._grown(migrated)
                    for way, its_order in paths:
                        if its_order == order:
                            measured[way, order, share] = measure(way, migrated, grown)
        found = {
            ("keep", "", 0.0): keep,
            ("translate", "", 0.0): translate,
            ("re-embed all", "", 1.0): whole,
        }
        for way, order in paths:
            start = translate if way == "translated" else first
            end = {"translated": whole, "dual": last, "fused": both}[way]
            ends = {0.0: start, 1.0: end}
            for share in shares:
                found[way, order, share] = ends.get(share) or measured[way, order, share]
        return found

    def _grown(self, migrated: np.ndarray) -> Calibration:
        """From the sample and all that is re-embedded by then: both models know these items."""
        c = self._calibration
        return calibrate(
            np.concatenate([self._sample[0], self._old[migrated & self._others]]),
            np.concatenate([self._sample[1], self._new[migrated & self._others]]),
            metric=c.new.metric,
            old_metric=c.old.metric,
            weights=c.weights,
        )

    def _measure(self, way: str, migrated, calibration: Calibration) -> dict[str, np.ndarray]:
        q = self._queries
        _, rows = search(
            way,
            q.old,
            q.new,
            self._old,
            self._new,
            migrated,
            self._depth,
            calibration,
            translated=self._translated,
            metric=self._metric,
            own=q.own,
        )
        return per_query(rows, q.relevance)
