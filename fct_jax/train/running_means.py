"""Means of the metrics between two log entries, and the check that the loss is finite."""

import math
import time
from collections.abc import Iterator

from fct_jax.errors import UserError
from fct_jax.train.checkpoint import Checkpoints


class RunningMeans:
    """Means of the steps' metrics since the last log entry, rate and time spent waiting for data.

    The sums of a call are fetched while the next call runs, so that the device never waits.
    """

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints
        self._waiting = None
        self._sums, self._steps = {}, 0
        self._since, self._waited = time.perf_counter(), 0.0
        self.note = ""

    def position(self) -> dict:
        """What a checkpoint must hold, so that the next means are of all their steps."""
        return {"sums": self._sums, "steps": self._steps}

    def restore(self, position: dict) -> None:
        """Goes on from ``position``."""
        self._sums, self._steps = position["sums"], position["steps"]

    def timed(self, feed, step: int) -> Iterator:
        """The feed's calls from ``step``; the time that the device waits for them is counted."""
        calls = feed.calls(step)
        while True:
            if not feed.ready:
                self.fetch()  # until the device has ended its work, nobody waits for data
            start = time.perf_counter()
            call = next(calls, None)
            self._waited += time.perf_counter() - start
            if call is None:
                return
            yield call

    def add(self, sums: dict, steps: int, step: int) -> None:
        """Takes a call's sums over ``steps`` steps; ``step`` is the count after it."""
        self.fetch()
        self._waiting = sums, steps, step

    def fetch(self) -> None:
        """Waits for the last call. Raises UserError on a loss that is not finite."""
        if self._waiting is None:
            return
        sums, steps, step = self._waiting
        self._waiting = None
        sums = {name: float(value) for name, value in sums.items()}
        if not math.isfinite(sums["loss"]):
            self._checkpoints.wait()
            saved = self._checkpoints.latest_step
            kept = "no checkpoint was made yet" if saved is None else f"checkpoint {saved} is kept"
            raise UserError(
                f"the loss is no longer finite by step {step}; {kept}; "
                "a smaller config.optimizer.lr often helps"
            )
        self.note = f"loss {sums['loss'] / steps:.4f}"
        self._sums = {name: self._sums.get(name, 0.0) + value for name, value in sums.items()}
        self._steps += steps

    def means(self, prefix: str) -> dict[str, float]:
        """The means since the last time by prefixed name; "data_wait" is a share of the time."""
        self.fetch()
        found = {name: value / self._steps for name, value in self._sums.items()}
        elapsed = time.perf_counter() - self._since
        found |= {"steps_per_second": self._steps / elapsed, "data_wait": self._waited / elapsed}
        self._sums, self._steps = {}, 0
        self._since, self._waited = time.perf_counter(), 0.0
        return {prefix + name: value for name, value in found.items()}
