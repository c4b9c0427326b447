"""Ray's workers and clusters that fail: one line each, the same as without Ray where it can be."""

import threading
import time
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


@pytest.mark.parametrize(
    "name",
    ["nowhere:f", "broken:f", "wrong:rises", "wrong:value", "wrong:raises", "wrong:odd"]
    + ["wrong:limited"],
)
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
            vectors, error = model.ask(ids)
            assert type(error).__module__.startswith("fct_jax.")
            raise error

        ask.__name__ = name
        return ask

    expected = told(name)
    try:
        assert told(on_a_worker()) == expected
    except UserError as error:
        assert str(error) == expected


def test_a_function_that_ends_its_process(monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray: pip install 'fct_jax[ray]'")
    from fct_jax.upgrade.parts.ray_engine import _Model

    model = _Model("exit", ray.cloudpickle.dumps(exit))
    assert model.ready() is None
    _, error = model.ask([5])
    assert str(error).startswith("exit failed on 1 ids") or "exit failed on" in str(error)


class Lost(Exception):
    pass


class Raised(Lost):
    cause = None


class FakeRay:
    """Stands for Ray: an actor's answer is what it holds, an exception is raised."""

    exceptions = types.SimpleNamespace(RayError=Lost, RayTaskError=Raised)
    alive, killed = True, 0

    def wait(self, references, num_returns, timeout):
        return [one for one in references if one.answer is not None], []

    def get(self, reference):
        if isinstance(reference.answer, Exception):
            raise reference.answer
        return reference.answer[0]

    def kill(self, actor):
        self.killed += 1

    def nodes(self):
        return [{"Alive": self.alive}]

    def cluster_resources(self):
        return {"CPU": 2.0}

    def available_resources(self):
        return {}


def worker(ready, *answers):
    """Return an actor that starts as told, and then gives some answers."""
    remaining = list(answers)

    def reference(answer):
        reference = types.SimpleNamespace(answer=answer)
        reference.__class__ = type("Reference", (types.SimpleNamespace,), {"__hash__": id})
        return reference

    return types.SimpleNamespace(
        ready=types.SimpleNamespace(remote=lambda: reference(ready)),
        make=types.SimpleNamespace(remote=lambda number: reference(remaining.pop(0))),
    )
