"""A run that goes on with other hosts and devices sees the same images in the same order.

Losses: `test_multiprocess.py`.
"""

import json
from collections import defaultdict
from pathlib import Path

import cluster
import numpy as np
import order_as_processes as order
import pytest
from patience import LONG
from ports import free_port

from fct_jax.runtime import sharding

SCRIPT = Path(order.__file__)
STOPPED = 2  # in the middle of the first epoch


@pytest.fixture(scope="module")
def alone():
    """Return (the steps of one process with one device, its positions at the stop)."""
    seen, positions = {}, {}
    for name, feed in order.feeds(sharding.make_mesh()).items():
        seen[name], _ = order.recorded(feed, 0, 2 * order.STEPS)
        feed.close()
    for name, feed in order.feeds(sharding.make_mesh()).items():
        _, position = order.recorded(feed, 0, STOPPED)
        positions[name] = STOPPED, json.loads(json.dumps(position))
        feed.close()
    return {name: whole([values]) for name, values in seen.items()}, positions


def whole(records) -> dict:
    """Put the parts of all processes together; return {(step, name): (B, …)}."""
    found = defaultdict(dict)
    for record in records:
        for key, value in record.items():
            step, name, first, last = key.split("/")
            before = found[int(step), name].setdefault((int(first), int(last)), value)
            np.testing.assert_array_equal(before, value)  # of devices that share rows
    arrays = {}
    for key, by_rows in found.items():
        rows = sorted(by_rows)
        assert [first for first, _ in rows] == [0, *(last for _, last in rows[:-1])]
        arrays[key] = np.concatenate([by_rows[row] for row in rows])
        assert len(arrays[key]) == order.BATCH
    return arrays


def test_one_device_sees_every_image_once(alone):
    for name, seen in alone[0].items():
        for epoch in range(2):
            steps = range(epoch * order.STEPS, (epoch + 1) * order.STEPS)
            indices = np.concatenate([seen[step, "index"] for step in steps])
            assert len(set(indices)) == order.STEPS * order.BATCH, name


@pytest.mark.slow
@pytest.mark.multiprocess
def test_the_order_is_the_same_to_the_last_bit(alone, tmp_path):
    """Images, labels, flips and indices of every step after a stop in the middle of an epoch."""
    expected, positions = alone
    count, devices = 2, 2
    port = free_port()
    codes, said = cluster.run(
        lambda index: [SCRIPT, tmp_path, json.dumps(positions), port, index, count],
        count,
        tmp_path / "logs",
        timeout=LONG,
        devices=devices,
    )
    assert codes == [0] * count, said
    for name, steps in expected.items():
        found = whole([dict(np.load(tmp_path / f"{name}-{i}.npz")) for i in range(count)])
        assert found.keys() == {key for key in steps if key[0] >= STOPPED}
        for key, value in found.items():
            np.testing.assert_array_equal(value, steps[key], err_msg=f"{name} {key}")
        names = {key[1] for key in found}
        assert names == ({"image", "label", "flip", "index"} if name == "streamed" else {"index"})
