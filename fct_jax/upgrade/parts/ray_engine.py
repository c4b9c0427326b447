"""Pieces and models on Ray, which only schedules: what is published counts.

If a worker or its node is lost, another worker makes the piece again; if the driver is lost, the
same command makes the pieces that are missing.
"""

import contextlib
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from fct_jax.errors import UserError
from fct_jax.runtime.plugins import brief
from fct_jax.runtime.progress import Bar
from fct_jax.upgrade.migration.reembed import failed, function_of, name_of
from fct_jax.upgrade.migration.retrying import again_of
from fct_jax.upgrade.parts.engines import Engine, Workers
from fct_jax.upgrade.parts.ray_cluster import connected
from fct_jax.upgrade.parts.ray_head import Head
from fct_jax.upgrade.parts.ray_pool import Pool
from fct_jax.upgrade.parts.running import Running


class _Translator:
    """A worker that makes pieces; it opens map and gallery once, with its first piece."""

    def __init__(self, workdir: str):
        # Ray would take an error of this method for a lost worker.
        self._workdir, self._running = Path(workdir), None

    def ready(self) -> None:
        """Tell that the worker has started."""

    def make(self, number: int) -> None:
        """Make a piece, unless another worker has published it meanwhile."""
        self._running = self._running or Running.resumed(self._workdir)
        publishing = self._running.publishing
        piece = publishing.pieces[number]
        if publishing.record(piece) is None:
            publishing.make(piece)


class _Model:
    """A worker that holds a model.

    What a user's function raises is told as a value: its own class of exception may be unknown to
    the driver, or load the model there.
    """

    def __init__(self, name: str, packed: bytes):
        self._name, self._packed, self._function = name, packed, None

    def ready(self) -> UserError | None:
        """Load the function; return the error if that fails."""
        import ray

        try:
            self._function = function_of(ray.cloudpickle.loads(self._packed))
        except UserError as error:
            return UserError(str(error))
        except (Exception, SystemExit) as error:
            return UserError(f"{self._name} cannot be loaded by a worker of Ray: {brief(error)}")
        return None

    def ask(self, ids):
        """Return the vectors of some ids and None, or None and the error."""
        try:
            return self._function(ids), None
        except UserError as error:
            return None, UserError(str(error))
        except Exception as error:
            return None, again_of(error) or failed(self._name, ids, error)
        except SystemExit as error:  # Ray would take it for a lost worker
            return None, failed(self._name, ids, error)


class RayWorkers(Workers):
    """Pools of actors on a Ray cluster."""

    def __init__(self, ray, engine: Engine):
        self._ray, self._engine, self._head = ray, engine, Head.of(ray)
        self._open = contextlib.ExitStack()

    def close(self) -> None:
        """End the workers that hold functions."""
        self._open.close()

    def make(self, workdir, pieces):
        count = min(self._count(), len(pieces))
        total = sum(piece.stop - piece.start for piece in pieces)
        with contextlib.ExitStack() as stack:
            bar = stack.enter_context(Bar("translating on Ray", total, "vectors"))
            threads = ThreadPoolExecutor(count)
            stack.callback(threads.shutdown, cancel_futures=True)
            pool = self._pool(_Translator, count, "CPU", {"num_cpus": 1}, str(workdir))
            stack.callback(pool.close)  # before the threads, which wait for it
            futures = {threads.submit(pool.call, "make", each.number): each for each in pieces}
            for future in as_completed(futures):
                future.result()
                bar.advance(futures[future].stop - futures[future].start)

    def function(self, where):
        gpus, name = self._engine.gpus_per_worker, name_of(where)
        try:
            packed = self._ray.cloudpickle.dumps(where)
        except Exception as error:
            raise UserError(
                f"{name} cannot be sent to the workers of Ray: {brief(error)}"
            ) from None
        # No CPU is reserved: these workers wait while others translate.
        options = {"num_cpus": 0, **({"num_gpus": gpus} if gpus else {})}
        if not gpus:
            options["scheduling_strategy"] = "SPREAD"
        count = self._count_with(gpus) if gpus else self._count()
        pool = self._pool(_Model, count, "GPU" if gpus else "CPU", options, name, packed)
        self._open.callback(pool.close)
        pool.wait()  # a function that cannot be loaded is told before anything is translated

        def ask(ids):
            vectors, error = pool.call("ask", ids)
            if error is not None:
                raise error
            return vectors

        ask.__name__ = name
        return ask, count

    def _count(self) -> int:
        return self._engine.workers or max(int(self._ray.cluster_resources().get("CPU", 1)), 1)

    def _count_with(self, gpus: float) -> int:
        """Return the number of workers with GPUs. Raises UserError if so many do not fit."""
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        there = [node["Resources"].get("GPU", 0) for node in nodes]
        fitting = sum(int(each / gpus + 1e-6) for each in there)  # a worker is on one node
        if fitting < (self._engine.workers or 1):
            has = ", ".join(f"{each:g}" for each in sorted(there, reverse=True)[:10])
            has += ", …" if len(there) > 10 else ""
            raise UserError(
                f"{self._engine.workers or 1} workers with GPUs: {gpus:g} do not fit on the Ray "
                f"cluster, whose nodes have GPUs: {has}; so many workers fit: {fitting}"
            )
        return self._engine.workers or fitting

    def _pool(self, kind: type, count: int, needed: str, options: dict, *arguments) -> Pool:
        actor = self._ray.remote(kind).options(max_restarts=0, max_task_retries=0, **options)
        return Pool(self._ray, lambda: actor.remote(*arguments), count, needed, self._head)


@contextlib.contextmanager
def opened(engine: Engine):
    """Context of a Ray cluster: that of the address, or one on this machine."""
    with connected(engine) as ray, contextlib.closing(RayWorkers(ray, engine)) as workers:
        yield workers
