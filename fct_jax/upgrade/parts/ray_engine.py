"""Pieces and models on Ray, which only schedules: what is published counts.

A worker is an actor. If one is lost, Ray starts another, which makes the piece again; if the driver
is lost, the same command makes the pieces that are missing.
"""

import contextlib
import logging
import os
import queue
import socket
from collections import deque
from pathlib import Path

from fct_jax.errors import UserError
from fct_jax.runtime.plugins import imported
from fct_jax.runtime.progress import Bar
from fct_jax.upgrade.parts.engines import Engine, Workers
from fct_jax.upgrade.parts.running import Running

# Ray gives its processes 30 and 60 seconds to start, which is too short on a busy machine.
_PATIENCE = {"RAY_raylet_start_wait_time_s": "600", "RAY_worker_register_timeout_seconds": "600"}
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_TRIES = 3  # of a piece or a call whose worker is lost
_OBJECTS = 100 << 20  # bytes; vectors go through files, not through Ray's memory


class _Translator:
    """A worker that makes pieces; it opens map and gallery once, with its first piece."""

    def __init__(self, workdir: str):
        # Ray would take an error of this method for a lost worker.
        self._workdir, self._running = Path(workdir), None

    def make(self, number: int) -> None:
        """Make a piece, unless another worker has published it meanwhile."""
        self._running = self._running or Running.resumed(self._workdir)
        publishing = self._running.publishing
        piece = publishing.pieces[number]
        if publishing.record(piece) is None:
            publishing.make(piece)


class _Model:
    """A worker that holds a model, which it loads when it is first asked."""

    def __init__(self, where):
        self._where, self._function = where, where if callable(where) else None

    def ask(self, ids):
        """Return the vectors of some ids."""
        if self._function is None:
            self._function = imported(str(self._where), "function")
        return self._function(ids)


class RayWorkers(Workers):
    """Pools of actors on a Ray cluster."""

    def __init__(self, ray, engine: Engine):
        self._ray, self._engine = ray, engine

    def make(self, workdir, pieces):
        ray, waiting = self._ray, deque(pieces)
        count = min(self._count(0), len(pieces))
        pool = self._pool(_Translator, count, {"num_cpus": 1}, str(workdir))
        free, running = deque(pool), {}
        total = sum(piece.stop - piece.start for piece in pieces)
        with self._ending(pool), Bar("translating on Ray", total, "vectors") as bar:
            while waiting or running:
                while free and waiting:
                    actor, piece = free.popleft(), waiting.popleft()
                    running[actor.make.remote(piece.number)] = actor, piece
                (done,), _ = ray.wait(list(running))
                actor, piece = running.pop(done)
                self._got(done)
                bar.advance(piece.stop - piece.start)
                free.append(actor)

    def function(self, where):
        count, gpus = self._count(self._engine.gpus_per_worker), self._engine.gpus_per_worker
        # No CPU is reserved: these workers wait while others translate.
        reserved = {"num_gpus": gpus} if gpus else {"scheduling_strategy": "SPREAD"}
        pool = self._pool(_Model, count, {"num_cpus": 0, **reserved}, where)
        free: queue.Queue = queue.Queue()
        for actor in pool:
            free.put(actor)

        def ask(ids):
            actor = free.get()
            try:
                return self._got(actor.ask.remote(ids))
            finally:
                free.put(actor)

        name = getattr(where, "__name__", "the function") if callable(where) else str(where)
        ask.__name__ = name
        return ask, count

    def _count(self, gpus: float) -> int:
        """Return the number of workers. Raises UserError if the cluster has too few GPUs."""
        there = self._ray.cluster_resources()
        most = int(there.get("GPU", 0) / gpus) if gpus else int(there.get("CPU", 1))
        if gpus and most < (self._engine.workers or 1):
            raise UserError(
                f"the Ray cluster has GPUs: {there.get('GPU', 0):g}; needed for each worker: "
                f"{gpus:g}, workers: {self._engine.workers or 1}"
            )
        return self._engine.workers or max(most, 1)

    def _pool(self, kind: type, count: int, options: dict, *arguments) -> list:
        actor = self._ray.remote(kind).options(max_restarts=-1, max_task_retries=_TRIES, **options)
        return [actor.remote(*arguments) for _ in range(count)]

    @contextlib.contextmanager
    def _ending(self, pool: list):
        """End the actors of a pool with the context, to free what they hold."""
        try:
            yield
        finally:
            for actor in pool:
                self._ray.kill(actor)

    def _got(self, reference):
        """Return a result; raise a worker's error as its own, and a lost worker's as UserError."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause or error from None
        except self._ray.exceptions.RayError as error:
            said = " ".join(str(error).split())[:300]
            raise UserError(
                f"Ray lost a worker {_TRIES + 1} times: {said}; repeat the command to resume"
            ) from None


@contextlib.contextmanager
def opened(engine: Engine):
    """Context of a Ray cluster: that of the address, or one on this machine."""
    for name, value in {**_PATIENCE, **_QUIET}.items():
        os.environ.setdefault(name, value)
    import ray

    _check_reachable(engine.address)
    paths = [str(Path.cwd()), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    variables = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    here = {"num_cpus": engine.workers, "object_store_memory": _OBJECTS, "include_dashboard": False}
    begun = not ray.is_initialized()
    if begun:
        try:
            ray.init(
                address=engine.address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": variables},
                **({} if engine.address else here),
            )
        except (OSError, RuntimeError, ValueError) as error:
            said = " ".join(str(error).split())[:300]
            raise UserError(f"Ray cannot be started or reached: {said}") from None
    try:
        _check_installed(ray)
        yield RayWorkers(ray, engine)
    finally:
        if begun:
            ray.shutdown()


def _check_reachable(address: str | None) -> None:
    """Raise UserError if nobody answers at ``host:port``, for which Ray waits for minutes."""
    host, colon, port = (address or "").rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        return  # no address, or a word such as auto
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(f"nobody answers at {address}: {error.strerror or error}") from None


def _check_installed(ray) -> None:
    """Raise UserError unless a worker has this version of the package."""

    def version():  # defined here, so that Ray sends its code
        try:
            import fct_jax
        except ModuleNotFoundError as error:
            return f"no module {error.name}"
        return f"fct_jax {fct_jax.__version__}"

    found, own = ray.get(ray.remote(version).options(num_cpus=0).remote()), version()
    if found != own:
        raise UserError(
            f"a worker of Ray has {found}, but this process has {own}; install the same version "
            "on every node, or set PYTHONPATH"
        )
