"""Engines that run the pieces of a translation, and a model's calls, on many machines."""

import abc
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from fct_jax.errors import UserError
from fct_jax.runtime.plugins import find, imported
from fct_jax.upgrade.parts.pieces import Piece


class Workers(abc.ABC):
    """An open engine."""

    @abc.abstractmethod
    def make(self, workdir: Path, pieces: list[Piece]) -> None:
        """Translate and publish pieces of the gallery of an upgrade's directory.

        Raises UserError if a piece cannot be made. What is published stays.
        """

    @abc.abstractmethod
    def function(self, where) -> tuple[Callable, int]:
        """Return a function that asks ``where``, a function of ids or its name, on a worker.

        Also returns the number of workers: so many calls run at a time. Each worker loads the
        function once, and keeps it. Raises UserError if there is no such function, or if the
        engine has not enough GPUs.
        """


# name -> context that yields Workers, of an Engine
ENGINES = {"ray": "fct_jax.upgrade.parts.ray_engine:opened"}


@dataclasses.dataclass(frozen=True)
class Engine:
    """Settings of an engine.

    Attributes:
      name: a name in `ENGINES`; None: no engine.
      address: address of a running cluster; None: one is started on this machine.
      workers: number of workers; None: one for each CPU, or for each of the GPUs it asks for.
      gpus_per_worker: GPUs of each worker that holds a model.
    """

    name: str | None = None
    address: str | None = None
    workers: int | None = None
    gpus_per_worker: float = 0

    def check(self) -> None:
        """Raise UserError for a value that cannot be."""
        if self.name is None:
            given = [key for key in ("address", "workers", "gpus_per_worker") if getattr(self, key)]
            if given:
                raise UserError(f"{given[0]} is a setting of an engine; give engine=ray")
            return
        find(ENGINES, self.name, "engine", "engines")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"workers must be 1 or more, not {self.workers}")
        if not 0 <= self.gpus_per_worker < float("inf"):
            raise UserError(f"gpus_per_worker must be 0 or more, not {self.gpus_per_worker}")
        if self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            raise UserError(
                f"gpus_per_worker above 1 must be a whole number, not {self.gpus_per_worker}"
            )

    @contextlib.contextmanager
    def opened(self) -> Iterator[Workers | None]:
        """Context of the open engine; None without one."""
        if self.name is None:
            yield None
            return
        found = find(ENGINES, self.name, "engine", "engines")
        with (imported(found) if isinstance(found, str) else found)(self) as workers:
            yield workers
