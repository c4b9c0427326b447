"""Ray's workers and clusters that fail: one line each, the same as without Ray where it can be."""

import socket
import sys
import threading
import types

import numpy as np
import pytest
from patience import LONG

from fct_jax.errors import UserError
from fct_jax.upgrade.migration.reembed import Asking, open_reembed
from fct_jax.upgrade.parts import ray_cluster, ray_head, ray_pool
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


class FakeHead:
    """Stands for the head node; lost once it is told so."""

    lost = False

    def answers(self):
        if self.lost:
            raise UserError("the head node has gone")
        return True


def pool(*workers):
    """Return a pool of one worker, which the others replace, and its Ray."""
    ray, waiting = FakeRay(), list(workers)
    return ray_pool.Pool(ray, lambda: waiting.pop(0), 1, "CPU", FakeHead()), ray


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
    with pytest.raises(UserError, match="Ray lost a worker 4 times: no memory. Repeat the command"):
        made.call("make", 0)
    made, _ = pool(*[Worker(Lost("no start")) for _ in range(5)])
    with pytest.raises(UserError, match="Ray lost a worker 4 times: no start"):
        made.wait()


@pytest.mark.parametrize("kind", [Lost, ConnectionError])  # Ray's client raises the latter
def test_the_cluster_is_out_of_reach(kind):
    said = "the Ray cluster is out of reach: no connection. Repeat the command to resume"

    def unreachable(*arguments, **settings):
        raise kind("no connection")

    made, _ = pool(Worker(None, Lost("node")))
    made._create = unreachable
    with pytest.raises(UserError, match=said):
        made.call("make", 0)
    for name in ("wait", "get", "kill"):
        made, ray = pool(Worker(None, "1"))
        if name == "wait":
            setattr(ray, name, unreachable)
            with pytest.raises(UserError, match=said):
                made.wait()
        else:
            made.wait()
            made._create = unreachable
            setattr(ray, name, unreachable)
            if name == "get":
                with pytest.raises(UserError, match=said):
                    made.call("make", 0)
        made.close()


def test_the_head_node_is_lost_while_a_worker_is_busy():
    made, _ = pool(Worker(None, ""))
    made.wait()
    made._head.lost = True
    for _ in range(2):  # also for the threads that wait
        with pytest.raises(UserError, match="the head node has gone"):
            made.call("make", 0)


def test_one_thread_looks_at_the_workers_that_start(monkeypatch):
    """The others wait for it, and one of them takes its place when it has its worker."""
    monkeypatch.setattr(ray_pool, "_PAUSE", 0.01)
    count = 30
    made = ray_pool.Pool(FakeRay(), lambda: Worker("", "done"), count, "CPU", FakeHead())
    starting = list(made._starting)
    looking, most, look = [], [], made._look

    def watched(begun):
        looking.append(1)
        most.append(len(looking))
        look(begun)
        looking.pop()

    made._look = watched
    done = []

    def call():
        done.append(made.call("make", 0))

    threads = [threading.Thread(target=call, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for reference in starting:
        reference.answer = None  # they start one after the other
    for thread in threads:
        thread.join(LONG)
    assert done == ["done"] * count
    assert max(most, default=0) <= 1


def test_a_head_node_that_stops(monkeypatch):
    monkeypatch.setattr(ray_head, "LOOK", 0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        head = ray_head.Head(f"127.0.0.1:{server.getsockname()[1]}")
        unknown = ray_head.Head("")
        assert head.answers() and unknown.answers()
    assert not head.answers()  # it may come back
    head.limit = 0
    with pytest.raises(UserError, match="127.0.0.1:.* has not answered for 0 s; what is publ"):
        head.answers()
    assert unknown.answers()
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "300")
    assert ray_head.Head("").limit == 200


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
    made, ray = pool(Worker(""))
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


FAILED = """Initialization failure from server:
Traceback (most recent call last):
  File "/ray/proxier.py", line 765, in Datapath
    if not self.proxy_manager.start_specific_server(
           ^^^^^^^^^^^^^^^^^
ValueError: a first one

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/ray/proxier.py", line 772, in Datapath
    raise RuntimeError(
RuntimeError: Starting Ray client server failed. See ray_client_server_23000.err for
detailed logs.
"""


@pytest.mark.parametrize("failing", [2, 9])
def test_a_server_of_a_client_that_does_not_start(monkeypatch, failing):
    """It is tried again; of Ray's traceback only the last error is told, and what may help."""

    def unstarted():
        if len(ray.asked) <= failing:
            raise ConnectionAbortedError(FAILED)

    ray = Cluster(unstarted)
    settings = {}
    if failing == 2:
        ray_cluster._reach(ray, "ray://head:10001", settings)
    else:
        with pytest.raises(UserError) as raised:
            ray_cluster._reach(ray, "ray://head:10001", settings)
        said = str(raised.value)
        assert said.startswith(
            "the Ray cluster at ray://head:10001 cannot be used: RuntimeError: Starting Ray client "
            "server failed. See ray_client_server_23000.err for detailed logs. If the head node is"
        )
        assert "RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S=100" in said and "\n" not in said
    assert len(ray.asked) == 3


def test_an_address_of_something_else(monkeypatch):
    released = threading.Event()
    monkeypatch.setitem(sys.modules, "ray", Cluster(released.wait))
    monkeypatch.setattr(ray_cluster, "REACHED", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=f"no Ray cluster has answered at {address} for 0.1 s"):
            Engine("ray", address).opened().__enter__()
    released.set()
