"""The loop learns, resumes where it was, stops on NaN, and writes the files it promises."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny_runs
from patience import LONG
from safetensors.numpy import load_file

from fct_jax import load_model
from fct_jax.data import open_source
from fct_jax.errors import UserError
from fct_jax.storage.files import Lock
from fct_jax.train.loop import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Make an uninterrupted run."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    train(tiny_runs.backbone(), run)
    return run


def weights(run):
    return load_file(run / "model" / "weights.safetensors")


def assert_same_weights(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_loss_falls_and_metrics_are_written(finished):
    entries = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    losses = [entry["train/loss"] for entry in entries if "train/loss" in entry]
    assert len(losses) == 2 and losses[1] < losses[0]
    (validation,) = [entry for entry in entries if "validation/top1" in entry]
    # Compute it by hand with the exported model, which knows five of the ten classes.
    source = open_source(tiny_runs.backbone(data__classes="").data, "validation")
    model = load_model(finished)
    host = model.preprocessing.on_host
    images = np.stack([host(source[i]["image"]) for i in range(len(source))])
    logits = jax.jit(model.forward)(model.variables, images)[0]
    ranks = np.argsort(-np.asarray(logits), axis=1) == np.asarray(source.labels)[:, None]
    for k in (1, 5):
        expected = ranks[:, :k].any(axis=1).mean()
        assert validation[f"validation/top{k}"] == pytest.approx(expected, abs=1.5 / len(source))
    assert list((finished / "tensorboard").iterdir())
    # On small data the periodic log may fall anywhere, so that each epoch is logged as well.
    epochs = [entry for entry in entries if "epoch/loss" in entry]
    assert [(entry["step"], entry["epoch/number"]) for entry in epochs] == [(5, 1), (10, 2)]
    assert [entry["epoch/loss"] for entry in epochs] == pytest.approx(losses)  # also 5 steps each


def test_what_is_trained_on_is_said_first(tmp_path, capsys, monkeypatch):
    def nothing(*arguments):
        raise UserError("the first step")

    monkeypatch.setattr("fct_jax.train.loop._trained", nothing)
    with pytest.raises(UserError, match="the first step"):
        train(tiny_runs.backbone(model__name="resnet18", last_batch="keep"), tmp_path / "run")
    assert capsys.readouterr().out.splitlines() == [
        "resnet18 on 501 images, 5 of 10 classes (digits train, classes 'first 5')",
        "validation: 797 images",
        "batch 100 = 1 device × 100; lr 0.1",
    ]
    # Nothing was trained yet, so that another config is no change.
    with pytest.raises(UserError, match="the first step"):
        train(tiny_runs.backbone(model__name="resnet18", optimizer__lr=0.2), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["optimizer"]["lr"] == 0.2


def test_a_run_of_an_earlier_version_goes_on(finished, capsys):
    """Keys that the earlier version did not know have their defaults."""
    path = finished / "config.json"
    kept = path.read_text()
    config = json.loads(kept)
    del config["last_batch"], config["sampler"]["rounds"]
    path.write_text(json.dumps(config))
    train(tiny_runs.backbone(), finished)
    assert "is finished" in capsys.readouterr().out
    config["optimizer"]["nesterov"] = True
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config \(optimizer.nesterov: True there, False now\)"):
        train(tiny_runs.backbone(), finished)
    path.write_text(kept)


def test_config_is_kept(finished):
    assert json.loads((finished / "config.json").read_text())["model"]["width"] == 4


@pytest.mark.slow
def test_same_seed_same_weights_and_other_seed_others(finished, tmp_path):
    train(tiny_runs.backbone(), tmp_path / "again")
    assert_same_weights(finished, tmp_path / "again")
    train(tiny_runs.backbone(seed=1, epochs=2), tmp_path / "other")
    name = "params/classifier/kernel"
    assert not np.array_equal(weights(finished)[name], weights(tmp_path / "other")[name])


def test_finished_run_is_left_alone(finished, capsys):
    before = (finished / "model" / "weights.safetensors").stat().st_mtime_ns
    train(tiny_runs.backbone(), finished)
    assert "is finished" in capsys.readouterr().out
    assert (finished / "model" / "weights.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "in_memory, last_batch", [("yes", "drop"), ("no", "drop"), ("yes", "keep"), ("no", "keep")]
)
def test_resumed_run_is_bit_identical(tmp_path, in_memory, last_batch):
    """The run is stopped in the middle of its second epoch, with either feed."""
    config = tiny_runs.backbone(
        data__in_memory=in_memory,
        checkpoint_every_steps=3,
        keep_checkpoints=9,
        last_batch=last_batch,
        batch_size=100 if last_batch == "drop" else 160,  # of 501: 160, 160, 160, 21
    )
    train(config, tmp_path / "whole")
    run = tmp_path / "stopped"
    # Only the checkpoints up to step 6 (of 10) are left, as if the run had been killed then.
    train(config, run)
    for step in (run / "checkpoints").iterdir():
        if step.name.isdigit() and int(step.name) > 6:
            subprocess.run(["rm", "-r", step], check=True)
    subprocess.run(["rm", "-r", run / "model"], check=True)
    assert {step.name for step in (run / "checkpoints").iterdir()} == {"3", "6"}
    train(config, run)
    assert_same_weights(tmp_path / "whole", run)
    logs = [(where / "metrics.jsonl").read_text() for where in (tmp_path / "whole", run)]
    whole, stopped = ([json.loads(line) for line in log.splitlines()] for log in logs)
    steps = [entry["step"] for entry in stopped]
    assert steps == sorted(steps)
    epochs = [[entry for entry in log if "epoch/loss" in entry] for log in (whole, stopped)]
    assert len(epochs[0]) == 2 and epochs[0] == epochs[1]  # to the last bit


@pytest.mark.slow
@pytest.mark.multiprocess
def test_killed_process_goes_on(tmp_path):
    """SIGTERM saves and exits 0; SIGKILL loses nothing that a checkpoint held."""
    command = [
        sys.executable, "-m", "fct_jax.train", "--config", "configs/digits_backbone_old.py",
        f"--config.model.name={tiny_runs.MODEL}", "--config.model.width=4",
        "--config.preprocessing.size=8", "--config.epochs=100000",  # it never ends by itself
        "--config.checkpoint_every_steps=2", "--workdir", str(tmp_path / "run"),
    ]  # fmt: skip
    saved = tmp_path / "run" / "checkpoints"
    for sent, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 0)):
        process = subprocess.Popen(
            command,
            cwd=tiny_runs.REPOSITORY,
            env=tiny_runs.ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        before = {path.name for path in saved.iterdir()} if saved.is_dir() else set()
        deadline = time.monotonic() + LONG
        while time.monotonic() < deadline and process.poll() is None:
            now = {path.name for path in saved.iterdir()} if saved.is_dir() else set()
            if any(name.isdigit() for name in now - before):
                break
            time.sleep(0.1)
        os.kill(process.pid, sent)
        output, _ = process.communicate(timeout=LONG)
        assert process.returncode == code, output
    assert "resuming from step" in output
    assert "terminated: saved at step" in output


@pytest.mark.slow
def test_nan_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    first = tiny_runs.backbone(epochs=1, optimizer__schedule__warmup_epochs=0)
    train(first, tmp_path / "run")
    subprocess.run(["rm", "-r", tmp_path / "run" / "model"], check=True)
    broken = tiny_runs.backbone(optimizer__lr=1e30)
    with pytest.raises(UserError, match=r"no longer finite by step \d+; checkpoint 5 is kept"):
        train(broken, tmp_path / "run", allow_config_change=True)
    assert (tmp_path / "run" / "checkpoints" / "5").is_dir()
    assert not (tmp_path / "run" / "model").exists()


def test_other_config_in_the_same_directory_is_refused(finished):
    with pytest.raises(UserError, match=r"optimizer\.lr: 0\.1 there, 0\.2 now"):
        train(tiny_runs.backbone(optimizer__lr=0.2), finished)


def test_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        train(tiny_runs.backbone(), tmp_path)


def test_batch_larger_than_the_training_set(tmp_path):
    with pytest.raises(UserError, match="batch_size 4000 is larger than .* largest possible: 5"):
        train(tiny_runs.backbone(batch_size=4000), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"task": "backbon"}, "config.task is 'backbon'"),
        ({"model__name": "resnet19"}, "unknown model 'resnet19'; did you mean 'resnet18'"),
        ({"data__name": "cifar10"}, "unknown data set 'cifar10'; did you mean 'cifar100'"),
        ({"optimizer__name": "adamw"}, "did you mean 'adam'"),
        ({"data__classes": "first 11"}, "11"),
        ({"compute_dtype": "float31"}, "float31"),
    ],
)
def test_mistakes_are_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(tiny_runs.backbone(**changes), tmp_path / "run")


@pytest.mark.slow
def test_bfloat16_trains_close_to_float32(finished, tmp_path):
    train(tiny_runs.backbone(compute_dtype="bfloat16"), tmp_path / "run")
    exact, short = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (finished, tmp_path / "run")
    )
    name = "train/loss"
    assert [e["step"] for e in exact] == [e["step"] for e in short]
    for one, other in zip(exact, short, strict=True):
        if name in one:
            assert one[name] == pytest.approx(other[name], rel=0.1)
    assert {value.dtype for value in weights(tmp_path / "run").values()} == {np.dtype("float32")}


def test_two_runs_do_not_share_a_directory(tmp_path):
    refused = pytest.raises(UserError, match="another run is making .*run; wait")
    with Lock(tmp_path / "run"), refused:
        train(tiny_runs.backbone(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
