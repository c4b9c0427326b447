"""Means of the metrics between two log entries, and the check that the loss is finite."""

import math
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from fct_jax.errors import UserError
from fct_jax.train.checkpoint import Checkpoints


class Sums(NamedTuple):
    """Sums of metrics over some steps."""

    sums: Mapping[str, float] = MappingProxyType({})
    steps: int = 0

    def plus(self, sums: dict[str, float], steps: int) -> "Sums":
        """Return the sums over these steps and ``steps`` more."""
        more = {name: self.sums.get(name, 0.0) + value for name, value in sums.items()}
        return Sums(more, self.steps + steps)

    def means(self) -> dict[str, float]:
        """Return the mean of each metric over the steps."""
        return {name: value / self.steps for name, value in self.sums.items()}


class RunningMeans:
    """Means of the steps' metrics since the last log entry, and over the epoch so far.

    The means since the last log entry come with the step rate and the share of time spent waiting
    for data. The sums of a call are fetched while the next call runs, so that the device never
    waits for them.
    """

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints
        self._waiting = None
        self._logged, self._epoch = Sums(), Sums()
        self._since, self._waited = time.perf_counter(), 0.0
        self.note = ""

    def position(self) -> dict:
        """Return the sums that a checkpoint must hold, so that the next means cover all steps."""
        return {
            "sums": dict(self._logged.sums),
            "steps": self._logged.steps,
            "epoch_sums": dict(self._epoch.sums),
            "epoch_steps": self._epoch.steps,
        }

    def restore(self, position: dict) -> None:
        """Resume from a ``position`` that `position` returned."""
        self._logged = Sums(position["sums"], position["steps"])
        self._epoch = Sums(position.get("epoch_sums", {}), position.get("epoch_steps", 0))

    def timed(self, feed, step: int) -> Iterator:
        """Yield the feed's calls from ``step`` on, and count the time that the device waits."""
        calls = feed.calls(step)
        while True:
            if not feed.ready:
                self.fetch()  # data is not waited for until the device is idle
            start = time.perf_counter()
            call = next(calls, None)
            self._waited += time.perf_counter() - start
            if call is None:
                return
            yield call

    def add(self, sums: dict, steps: int, step: int) -> None:
        """Add a call's sums over ``steps`` steps; ``step`` is the step count after the call."""
        self.fetch()
        self._waiting = sums, steps, step

    def fetch(self) -> None:
        """Wait for the last call's sums. Raises UserError if the loss is not finite."""
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
        self._logged, self._epoch = self._logged.plus(sums, steps), self._epoch.plus(sums, steps)

    def means(self, prefix: str) -> dict[str, float]:
        """Return the means since the last call by prefixed name; "data_wait" is a share of time."""
        self.fetch()
        elapsed = time.perf_counter() - self._since
        rates = {"steps_per_second": self._logged.steps / elapsed}
        found = {**self._logged.means(), **rates, "data_wait": self._waited / elapsed}
        self._logged = Sums()
        self._since, self._waited = time.perf_counter(), 0.0
        return {prefix + name: value for name, value in found.items()}

    def epoch_means(self) -> dict[str, float]:
        """Return the means over the epoch by name, and begin the next one."""
        self.fetch()
        found, self._epoch = self._epoch.means(), Sums()
        return found
