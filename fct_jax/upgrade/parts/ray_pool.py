"""Pools of Ray's actors, of which any can be lost at any time, with their node or alone."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable

from fct_jax.errors import UserError
from fct_jax.runtime.progress import console
from fct_jax.upgrade.parts.ray_cluster import line
from fct_jax.upgrade.parts.ray_head import Head

TRIES = 4  # of a call whose worker is lost, and of workers that end before they have started
TOLD, LIMIT = 10.0, 600.0  # seconds without any worker until this is said, and until it is an error
_PAUSE = 0.2  # seconds between two looks at the workers that start
_LOOK = 2.0  # seconds of waiting for an answer between two looks at the cluster


class Pool:
    """Actors of one kind, which are free, busy or starting.

    Ray could restart a lost actor itself, but would keep its call for it; and on a cluster that has
    lost a node there is no room for it. Here the call goes to the next free actor, and a
    replacement joins as soon as Ray finds room.
    """

    def __init__(self, ray, create: Callable, count: int, needed: str, head: Head):
        """Begin to start ``count`` actors.

        Args:
          ray: the module.
          create: returns a new actor, whose method ``ready`` returns None or a UserError.
          needed: resource of the cluster that an actor needs, ``CPU`` or ``GPU``.
          head: the cluster's head node.
        """
        self._ray, self._create, self._needed, self._head = ray, create, needed, head
        self._change = threading.Condition()
        self._starting: dict = {}  # reference to the first answer -> actor
        self._free: deque = deque()
        self._busy: set = set()
        self._lost, self._error, self._told, self._looks = 0, None, False, False
        for _ in range(count):
            self._begin()

    def call(self, method: str, *arguments):
        """Return what a method of a free actor returns; wait until one is free.

        Raises UserError if the actors cannot start, if the actors of this call were lost, or if
        the cluster was.
        """
        for _ in range(TRIES):
            actor = self._take()
            try:
                answer = self._answer(getattr(actor, method).remote(*arguments))
            except self._ray.exceptions.RayTaskError as error:
                self._return(actor)
                raise error.cause or error from None
            except self._ray.exceptions.RayError as error:
                lost = error
                self._replace(actor)
                continue
            except ConnectionError as error:  # of Ray's client
                raise self._failed(_cut(error)) from None
            self._return(actor)
            return answer
        raise _lost(lost)

    def _answer(self, asked):
        """Wait for an actor's answer, but not for one that has gone with the head node."""
        while not self._ray.wait([asked], num_returns=1, timeout=_LOOK)[0]:
            if self._error is not None:
                raise self._error
            try:
                self._head.answers()
            except UserError as error:
                raise self._failed(error) from None
        return self._ray.get(asked)

    def wait(self) -> None:
        """Wait until an actor has started. Raises UserError if none can."""
        self._return(self._take())

    def close(self) -> None:
        """End the actors, and with them the calls that are under way."""
        with self._change:
            actors = [*self._starting.values(), *self._free, *self._busy]
        self._failed(UserError("the workers of Ray have been ended"))
        for actor in actors:
            self._end(actor)

    def _failed(self, error: UserError) -> UserError:
        """End the waiting of all threads with an error; return the first one that there was."""
        with self._change:
            self._error = self._error or error
            self._change.notify_all()
            return self._error

    def _begin(self) -> None:
        try:
            actor = self._create()
            self._starting[actor.ready.remote()] = actor
        except (self._ray.exceptions.RayError, ConnectionError) as error:
            self._failed(_cut(error))

    def _end(self, actor) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError, ConnectionError):
            self._ray.kill(actor)

    def _take(self):
        """Return a free actor. Raises UserError if there will be none."""
        begun = time.monotonic()
        with self._change:
            while self._error is None and not self._free:
                if self._busy:
                    begun = time.monotonic()
                if self._looks:
                    self._change.wait()
                else:
                    self._look(begun)
            self._change.notify()  # another thread takes the next actor, or looks
            if self._error is not None:
                raise self._error
            actor = self._free.popleft()
            self._busy.add(actor)
            return actor

    def _look(self, begun: float) -> None:
        """Look at the workers that start, then wait a moment; one thread does so for all.

        begun: the time since which there is no worker.
        """
        self._looks = True
        try:
            self._admit()
            if self._error is None and not self._free:
                self._check_waiting(time.monotonic() - begun)
                self._change.wait(_PAUSE)
        except UserError as error:
            self._failed(error)
        except (self._ray.exceptions.RayError, ConnectionError) as error:
            self._failed(_cut(error))
        finally:
            self._looks = False

    def _check_waiting(self, seconds: float) -> None:
        """Tell that there is no worker; raise UserError if there will be none."""
        if seconds < TOLD or not self._head.answers():
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


def _lost(error: Exception) -> UserError:
    return UserError(f"Ray lost a worker {TRIES} times: {line(error)} Repeat the command to resume")


def _cut(error: Exception) -> UserError:
    return UserError(f"the Ray cluster is out of reach: {line(error)} Repeat the command to resume")
