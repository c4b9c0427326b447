"""Records which images each step gets; test_elastic_order.py runs it as several processes.

Usage: order_as_processes.py OUT POSITIONS PORT INDEX COUNT
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import tiny_runs
from patience import LONG

from fct_jax import data
from fct_jax.data.sampling import Shuffled
from fct_jax.runtime import processes, sharding
from fct_jax.train.feeds import ResidentFeed
from fct_jax.train.image_batches import image_feed, preprocessing_of

BATCH = 240  # of 1,000 digits: four steps an epoch
STEPS = 4


def feeds(mesh) -> dict:
    """Return a streamed and a resident feed, the latter of three steps a call."""
    config = tiny_runs.backbone(data__in_memory="no", data__classes="", batch_size=BATCH)
    config.preprocessing.flip = True
    source = data.open_source(config.data, "train")
    return {
        "streamed": image_feed(source, preprocessing_of(config.preprocessing), config, mesh),
        "resident": ResidentFeed(
            {}, 1000, None, sampler=Shuffled(1000, BATCH, seed=5), mesh=mesh, steps_per_call=3
        ),
    }


def parts(call, axis: int):
    """Yield (first row, last row, values by name) of what this process's devices hold of a call."""
    arrays = call if isinstance(call, dict) else {"index": call}
    for shards in zip(*(array.addressable_shards for array in arrays.values()), strict=True):
        first, last, _ = shards[0].index[axis].indices(BATCH)
        yield (
            first,
            last,
            {name: np.asarray(shard.data) for name, shard in zip(arrays, shards, strict=True)},
        )


def recorded(feed, step: int, until: int):
    """Return ((steps, {name: this process's part of it}), position) of the steps of a feed."""
    seen = {}
    while step < until:
        for steps, call in feed.calls(step):
            for first, last, values in parts(call, 1):
                for i in range(min(steps, until - step)):
                    for name, value in values.items():
                        seen[f"{step + i}/{name}/{first}/{last}"] = value[i]
            step += steps
            if step >= until:
                break
    return seen, feed.position()


def main(out: Path, positions: dict, process: int) -> None:
    """Go on from saved positions, {name: [step, position]}, to the second epoch."""
    mesh = sharding.make_mesh(model=2)
    for name, feed in feeds(mesh).items():
        step, position = positions[name]
        feed.seek(position)
        seen, _ = recorded(feed, step, 2 * STEPS)
        np.savez(out / f"{name}-{process}.npz", **seen)
        feed.close()


if __name__ == "__main__":
    out, positions, port, process, count = sys.argv[1:]
    processes.start(f"localhost:{port}", int(process), int(count), timeout=LONG)
    main(Path(out), json.loads(positions), int(process))
    assert jax.process_count() == int(count)
