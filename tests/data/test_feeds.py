"""Feeds: the next batch is there before it is asked for; positions mean the same everywhere."""

import json
import os
import subprocess
import sys
import time
import types

import jax
import ml_collections
import numpy as np
import pytest
from patience import LONG
from tiny_data import write_folder

from fct_jax.data import Preprocessing, open_source
from fct_jax.data.sampling import Shuffled
from fct_jax.errors import UserError
from fct_jax.runtime import sharding
from fct_jax.train.feeds import ResidentFeed, StreamFeed, rows_of_process
from fct_jax.train.image_batches import image_feed, sampler_of
from fct_jax.train.running_means import RunningMeans


class Counting:
    """Endless batches that take time; ``log`` tells when each was requested and finished."""

    steps_per_epoch = 4

    def __init__(self, seconds=0.0, fails_at=None):
        self.seconds, self.fails_at = seconds, fails_at
        self.position, self.log, self.closed = 0, [], False

    def seek(self, position):
        self.position = position

    def __next__(self):
        self.log.append(("read", self.position))
        time.sleep(self.seconds)
        if self.position == self.fails_at:
            raise OSError(f"disk of batch {self.position} is gone")
        self.position += 1
        return {"index": np.full(2, self.position - 1, np.int64)}

    def close(self):
        self.closed = True


def stream(batches, samples=8):
    mesh = sharding.make_mesh()
    return StreamFeed(batches, rows_of_process(2, mesh), 2, samples, mesh)


def numbers(calls):
    found = []
    for steps, call in calls:
        assert steps == 1 and call["index"].shape == (1, 2) and call["index"].dtype == np.int32
        found.append(int(call["index"][0, 0]))
    return found


def wait_for(condition):
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_epochs_follow_each_other_and_any_step_can_be_gone_to():
    feed = stream(Counting())
    assert numbers(feed.calls(0)) == [0, 1, 2, 3]
    assert numbers(feed.calls(4)) == [4, 5, 6, 7]
    assert numbers(feed.calls(2)) == [2, 3]
    assert numbers(feed.calls(101)) == [101, 102, 103]
    feed.close()


def test_one_batch_is_read_ahead_and_on_the_device_but_not_counted():
    batches = Counting()
    feed = stream(batches)
    calls = feed.calls(0)
    next(calls)
    wait_for(lambda: feed.ready)
    assert batches.log == [("read", 0), ("read", 1)]
    held = [array for array in jax.live_arrays() if array.shape == (1, 2)]
    assert any(np.array_equal(array, [[1, 1]]) for array in held)  # the second batch
    assert json.loads(json.dumps(feed.position())) == {"batches": 1, "samples": 8}
    next(calls)
    wait_for(lambda: feed.ready)
    assert batches.log[-1] == ("read", 2) and feed.position()["batches"] == 2
    feed.close()
    assert batches.closed


class Idle:
    """Replaces the checkpoints, which these tests do not use."""


def waited(read: float, step: float) -> float:
    """Return the share of time that a training waits for data; both are seconds per batch."""
    feed = stream(Counting(seconds=read))
    running = RunningMeans(Idle())

    class Step:
        """The loss of a step on a device, which is busy for a while as soon as it is free."""

        free = 0.0

        def __init__(self):
            Step.free = self.done = max(Step.free, time.monotonic()) + step

        def __float__(self):
            time.sleep(max(self.done - time.monotonic(), 0))
            return 1.0

    for first in (0, 4, 8):
        for _, _call in running.timed(feed, first):
            running.add({"loss": Step()}, 1, first)
    means = running.means("train/")
    feed.close()
    return means["train/data_wait"]


@pytest.mark.parametrize("ratio, low, high", [(0.5, 0.0, 0.25), (2, 0.3, 0.8)])
def test_reading_hides_behind_the_steps(ratio, low, high):
    """Reading for half of a step's time is free; for twice a step's time, half of it is waiting."""
    for step in (0.06, 0.3, 1.5):  # longer steps if a busy machine disturbs the short ones
        share = waited(ratio * step, step)
        if low <= share <= high:
            break
    assert low <= share <= high


def test_what_reading_raises_is_raised_where_the_batch_is_wanted():
    feed = stream(Counting(fails_at=2))
    calls = feed.calls(0)
    assert [next(calls)[0], next(calls)[0]] == [1, 1]
    with pytest.raises(OSError, match="disk of batch 2 is gone"):
        next(calls)
    assert feed.position()["batches"] == 2
    feed.close()


def test_other_data_are_refused():
    for feed in (stream(Counting(), samples=8), resident(8)):
        feed.seek(json.loads(json.dumps(feed.position())))
        changed = {**feed.position(), "samples": 9}
        with pytest.raises(UserError, match="training set of 9 samples, now there are 8"):
            feed.seek(changed)
        feed.close()


def resident(count, **changes):
    options = {"keep_last": changes.pop("keep_last", False), "seed": 1}
    sampler = Shuffled(count, changes.pop("batch_size", 3), **options)
    mesh = sharding.make_mesh()
    return ResidentFeed(np.zeros(count), count, None, sampler=sampler, mesh=mesh, **changes)


def test_resident_order_is_one_permutation_an_epoch():
    feed = resident(10, steps_per_call=2)
    assert feed.steps_per_epoch == 3 and feed.ready
    epochs = []
    for epoch in range(3):
        calls = list(feed.calls(3 * epoch))
        assert [steps for steps, _ in calls] == [2, 1]
        epochs.append(np.concatenate([np.asarray(call)[:steps] for steps, call in calls]).ravel())
        assert len(set(epochs[-1])) == 9
    assert len({tuple(epoch) for epoch in epochs}) == 3
    ((_, call),) = resident(10).calls(4)
    np.testing.assert_array_equal(np.asarray(call)[:2].ravel(), epochs[1][3:])
    with pytest.raises(UserError, match="batch_size 11 is larger .* of 10; largest possible: 10"):
        resident(10, batch_size=11)


def test_a_kept_last_batch_comes_in_a_call_of_its_own():
    feed = resident(10, steps_per_call=2, keep_last=True)
    assert feed.steps_per_epoch == 4
    calls = list(feed.calls(4))
    assert [(steps, call.shape) for steps, call in calls] == [(2, (2, 3)), (1, (2, 3)), (1, (1, 1))]
    seen = np.concatenate([np.asarray(call)[:steps].ravel() for steps, call in calls])
    assert sorted(seen) == list(range(10))
    ((_, call),) = feed.calls(7)
    assert np.asarray(call).tolist() == [[seen[-1]]]
    # If the images fill their batches there is no rest to keep.
    assert [steps for steps, _ in resident(9, steps_per_call=2, keep_last=True).calls(0)] == [2, 1]


def test_a_last_batch_that_the_devices_do_not_divide_is_refused():
    config = ml_collections.ConfigDict({"batch_size": 8, "seed": 0, "last_batch": "keep"})
    mesh = types.SimpleNamespace(size=4)
    assert sampler_of(config, None, 20, mesh).last_size == 4
    with pytest.raises(UserError, match=r"has 6 of 22 images, which 4 devices .*leave out 2 im"):
        sampler_of(config, None, 22, mesh)
    config.accumulate_steps = 2
    with pytest.raises(UserError, match=r"has 4 of 20 .*4 devices × 2 micro-batches .*=drop"):
        sampler_of(config, None, 20, mesh)
    config.sampler = {"name": "balanced"}
    with pytest.raises(UserError, match="'balanced' are always full; set config.last_batch=drop"):
        sampler_of(config, np.arange(20), 20, mesh)


@pytest.mark.parametrize("last_batch", ["drop", "keep"])
def test_both_feeds_show_the_same_images(tmp_path, last_batch):
    write_folder(tmp_path, size=(8, 8))
    config = ml_collections.ConfigDict(
        {
            "batch_size": 6,
            "seed": 3,
            "last_batch": last_batch,
            "data": {"name": "folder", "dir": str(tmp_path), "workers": 0, "on_error": "raise"},
        }
    )
    source = open_source(config.data, "train")
    seen = []
    for in_memory in ("yes", "no"):
        config.data.in_memory = in_memory
        feed = image_feed(source, Preprocessing(size=8), config, sharding.make_mesh())
        key = jax.random.key(0)
        found = []
        for step in range(0, 2 * feed.steps_per_epoch, feed.steps_per_epoch):
            for _, call in feed.calls(step):
                element = jax.tree.map(lambda array: array[0], call)
                batch = feed.pick(feed.data, element, key)
                found.append((np.asarray(batch["index"]), np.asarray(batch["image"])))
        feed.close()
        seen.append(found)
    assert [len(index) for index, _ in seen[0][:4]] == [6, 6, 6, 2 if last_batch == "keep" else 6]
    for (one, image), (other, same) in zip(*seen, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(image, same)


def test_rows_of_processes_share_a_batch(monkeypatch):
    """In any order of the devices, this process has its part, and the parts make up the batch."""
    mesh = sharding.make_mesh()
    np.testing.assert_array_equal(rows_of_process(6, mesh), np.arange(6))

    class Scattered:
        """Four devices, of which this process has the second and the fourth."""

        def addressable_devices_indices_map(self, shape):
            part = shape[0] // 4
            return {n: (slice(n * part, (n + 1) * part),) for n in (3, 1)}

    monkeypatch.setattr(sharding, "split_batch", lambda mesh: Scattered())
    np.testing.assert_array_equal(rows_of_process(8, mesh), [2, 3, 6, 7])


ON_FOUR_DEVICES = """
import sys
import jax, numpy as np, ml_collections
from fct_jax.data import Preprocessing, open_source
from fct_jax.data.sampling import Shuffled
from fct_jax.errors import UserError
from fct_jax.runtime import sharding
from fct_jax.train.image_batches import image_feed

data = {"name": "digits", "workers": 0, "on_error": "raise", "in_memory": "no"}
config = ml_collections.ConfigDict({"batch_size": 8, "seed": 3, "data": data})
source = open_source(config.data, "train")
order = Shuffled(len(source), 8, seed=3)(0)
mesh = sharding.make_mesh(2, 2)
feed = image_feed(source, Preprocessing(size=8), config, mesh)
for step, (_, call) in zip(range(3), feed.calls(0)):
    np.testing.assert_array_equal(call["index"][0], order[step])
    for shard in call["index"].addressable_shards:
        assert shard.data.shape == (1, 2)
    assert call["image"].sharding.is_equivalent_to(sharding.split_batch(mesh, 1), 5)
feed.close()

config.batch_size, config.last_batch = 400, "keep"  # of 1,000 images: 400, 400, 200
order = Shuffled(len(source), 400, seed=3, keep_last=True)(1)
feed = image_feed(source, Preprocessing(size=8), config, mesh)
*_, (_, call) = feed.calls(feed.steps_per_epoch)
last = order[-1][order[-1] >= 0]
np.testing.assert_array_equal(call["index"][0], last)
assert {shard.data.shape for shard in call["index"].addressable_shards} == {(1, len(last) // 4)}
feed.close()
config.data.classes, config.batch_size = "0-2", 200  # 299 images
try:
    image_feed(open_source(config.data, "train"), Preprocessing(size=8), config, mesh)
except UserError as error:
    assert "has 99 of 299 images, which 4 devices do not divide" in str(error), error
else:
    raise AssertionError("an odd batch was shared by four devices")
assert jax.device_count() == 4
"""


@pytest.mark.slow
def test_batches_lie_on_a_grid_of_devices():
    done = subprocess.run(
        [sys.executable, "-c", ON_FOUR_DEVICES],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "4"},
        timeout=LONG,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
