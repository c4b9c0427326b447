"""Ray: the bytes of one process, although workers and drivers are killed, and one line if not."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import tiny_galleries as tiny

import fct_jax
from fct_jax import cli
from fct_jax.errors import UserError
from fct_jax.upgrade.migration.upgrade import Upgrade
from fct_jax.upgrade.parts.engines import Engine
from fct_jax.upgrade.parts.ray_engine import _check_installed

REPOSITORY = Path(__file__).parents[3]
HELPERS = REPOSITORY / "tests" / "helpers"
COUNT = 3000


def test_settings_of_an_engine(tmp_path, capsys):
    ids, old, _ = tiny.vectors(20)
    path = tiny.write_gallery("set", tmp_path / "old", ids, old)
    for wrong, expected in (
        ({"engine": "rays"}, "unknown engine 'rays'; did you mean 'ray'"),
        ({"workers": 2}, "workers is a setting of an engine; give engine=ray"),
        ({"engine": "ray", "workers": 0}, "workers must be 1 or more"),
        ({"engine": "ray", "gpus_per_worker": -1}, "gpus_per_worker must be 0 or more"),
        ({"engine": "ray", "part": "1/2"}, "give one of them"),
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

    def get(self, reference):
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


class Driver:
    """The command in a process of its own, with its output in a file."""

    def __init__(self, log: Path, *words):
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "fct_jax", "apply", *map(str, words)],
                env={
                    **os.environ,
                    "PYTHONPATH": f"{HELPERS}{os.pathsep}{REPOSITORY}",
                    "ASKED": str(log.with_name("asked")),
                    "NEW": str(log.with_name("new")),
                },
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
            )
        self.seen: set[int] = set()

    def descendants(self) -> dict[int, str]:
        """Return the names of the processes that it started, and that these did, by number."""
        found, parents = {}, {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                text = stat.read_text()
                title = (stat.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, UnicodeDecodeError):
                continue
            parents[int(stat.parent.name)] = int(text.rpartition(")")[2].split()[1]), title
        known = {self.process.pid}
        while True:
            more = {n for n, (parent, _) in parents.items() if parent in known} - known
            if not more:
                break
            known |= more
        found = {n: parents[n][1] for n in known if n in parents}
        self.seen |= set(found)
        return found

    def until(self, reached) -> None:
        """Wait until something is reached, or the process ends."""
        begun = time.monotonic()
        while not reached() and self.process.poll() is None:
            self.descendants()
            assert time.monotonic() - begun < 120, self.log.read_text()
            time.sleep(0.05)

    def kill_worker(self, title: str) -> None:
        """Kill one worker that is at work."""
        found = [n for n, name in self.descendants().items() if name.startswith(f"ray::{title}")]
        assert found, self.log.read_text()
        os.kill(found[0], signal.SIGKILL)

    def kill(self) -> None:
        """Kill the process; Ray's own end with it, or are killed here."""
        self.descendants()
        self.process.kill()
        self.process.wait()
        time.sleep(1)
        for number in self.seen - {self.process.pid}:
            try:
                if b"ray" in Path(f"/proc/{number}/cmdline").read_bytes():
                    os.kill(number, signal.SIGKILL)
            except OSError:
                continue

    def done(self) -> str:
        """Return the output of a process that ends by itself."""
        self.until(lambda: False)
        assert self.process.returncode == 0, self.log.read_text()
        return self.log.read_text()


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

    driver = Driver(tmp_path / "1.log", up, *ray)
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
    said = driver.done()
    assert "ray::" not in said and "(pid=" not in said and len(said.splitlines()) < 60
    Driver(tmp_path / "one.log", tmp_path / "one", *given, *again).done()
    assert tiny.tree(up / "gallery") == tiny.tree(tmp_path / "one" / "gallery")
    # Both upgrades ask for the sample and for every item once; the lost worker's call is repeated.
    total = sum(map(int, asked.read_text().split()))
    assert total <= 2 * (COUNT + 300) + 100
    meta = json.loads((up / "gallery" / "_meta.json").read_text())
    assert meta["state"] == "finished"
