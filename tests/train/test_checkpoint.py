"""Checkpoints: a saved state comes back; a damaged checkpoint is skipped."""

import gc
import logging
import types

import jax
import numpy as np
import pytest
from tiny_state import make_state

from fct_jax.errors import UserError
from fct_jax.train.checkpoint import Checkpoints, check_space


def save_two(folder):
    checkpoints = Checkpoints(folder, keep=2)
    for step in (10, 20):
        checkpoints.save(step, make_state(step), {"position": step})
    checkpoints.close()


def assert_restored(folder, step):
    checkpoints = Checkpoints(folder, keep=2)
    state, feed = checkpoints.restore(make_state(0))
    checkpoints.close()
    expected = make_state(step)
    assert int(state.step) == step
    assert feed == {"position": step}
    np.testing.assert_array_equal(
        state.params["layer"]["kernel"], expected.params["layer"]["kernel"]
    )
    np.testing.assert_array_equal(
        state.opt_state[0]["layer"]["kernel"], expected.params["layer"]["kernel"]
    )


def test_newest_comes_back(tmp_path):
    save_two(tmp_path)
    assert_restored(tmp_path, 20)


def test_nothing_saved_is_none(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.restore(make_state(0)) is None
    checkpoints.close()


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


# A failed read leaves work behind in Orbax's own event loop, which complains when collected.
failed_reads = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def collected():
    """Collect the remains of failed reads while the warning filter is active."""
    yield
    gc.collect()


@failed_reads
def test_every_truncated_file_is_noticed(tmp_path, caplog, collected):
    """Whichever file of the newest checkpoint is cut in half, the previous one is used, or the
    file was not needed and the newest comes back whole: never a mixture or a crash."""
    save_two(tmp_path / "0")
    names = [path.relative_to(tmp_path / "0") for path in files_of(tmp_path / "0" / "20")]
    noticed = 0
    for number, name in enumerate(names, start=1):
        folder = tmp_path / str(number)
        save_two(folder)
        if not (folder / name).is_file():
            continue  # names that hold a random id differ from save to save
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            checkpoints = Checkpoints(folder, keep=2)
            state, _ = checkpoints.restore(make_state(0))
            checkpoints.close()
        step = int(state.step)
        assert step in (10, 20)
        expected = make_state(step).params["layer"]["kernel"]
        np.testing.assert_array_equal(state.params["layer"]["kernel"], expected)
        if step == 10:
            noticed += 1
            assert any("checkpoint 20 cannot be read" in r.getMessage() for r in caplog.records)
    assert noticed >= 2


@failed_reads
def test_largest_file_truncated_uses_previous(tmp_path, collected):
    save_two(tmp_path)
    largest = max(files_of(tmp_path / "20"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    assert_restored(tmp_path, 10)
    assert (tmp_path / "unreadable-20").is_dir()
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(20, make_state(20), {"position": 20})
    checkpoints.close()
    assert_restored(tmp_path, 20)


@failed_reads
def test_no_readable_checkpoint_is_an_error(tmp_path, collected):
    save_two(tmp_path)
    for step in (10, 20):
        for path in files_of(tmp_path / str(step)):
            path.write_bytes(b"")
    checkpoints = Checkpoints(tmp_path, keep=2)
    with pytest.raises(UserError, match="no checkpoint in .* can be read"):
        checkpoints.restore(make_state(0))
    checkpoints.close()


def test_a_disk_that_is_too_small_is_told_beforehand(tmp_path, monkeypatch):
    config = types.SimpleNamespace(keep_checkpoints=2, keep_best="")
    state = make_state(0)
    size = sum(np.asarray(array).nbytes for array in jax.tree.leaves(state))
    free = types.SimpleNamespace(free=4 * size)  # two, the one being written, and the model
    monkeypatch.setattr("shutil.disk_usage", lambda folder: free)
    check_space(tmp_path, state, config)
    free.free -= 1
    with pytest.raises(UserError, match="GB free, but checkpoints and model need .* GB; a smaller"):
        check_space(tmp_path, state, config)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "there").write_bytes(b"1")  # a resumed run already has this
    check_space(tmp_path, state, config)
    config.keep_best = "min loss"
    with pytest.raises(UserError):
        check_space(tmp_path, state, config)


@pytest.mark.parametrize(
    "said", ["[Errno 28] No space left on device: 'x'", "RESOURCE_EXHAUSTED: Disk quota exceeded"]
)
def test_a_disk_that_gets_full_is_one_line(tmp_path, monkeypatch, said):
    checkpoints = Checkpoints(tmp_path, keep=2)

    def full(*arguments, **options):
        raise ValueError(f"{said}\nand the stack of another library")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, "save", full)
        with pytest.raises(UserError, match="no space left to write .*free some space") as caught:
            checkpoints.save(1, make_state(1), {})
        assert "\n" not in str(caught.value)
        patch.setattr(checkpoints._manager, "wait_until_finished", full)
        with pytest.raises(UserError, match="no space left"):
            checkpoints.wait()
    checkpoints.close()
