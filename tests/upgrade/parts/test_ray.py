"""Ray: the bytes of one process, although workers and drivers are killed, and one line if not."""

import json
import signal
import sys
import types

import numpy as np
import pytest
import tiny_galleries as tiny
from ray_driver import Driver

import fct_jax
from fct_jax import cli
from fct_jax.errors import UserError
from fct_jax.upgrade.migration.upgrade import Upgrade
from fct_jax.upgrade.parts.engines import Engine
from fct_jax.upgrade.parts.ray_cluster import _check_installed

COUNT = 3000


def test_settings_of_an_engine(tmp_path, capsys):
    ids, old, _ = tiny.vectors(20)
    path = tiny.write_gallery("set", tmp_path / "old", ids, old)
    for wrong, expected in (
        ({"engine": "rays"}, "unknown engine 'rays'; did you mean 'ray'"),
        ({"workers": 2}, "workers is a setting of an engine; give engine=ray"),
        ({"engine": "ray", "workers": 0}, "workers must be 1 or more"),
        ({"engine": "ray", "gpus_per_worker": -1}, "gpus_per_worker must be 0 or more"),
        ({"engine": "ray", "gpus_per_worker": 1.5}, "above 1 must be a whole number, not 1.5"),
        ({"engine": "ray", "part": "1/2"}, "give one of them"),
        ({"reembed": path, "part": "1/2"}, "give --reembed without --part"),
    ):
        with pytest.raises(UserError, match=expected):
            Upgrade(tmp_path / "up").apply(tiny.plain_map(), path, unchecked=True, **wrong)
    assert not (tmp_path / "up").exists()


def test_ray_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError), Engine("ray").opened():
        pass
    ids, old, _ = tiny.vectors(20)
    path = tiny.write_gallery("set", tmp_path / "old", ids, old)
    tiny.plain_map().save(tmp_path / "map")
    words = ["apply", tmp_path / "up", "--map", tmp_path / "map", "--gallery", path]
    assert cli.main([*map(str, words), "--engine", "ray"]) == 1
    assert "pip install 'fct_jax[ray]'" in capsys.readouterr().err


def test_no_cluster_at_an_address():
    pytest.importorskip("ray", reason="Ray: pip install 'fct_jax[ray]'")
    wrong = Engine("ray", "ray://127.0.0.1:1").opened()
    with pytest.raises(UserError, match="nobody answers at ray://127.0.0.1:1: .*refused"), wrong:
        pass


class OneWorker:
    """Stands for Ray with one worker, on whose node ``fct_jax`` is ``package``."""

    def __init__(self, package):
        self._package = package

    def remote(self, function):
        self._function = function
        return self

    def options(self, num_cpus):
        return types.SimpleNamespace(remote=self._call)

    def get(self, reference, timeout):
        return reference

    def _call(self):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "fct_jax", self._package)
            return self._function()


def test_workers_have_another_version_or_none():
    _check_installed(OneWorker(fct_jax))
    for package, found in (
        (types.SimpleNamespace(__version__="9.9"), "fct_jax 9.9"),
        (None, "no module fct_jax"),
    ):
        with pytest.raises(UserError, match=f"a worker of Ray has {found}, but this process has"):
            _check_installed(OneWorker(package))


@pytest.mark.slow
@pytest.mark.multiprocess
def test_workers_and_drivers_are_killed(tmp_path):
    """What a worker does is that of a part, so one form stands for all."""
    pytest.importorskip("ray", reason="Ray: pip install 'fct_jax[ray]'")
    ids, old, new = tiny.vectors(COUNT)
    old[77] = np.nan
    old[78] = 0
    tiny.as_set(tmp_path / "new", new, ids)
    path = tmp_path / "old"
    path.mkdir()
    tiny.write_parquet(path, ids, old, sizes=(70, 0, 130, *[60] * 40))
    given = ["--map", "slow_model:translate", "--gallery", path, "--batch-size", "16"]
    given += ["--unchecked"]
    asked = tmp_path / "asked"
    ray = [*given, "--engine", "ray", "--workers", "2"]
    up = tmp_path / "up"

    def pieces():
        return len(list((up / "parts").glob("piece-*.json")))

    driver = Driver(tmp_path / "1.log", up, *ray, slow=0.1)
    driver.until(lambda: pieces() > 3)
    driver.kill_worker("_Translator")
    before = pieces()
    driver.until(lambda: pieces() > before + 3)
    driver.kill()
    assert driver.process.returncode == -signal.SIGKILL
    between = pieces()
    assert 0 < between < 40
    shown = Upgrade(up).status()
    assert shown.state == "translating" and shown.pieces.done == between
    # A second start makes the rest, and goes on with the new vectors.
    again = ["--reembed", "slow_model:embed", "--batch-items", "100"]

    def batches():
        path = up / "journal.jsonl"
        return path.read_text().count('"kind": "batch"') if path.is_file() else 0

    driver = Driver(tmp_path / "2.log", up, *ray, *again)
    driver.until(lambda: batches() > 2)
    driver.kill_worker("_Model")
    (tmp_path / "go on").touch()
    said = driver.done()
    assert len(said.splitlines()) < 60
    Driver(tmp_path / "one.log", tmp_path / "one", *given, *again).done()
    assert tiny.tree(up / "gallery") == tiny.tree(tmp_path / "one" / "gallery")
    # Both upgrades ask for the sample and for every item once; the lost worker's call is repeated.
    total = sum(map(int, asked.read_text().split()))
    assert total <= 2 * (COUNT + 300) + 100
    meta = json.loads((up / "gallery" / "_meta.json").read_text())
    assert meta["state"] == "finished"
