"""Pools of Ray's actors, of which any can be lost at any time, with their node or alone."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable

from fct_jax.errors import UserError
from fct_jax.runtime.progress import console

TRIES = 4  # of a call whose worker is lost, and of workers that end before they have started
TOLD, LIMIT = 10.0, 600.0  # seconds without any worker until this is said, and until it is an error
_PAUSE = 0.2  # seconds between two looks at the workers that start


class Pool:
    """Actors of one kind, which are free, busy or starting.

    Ray could restart a lost actor itself, but would keep its call for it; and on a cluster that has
    lost a node there is no room for it. Here the call goes to the next free actor, and a
    replacement joins as soon as Ray finds room.
    """

    def __init__(self, ray, create: Callable, count: int, needed: str):
        """Begin to start ``count`` actors.

        Args:
          ray: the module.
          create: returns a new actor, whose method ``ready`` returns None or a UserError.
          needed: resource of the cluster that an actor needs, ``CPU`` or ``GPU``.
        """
        self._ray, self._create, self._needed = ray, create, needed
        self._change = threading.Condition()
        self._starting: dict = {}  # reference to the first answer -> actor
        self._free: deque = deque()
        self._busy: set = set()
        self._lost, self._error, self._told = 0, None, False
        for _ in range(count):
            self._begin()

    def call(self, method: str, *arguments):
        """Return what a method of a free actor returns; wait until one is free.

        Raises UserError if the actors cannot start, or if the actors of this call were lost.
        """
        for _ in range(TRIES):
            actor = self._take()
            try:
                answer = self._ray.get(getattr(actor, method).remote(*arguments))
            except self._ray.exceptions.RayTaskError as error:
                self._return(actor)
                raise error.cause or error from None
            except self._ray.exceptions.RayError as error:
                lost = error
                self._replace(actor)
                continue
            self._return(actor)
            return answer
        raise _lost(lost)

    def wait(self) -> None:
        """Wait until an actor has started. Raises UserError if none can."""
        self._return(self._take())

    def close(self) -> None:
        """End the actors, and with them the calls that are under way."""
        with self._change:
            self._error = self._error or UserError("the workers of Ray have been ended")
            actors = [*self._starting.values(), *self._free, *self._busy]
            self._change.notify_all()
        for actor in actors:
            self._end(actor)

    def _begin(self) -> None:
        try:
            actor = self._create()
            self._starting[actor.ready.remote()] = actor
        except self._ray.exceptions.RayError as lost:  # such as a lost connection of this process
            self._error = self._error or _lost(lost)

    def _end(self, actor) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(actor)

    def _take(self):
        begun = time.monotonic()
        with self._change:
            while True:
                self._admit()
                if self._error is not None:
                    raise self._error
                if self._free:
                    actor = self._free.popleft()
                    self._busy.add(actor)
                    return actor
                if self._busy:
                    begun = time.monotonic()
                self._check_waiting(time.monotonic() - begun)
                self._change.wait(_PAUSE)

    def _check_waiting(self, seconds: float) -> None:
        """Tell that there is no worker; raise UserError if there will be none."""
        if seconds < TOLD:
            return
        if not any(node["Alive"] for node in self._ray.nodes()):
            raise UserError("all nodes of the Ray cluster are lost; repeat the command to resume")
        if seconds > LIMIT:
            raise UserError(
                f"no worker of Ray has started in {LIMIT:g} s: {self._room()}; repeat the command "
                "to resume"
            )
        if not self._told:
            self._told = True
            console.print(f"waiting for a worker of Ray to start: {self._room()}", soft_wrap=True)

    def _admit(self) -> None:
        """Let the actors join that have started, and replace those that were lost before."""
        if not self._starting:
            return
        there = list(self._starting)
        done, _ = self._ray.wait(there, num_returns=len(there), timeout=0)
        for reference in done:
            actor = self._starting.pop(reference)
            try:
                error = self._ray.get(reference)
            except self._ray.exceptions.RayError as lost:
                self._lost += 1
                error = _lost(lost) if self._lost >= TRIES else None
                self._end(actor)
                self._begin()
            else:
                self._lost = 0
                self._free.append(actor)
            self._error = self._error or error

    def _return(self, actor) -> None:
        with self._change:
            self._busy.discard(actor)
            self._free.append(actor)
            self._change.notify()

    def _replace(self, actor) -> None:
        self._end(actor)
        with self._change:
            self._busy.discard(actor)
            if self._error is None:
                self._begin()
            self._change.notify()

    def _room(self) -> str:
        has, free = self._ray.cluster_resources(), self._ray.available_resources()
        name = self._needed
        return f"the cluster has {name}: {has.get(name, 0):g}, free: {free.get(name, 0):g}"


def _lost(error) -> UserError:
    said = " ".join(str(error).split())[:300]
    return UserError(f"Ray lost a worker {TRIES} times: {said}; repeat the command to resume")
