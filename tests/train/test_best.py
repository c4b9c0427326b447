"""The best checkpoint by a validation metric: kept, resumed, and exported on request."""

import json
import shutil

import numpy as np
import pytest
import tiny_runs
import train_as_processes
from tiny_state import make_state

from fct_jax import load_model
from fct_jax.errors import UserError
from fct_jax.runtime import sharding
from fct_jax.train.best import Best, check_rule
from fct_jax.train.checkpoint import Checkpoints
from fct_jax.train.loop import train
from fct_jax.train.transformation import TransformationTask


@pytest.fixture
def kept(tmp_path):
    """Return (rule) -> Best on one folder, as a restarted run would have it."""
    opened = []

    def again(rule):
        while opened:
            opened.pop().close()
        newest = Checkpoints(tmp_path, keep=1)
        opened.extend([newest, Best(rule, newest)])
        return opened[-1]

    yield again
    while opened:
        opened.pop().close()


@pytest.mark.parametrize(
    "rule, best", [("max top1", 30), ("min top1", 20), ("max validation/top1", 30)]
)
def test_best_so_far_is_kept_and_survives(kept, rule, best):
    """The first of equal values wins; a value that is not finite is never the best."""
    found = kept(rule)
    values = {10: 0.5, 20: 0.2, 30: 0.7, 40: 0.7, 50: float("nan"), 60: 0.2}
    for step, value in values.items():
        found.offer(step, {"loss": 1.0, "top1": value}, make_state(step))
    found = kept(rule)
    assert (found.step, found.value) == (best, values[best])
    found.go_on_from(60)
    state = found.restore(make_state(0))
    assert int(state.step) == best
    np.testing.assert_array_equal(state.batch_stats["mean"], make_state(best).batch_stats["mean"])


def test_going_on_before_the_best_forgets_it(kept):
    """The best is reached again, since training is exact."""
    kept("max top1").offer(30, {"top1": 0.7}, make_state(30))
    found = kept("max top1")
    found.go_on_from(20)
    assert found.step is None
    found.offer(25, {"top1": 0.1}, make_state(25))
    assert (found.step, found.value) == (25, 0.1)
    assert int(found.restore(make_state(0)).step) == 25


def test_another_rule_starts_anew(kept):
    kept("max top1").offer(30, {"top1": 0.7, "loss": 3.0}, make_state(30))
    found = kept("min loss")
    assert found.step is None
    found.go_on_from(30)
    found.offer(30, {"top1": 0.7, "loss": 3.0}, make_state(30))
    assert (found.step, found.value) == (30, 3.0)


def test_nothing_finite_to_restore(kept):
    found = kept("min loss")
    found.offer(10, {"loss": float("inf")}, make_state(10))
    with pytest.raises(UserError, match="no validation gave a finite loss"):
        found.restore(make_state(0))


@pytest.mark.parametrize(
    "rule, export, message",
    [
        ("top1", "last", "must be 'max METRIC' or 'min METRIC'; metrics: loss, top1, top5"),
        ("best top1", "last", "must be 'max METRIC' or 'min METRIC'"),
        ("max top2", "last", "unknown metric in config.keep_best: 'top2'; did you mean 'top"),
        ("max", "last", "unknown metric in config.keep_best: ''"),
        ("", "best", "config.export=best needs config.keep_best"),
        ("", "beste", "unknown config.export 'beste'; did you mean 'best'"),
    ],
)
def test_mistakes_are_named(rule, export, message):
    with pytest.raises(UserError, match=message):
        check_rule(rule, export, ("loss", "top1", "top5"))


def test_no_validation_split():
    with pytest.raises(UserError, match="there is no validation split to judge by"):
        check_rule("min loss", "last", ())
    check_rule("", "last", ())


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("best")
    train_as_processes.write_sets(folder / "sets")
    return folder


def config_of(sets, **changes):
    """Return a config whose rate is far too high, so that the first epoch is the best."""
    return train_as_processes.resident(
        sets,
        epochs=3,
        optimizer__lr=3.0,
        evaluate_every_epochs=1,
        keep_best="min loss",
        keep_checkpoints=1,
        **changes,
    )


def validation(run):
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {e["step"]: e["validation/loss"] for e in entries if "validation/loss" in e}


@pytest.fixture(scope="module")
def exported(sets):
    """Make a finished run whose model is the best state."""
    train(config_of(sets, export="best"), sets / "run")
    return sets / "run"


def test_exported_model_is_the_best(sets, exported):
    """The best outlives newer checkpoints, and is the state that its epoch's validation saw."""
    losses = validation(exported)
    best = min(losses, key=losses.get)
    assert best < max(losses)
    assert [p.name for p in (exported / "checkpoints" / "best").iterdir()] == [str(best)]
    assert not (exported / "checkpoints" / str(best)).exists()
    task = TransformationTask(config_of(sets), sharding.make_mesh())
    found = task.evaluate(load_model(exported).variables)
    assert found.keys() == set(task.metrics)
    assert found["loss"] == pytest.approx(losses[best], rel=1e-5)


def test_killed_before_its_evaluation(sets, exported, tmp_path):
    """A run that was killed just after it saved its epoch evaluates this when it resumes."""
    run = tmp_path / "run"
    shutil.copytree(exported, run)
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "checkpoints" / "best")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert "validation/loss" in lines[-1]
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))
    train(config_of(sets, export="best"), run)
    assert validation(run) == validation(exported)
    last = max(validation(run))
    assert [p.name for p in (run / "checkpoints" / "best").iterdir()] == [str(last)]


def test_mistake_leaves_no_directory(sets, tmp_path):
    with pytest.raises(UserError, match="did you mean 'similarity'"):
        train(tiny_runs.changed(config_of(sets), {"keep_best": "max similarty"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
