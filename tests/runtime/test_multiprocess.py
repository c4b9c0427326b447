"""Two processes of two devices each do what one process with one device does."""

import json
import shutil
import signal
import time

import cluster
import numpy as np
import pytest
import tiny_runs
import train_as_processes
from patience import LONG
from ports import free_port
from safetensors.numpy import load_file

from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.train.loop import train

SCRIPT = tiny_runs.REPOSITORY / "tests" / "helpers" / "train_as_processes.py"


def first_half(run, out):
    """Copy a run as it was in the middle of its first epoch, as if it had been killed then."""
    shutil.copytree(run, out)
    shutil.rmtree(out / "model")
    for step in steps_saved(out)[1:]:
        shutil.rmtree(out / "checkpoints" / str(step))
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return folders "one" and "two", made by one and two processes, and the output of the two."""
    folder = tmp_path_factory.mktemp("cluster")
    one, two = folder / "one", folder / "two"
    train_as_processes.write_sets(one / "sets")
    train_as_processes.stages(one)
    shutil.copytree(one / "sets", two / "sets")
    first_half(one / "streamed", two / "continued")
    port, logs = free_port(), folder / "logs"
    with cluster.started(lambda index: [SCRIPT, two, port, index, 2], 2, logs) as running:
        deadline = time.monotonic() + LONG
        while not steps_saved(two / "endless"):
            assert time.monotonic() < deadline
            assert all(process.poll() is None for process in running), cluster.outputs(logs, 2)
            time.sleep(0.1)
        running[1].send_signal(signal.SIGTERM)
        codes, said = cluster.finished(running, logs, timeout=LONG)
    assert codes == [0, 0], said
    return one, two, said


def steps_saved(run):
    folder = run / "checkpoints"
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in found if path.name.isdigit())


def entries(run):
    """Return the log without entries that depend on the machine's speed."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timing = ("train/steps_per_second", "train/data_wait")
    return [{key: value for key, value in line.items() if key not in timing} for line in lines]


def assert_close(found, expected, name=""):
    scale = max(np.abs(expected).max(), 1e-3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * scale, err_msg=name)


def assert_same_run(run, other):
    found, expected = entries(run), entries(other)
    assert [line.keys() for line in found] == [line.keys() for line in expected]
    for one, two in zip(found, expected, strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-5)
        for name in (name for name in one if "loss" in name):
            assert one[name] == pytest.approx(two[name], rel=0, abs=1e-5), name
    found, expected = (load_file(r / "model" / "weights.safetensors") for r in (run, other))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(found[name], value, name)


@pytest.mark.slow(minutes=0.4)
@pytest.mark.multiprocess
@pytest.mark.parametrize("name", ["streamed", "resident"])
def test_training_gives_the_same_numbers(runs, name):
    """Losses, validation metrics and weights agree, including BatchNorm statistics."""
    one, two, _ = runs
    assert len(entries(one / name)) >= 2
    assert_same_run(two / name, one / name)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_checkpoint_of_one_process_goes_on_with_two(runs):
    one, two, said = runs
    assert "resuming from step 2" in said[0]
    assert_same_run(two / "continued", one / "streamed")


@pytest.mark.slow
@pytest.mark.multiprocess
def test_checkpoint_of_two_processes_goes_on_with_one(runs, tmp_path, capsys):
    one, two, _ = runs
    run = first_half(two / "streamed", tmp_path / "run")
    train(train_as_processes.streamed(), run)
    assert "resuming from step 2" in capsys.readouterr().out
    assert_same_run(run, one / "streamed")


@pytest.mark.slow
@pytest.mark.multiprocess
def test_embedding_and_evaluation_give_the_same_numbers(runs):
    one, two, _ = runs
    found, expected = (EmbeddingSet.read(folder / "set") for folder in (two, one))
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert_close(found.vectors, expected.vectors)
    found, expected = (
        json.loads((folder / "report" / "report.json").read_text()) for folder in (two, one)
    )
    for kind in ("retrieval", "auc"):
        assert found[kind].keys() == expected[kind].keys()
        for row, values in expected[kind].items():
            for name, value in values.items():
                assert found[kind][row][name] == pytest.approx(value, abs=1e-4), (row, name)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_one_process_writes_and_prints(runs):
    _, two, said = runs
    assert said[0].count("epoch 1/2: loss") == 2  # of "streamed" and "continued"
    for text in ("epoch", "parameters", "CMC@1", "resuming"):
        assert text in said[0] and text not in said[1]
    for name in ("streamed", "resident", "continued"):
        steps = [(line["step"], *sorted(line)) for line in entries(two / name)]
        assert len(steps) == len(set(steps))  # no other process has written the same lines
    assert len(list((two / "streamed" / "tensorboard").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.multiprocess
def test_best_checkpoint_is_kept_by_both(runs):
    for folder in runs[:2]:
        losses = {
            line["step"]: line["validation/loss"]
            for line in entries(folder / "streamed")
            if "validation/loss" in line
        }
        (best,) = (folder / "streamed" / "checkpoints" / "best").iterdir()
        assert int(best.name) == min(losses, key=losses.get)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_sigterm_to_one_process_saves_on_both(runs):
    """Both end with 0 after the same step, and the run can go on from there."""
    _, two, said = runs
    step = steps_saved(two / "endless")[-1]
    assert f"terminated: saved at step {step}; the same command resumes from there" in said[0]
    assert ["ended with 0" in text for text in said] == [True, True]
    assert not (two / "endless" / "model").exists()
