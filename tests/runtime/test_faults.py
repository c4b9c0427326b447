"""Killed at any moment, a run ends as if nothing had happened; other faults have a name."""

import json
import os
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_runs
from forked import Process
from patience import LONG
from tiny_data import write_folder

from fct_jax import models
from fct_jax.data import Preprocessing, open_source
from fct_jax.errors import UserError
from fct_jax.frozen.model import write_model
from fct_jax.runtime import sharding
from fct_jax.runtime.workdir import claim_workdir
from fct_jax.train.image_batches import image_feed
from fct_jax.train.metrics_log import MetricsLog
from fct_jax.train.running_means import RunningMeans
from tools.fault_injection import Moment, Runner, draw
from tools.faults.cases import CASES
from tools.faults.compare import differences, last_step


class Runs(Runner):
    """Runs, of which the next ones kill themselves at the paths in ``die_at``."""

    def __init__(self, folder):
        super().__init__(folder, start=self._start_forked)
        self.die_at = []

    def _start_forked(self, *command):
        return Process(*command, die_at=self.die_at.pop(0) if self.die_at else "")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("runs"))


ITSELF = Moment("itself", 0)


@pytest.mark.slow(minutes=2)
@pytest.mark.multiprocess
def test_a_training_killed_twice_ends_the_same(runs):
    """It is killed at the end of a checkpoint's write, and at the end of the model's export."""
    runs.reference("old")
    runs.die_at = ["*/checkpoints/6", "*/model"]
    kills, differ = runs.round("old", 0, [ITSELF, ITSELF])
    assert differ == []
    assert [kill.where for kill in kills] == ["writing checkpoint 6", "exporting the model"]


@pytest.mark.slow
@pytest.mark.multiprocess
def test_an_embedding_killed_twice_ends_the_same(runs):
    """It is killed between two shards, and at the end."""
    runs.reference("embed")
    runs.die_at = ["*/shards/00002.json", "embed"]
    kills, differ = runs.round("embed", 0, [ITSELF, ITSELF])
    assert differ == []
    assert [kill.where for kill in kills] == [f"embedding, {n} shards done" for n in (2, 8)]


def data_workers(pid):
    """Return the process ids of a training's data workers."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    ids = [int(child) for file in children for child in file.read_text().split()]
    return [i for i in ids if "spawn_main" in Path(f"/proc/{i}/cmdline").read_text()]


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_dead_worker_ends_a_training_with_one_line(tmp_path):
    changes = {"data.in_memory": "no", "data.workers": 1, "epochs": 1000}
    case = CASES["backbone"]
    case = case._replace(changes={**case.changes, **changes, "checkpoint_every_steps": 2})
    process = Process("fct_jax.train", case.arguments("run"), tmp_path)
    saved = tmp_path / "run" / "checkpoints"
    deadline = time.monotonic() + LONG
    while not any(path.name.isdigit() for path in saved.glob("*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    (worker,) = data_workers(process.pid)
    os.kill(worker, signal.SIGKILL)
    process.wait(timeout=LONG)
    assert process.returncode == 1
    *_, last = (tmp_path / "output").read_text().splitlines()
    assert last.startswith("error: data worker 0 of 1 died (killed by SIGKILL), often for lack of")
    assert "goes on from its last checkpoint" in last


def test_a_damaged_or_missing_image_is_named_where_its_batch_is_wanted(tmp_path):
    write_folder(tmp_path, size=(8, 8))
    config = tiny_runs.backbone(
        data__name="folder", data__dir=str(tmp_path), data__classes="", data__in_memory="no"
    )
    config.batch_size = 10
    source = open_source(config.data, "train")
    damaged = tmp_path / "training" / "0" / "3.png"
    for fault in (lambda: damaged.write_bytes(b"damaged"), damaged.unlink):
        fault()
        feed = image_feed(source, Preprocessing(size=8), config, sharding.make_mesh())
        with pytest.raises(UserError, match=r"cannot read image .*training/0/3\.png") as error:
            list(feed.calls(0))
        assert "\n" not in str(error.value)
        feed.close()


def test_what_a_run_leaves_beside_its_model_is_there_first(tmp_path):
    def killed(fingerprint):
        assert len(fingerprint) == 16 and not (tmp_path / "model").exists()
        raise KeyboardInterrupt

    model = {"kind": "transformation", "name": "fct", "kwargs": {"embedding_dim": 4}}
    model |= {"dim": 4, "old_dim": 4, "side_dim": 4, "needs_side": False}
    model |= dict.fromkeys(("old_fingerprint", "new_fingerprint", "side_fingerprint"))
    model["kwargs"]["inner_dim"] = 8
    old = np.zeros((2, 4), np.float32)
    variables = models.build("fct", **model["kwargs"]).init(jax.random.key(0), old, old)
    with pytest.raises(KeyboardInterrupt):
        write_model(tmp_path / "model", model, variables, killed)
    assert list(tmp_path.iterdir()) == []
    write_model(tmp_path / "model", model, variables)
    assert (tmp_path / "model" / "model.json").is_file()


def test_directory_that_was_claimed_half(tmp_path):
    config = tiny_runs.backbone()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.partial").write_text('{"seed"')
    claim_workdir(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == 0
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_log_goes_on_where_the_checkpoint_is(tmp_path):
    """The log is cut in the middle of a line; entries after the checkpoint are written again."""
    log = MetricsLog(tmp_path, 0)
    for step in (2, 4, 6):
        log.write(step, {"train/loss": step / 3})
    log.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 8, "tra')
    log = MetricsLog(tmp_path, 4)
    log.write(6, {"train/loss": 0.5})
    log.close()
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert entries == [{"step": s, "train/loss": v} for s, v in ((2, 2 / 3), (4, 4 / 3), (6, 0.5))]
    assert last_step(tmp_path) == 6 and last_step(tmp_path, since=time.time() + 60) == -1


def test_means_go_on_exactly():
    """Means include the steps before the checkpoint, which go through JSON."""
    whole, first = RunningMeans(None), RunningMeans(None)
    values = [0.1, 0.7, 1 / 3, 2.5]
    for running, part in ((whole, values), (first, values[:2])):
        for step, value in enumerate(part):
            running.add({"loss": value}, 1, step)
    first.fetch()
    second = RunningMeans(None)
    second.restore(json.loads(json.dumps(first.position())))
    for value in values[2:]:
        second.add({"loss": value}, 1, 0)
    assert second.means("")["loss"] == whole.means("")["loss"]
    assert second.position()["steps"] == 0


def test_tool_notices_every_difference(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for home in (one, other):
        (home / "run" / "checkpoints" / "5").mkdir(parents=True)
        (home / "run" / "weights").write_bytes(b"abc")
        log = "".join(
            json.dumps({"step": s, "train/loss": 1.0, "train/data_wait": s * len(home.name)}) + "\n"
            for s in (1, 2)
        )
        (home / "run" / "metrics.jsonl").write_text(log)
        (home / "output").write_text(home.name)
    assert differences(one, other, "run") == []
    (other / "run" / "weights").write_bytes(b"abd")
    (other / "run" / ".model.new").mkdir()
    (other / "run" / ".model.new" / "part").touch()
    (other / "run" / "checkpoints" / "5").rename(other / "run" / "checkpoints" / "4")
    log = log.replace('"step": 2', '"step": 1')
    (other / "run" / "metrics.jsonl").write_text(log)
    assert differences(one, other, "run") == [
        "run/.model.new/part was left behind",
        "run/metrics.jsonl has the steps [1, 1], undisturbed [1, 2]",
        "run/weights differs",
        "checkpoints ['4'], undisturbed ['5']",
    ]
    (other / "run" / "metrics.jsonl").write_text(
        (one / "run" / "metrics.jsonl").read_text().replace("1.0", "1.5")
    )
    (other / "run" / "weights").unlink()
    assert {"run/weights is missing", "run/metrics.jsonl has other values at step 1"} <= set(
        differences(one, other, "run")
    )


@pytest.mark.parametrize("name", ["backbone", "embed"])
def test_tool_draws_moments_that_a_run_comes_to_in_turn(name):
    order = ["time", "step", "checkpoint", "embedding", "step", "export", "end"]
    for seed in range(20):
        moments = draw(name, 10.0, 20, 4, np.random.default_rng(seed))
        kinds = [moment.kind for moment in moments]
        assert len(kinds) == 4 and kinds[0] == "time"
        last = [len(order) - 1 - order[::-1].index(kind) for kind in kinds if kind != "step"]
        assert last == sorted(last)
        assert moments == draw(name, 10.0, 20, 4, np.random.default_rng(seed))
