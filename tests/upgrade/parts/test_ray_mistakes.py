"""Ray's workers and clusters that fail: one line each, the same as without Ray where it can be."""

import socket
import sys
import threading
import types

import numpy as np
import pytest

from fct_jax.errors import UserError
from fct_jax.upgrade.migration.reembed import Asking, open_reembed
from fct_jax.upgrade.parts import ray_cluster, ray_pool
from fct_jax.upgrade.parts.engines import Engine

WRONG = """
class Odd(Exception):
    def __init__(self, text, number):
        super().__init__(text)

class RateLimit(Exception):
    pass

value = 3

def raises(ids):
    raise ValueError("no such\\nid")

def odd(ids):
    raise Odd("strange", 3)

def limited(ids):
    raise RateLimit("slow down")
"""


NAMES = "nowhere:f broken:f wrong:rises wrong:value wrong:raises wrong:odd wrong:limited"


@pytest.mark.parametrize("name", NAMES.split())
def test_a_wrong_function_is_told_as_without_ray(name, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray: pip install 'fct_jax[ray]'")
    from fct_jax.upgrade.parts.ray_engine import _Model

    (tmp_path / "wrong.py").write_text(WRONG)
    (tmp_path / "broken.py").write_text("raise RuntimeError('no card')")
    monkeypatch.syspath_prepend(tmp_path)
    ids = np.arange(12)

    def told(where):
        with pytest.raises(UserError) as raised:
            answer = open_reembed(where, Asking(attempts=1))(ids)
            raise answer.error or AssertionError(answer)
        return str(raised.value)

    def on_a_worker():
        """Return a function that asks a worker, of which only values come back, pickled."""
        model = _Model(name, ray.cloudpickle.dumps(name))
        if error := ray.cloudpickle.loads(ray.cloudpickle.dumps(model.ready())):
            raise error

        def ask(ids):
            _, error = model.ask(ids)
            assert type(error).__module__.startswith("fct_jax.")
            raise error

        ask.__name__ = name
        return ask

    expected = told(name)
    try:
        assert told(on_a_worker()) == expected
    except UserError as error:
        assert str(error) == expected


def leave(ids):
    """Ends its process, as a library does that finds no card."""
    raise SystemExit(3)


def test_a_function_that_ends_its_process():
    ray = pytest.importorskip("ray", reason="Ray: pip install 'fct_jax[ray]'")
    from fct_jax.upgrade.parts.ray_engine import _Model

    model = _Model("leave", ray.cloudpickle.dumps(leave))
    assert model.ready() is None
    _, error = model.ask(np.arange(2))
    assert str(error) == "leave failed on 2 ids (0, 1): SystemExit: 3"


class Lost(Exception):
    """Stands for the errors of Ray."""


class Raised(Lost):
    """Stands for an error that a worker's method has raised."""

    cause = ZeroDivisionError("by zero")


class Reference:
    def __init__(self, answer):
        self.answer = answer


class Worker:
    """A worker that answers what it was given; an exception is raised, "" never comes."""

    def __init__(self, *answers):
        self._answers = list(answers)

    def _next(self, *arguments):
        return Reference(self._answers.pop(0))

    @property
    def ready(self):
        return types.SimpleNamespace(remote=self._next)

    make = ready


class FakeRay:
    """Stands for the module."""

    exceptions = types.SimpleNamespace(RayError=Lost, RayTaskError=Raised)
    alive = True

    def __init__(self):
        self.killed = []

    def wait(self, references, num_returns, timeout):
        return [one for one in references if one.answer != ""], []

    def get(self, reference):
        if isinstance(reference.answer, Lost):
            raise reference.answer
        return reference.answer

    def kill(self, actor):
        self.killed.append(actor)

    def nodes(self):
        return [{"Alive": self.alive}]

    def cluster_resources(self):
        return {"CPU": 2.0}

    available_resources = dict


def pool(*workers):
    """Return a pool of one worker, which the others replace, and its Ray."""
    ray, waiting = FakeRay(), list(workers)
    return ray_pool.Pool(ray, lambda: waiting.pop(0), 1, "CPU"), ray


def test_a_lost_worker_is_replaced():
    first, second = Worker(None, "1", Lost("node")), Worker(None, "2", "3")
    made, ray = pool(first, second)
    assert [made.call("make", 0) for _ in range(3)] == ["1", "2", "3"]
    assert ray.killed == [first]
    made.close()
    assert ray.killed == [first, second]
    with pytest.raises(UserError, match="have been ended"):
        made.call("make", 0)


def test_workers_that_are_lost_again_and_again():
    made, _ = pool(*[Worker(None, Lost("no\nmemory")) for _ in range(5)])
    with pytest.raises(UserError, match="Ray lost a worker 4 times: no memory; repeat the command"):
        made.call("make", 0)
    made, _ = pool(*[Worker(Lost("no start")) for _ in range(5)])
    with pytest.raises(UserError, match="Ray lost a worker 4 times: no start"):
        made.wait()


def test_no_worker_can_be_asked_for():
    made, _ = pool(Worker(None, Lost("node")))

    def unreachable():
        raise Lost("no connection")

    made._create = unreachable
    with pytest.raises(UserError, match="no connection"):
        made.call("make", 0)


def test_errors_of_workers():
    made, _ = pool(Worker(UserError("no such module"), None))
    for _ in range(2):
        with pytest.raises(UserError, match="no such module"):
            made.wait()
    made, _ = pool(Worker(None, Raised(), "1"))
    with pytest.raises(ZeroDivisionError):
        made.call("make", 0)
    assert made.call("make", 0) == "1"


def test_no_worker_starts(monkeypatch, capsys):
    monkeypatch.setattr(ray_pool, "TOLD", 0.0)
    monkeypatch.setattr(ray_pool, "LIMIT", 0.3)
    made, ray = pool(Worker(""))
    with pytest.raises(UserError, match="in 0.3 s: the cluster has CPU: 2, free: 0; repeat"):
        made.wait()
    assert capsys.readouterr().err.count("waiting for a worker of Ray to start") == 1
    ray.alive = False
    with pytest.raises(UserError, match="all nodes of the Ray cluster are lost"):
        made.wait()


class Cluster(FakeRay):
    """Stands for the module before it is connected; ``init`` starts or reaches a cluster."""

    _private = types.SimpleNamespace(worker=types.SimpleNamespace())

    def __init__(self, init):
        self._init, self.asked = init, []

    def is_initialized(self):
        return False

    def init(self, address, **settings):
        self.asked.append(address)
        self._init()


def test_a_cluster_that_does_not_start(monkeypatch):
    def raylet_is_dead():
        raise Exception("The current node\ntimed out during startup")

    ray = Cluster(raylet_is_dead)
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(UserError, match="on this machine: The current node timed out during star"):
        Engine("ray").opened().__enter__()
    with pytest.raises(UserError, match="cluster at auto cannot be used: The current node timed"):
        Engine("ray", "auto").opened().__enter__()
    assert ray.asked == ["local", "auto"]  # not a cluster that happens to run here


def test_an_address_of_something_else(monkeypatch):
    released = threading.Event()
    monkeypatch.setitem(sys.modules, "ray", Cluster(released.wait))
    monkeypatch.setattr(ray_cluster, "REACHED", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=f"no Ray cluster has answered at {address} for 0.1 s"):
            Engine("ray", address).opened().__enter__()
    released.set()
