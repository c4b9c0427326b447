"""Progress bars with the rate and the remaining time."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from fct_jax.runtime import processes

console = Console(stderr=True)
_silent = False
_PLAIN_EVERY = 10.0  # seconds between two lines if the output is not a terminal


def silence() -> None:
    """Suppress all further progress and remarks, for a command's ``--quiet``."""
    global _silent
    _silent = console.quiet = True


class Bar:
    """One progress bar; in a log file or CI, a line every ten seconds instead.

    Of several processes the writer alone shows it.

    Speed and time left are measured from the first step's end: the first one may compile programs.

    Args:
      description: what is being done.
      total: how many units there are.
      unit: name of a unit, for the rate.
      done: units done before (a resumed run).
    """

    def __init__(self, description: str, total: int, unit: str, done: int = 0):
        self.description, self.total, self.unit = description, total, unit
        self._first, self._done = None, done
        self._start = self._said = time.monotonic()
        self._rich = None
        self._shown = processes.is_writer() and not _silent
        if self._shown and sys.stderr.isatty():
            self._rich = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}", style="cyan"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
            )
            self._task = self._rich.add_task(
                description, total=total, completed=done, rate="", note=""
            )

    def __enter__(self) -> "Bar":
        if self._rich:
            self._rich.start()
        return self

    def __exit__(self, *exception) -> None:
        if self._rich:
            self._rich.stop()

    @property
    def rate(self) -> float:
        """Return units per second since the end of the first step; 0 before a second one."""
        if self._first is None:
            return 0.0
        return (self._done - self._first) / max(time.monotonic() - self._start, 1e-9)

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count units as done; the note stands at the end of the line."""
        self._done += units
        if self._first is None:
            self._first, self._start = self._done, time.monotonic()
        rate = f"{self.rate:,.1f} {self.unit}/s" if self._done > self._first else ""
        if self._rich:
            self._rich.update(self._task, completed=self._done, rate=rate, note=note)
        elif self._shown and time.monotonic() - self._said >= _PLAIN_EVERY:
            self._said = time.monotonic()
            said = f"{self.description} {self._done}/{self.total}"
            if rate:
                left = (self.total - self._done) / self.rate
                said += f", {rate}, {int(left) // 60}:{int(left) % 60:02d} left"
            print(f"{said}  {note}".rstrip(), file=sys.stderr, flush=True)


def track(
    items: Iterable, description: str, total: int, unit: str, size: Callable = lambda item: 1
) -> Iterator:
    """Yield the items under a progress bar; ``size(item)`` is the number of an item's units."""
    with Bar(description, total, unit) as bar:
        for item in items:
            yield item
            bar.advance(size(item))
