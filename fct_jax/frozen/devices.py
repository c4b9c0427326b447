"""A frozen model on all devices of this process: each embeds whole batches of its own."""

import collections
import copy
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fct_jax.frozen.blocks import pipelined
from fct_jax.frozen.callable_model import CallableModel


def on_local_devices(model) -> tuple[Callable, int]:
    """Return (``model.run`` on all devices, how many stacked batches it takes at once).

    Each device computes its batch independently, so results do not depend on the number of devices.
    A Python function chooses its device itself, and gets one batch at a time.
    """
    if isinstance(model, CallableModel):
        return model.run, 1
    devices = jax.local_devices()
    if len(devices) == 1:
        return model.run, 1
    # Only this process's devices, because each process has its own shards.
    mesh = jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)
    model = copy.copy(model)
    model.needed = jax.device_put(model.needed, NamedSharding(mesh, PartitionSpec()))
    split = NamedSharding(mesh, PartitionSpec("data"))
    return lambda *arrays: model.run(*jax.device_put(arrays, split)), len(devices)


def run_batches(
    model, batches: Iterable[tuple[np.ndarray, list[np.ndarray]]], batch_size: int
) -> Iterator[tuple[np.ndarray, object]]:
    """Yield (rows (n,), the model's result for them) for (rows (n,), inputs) in order.

    Args:
      model: Embedder, Transformer or CallableModel.
      batches: at most ``batch_size`` rows each.
      batch_size: rows that a device works on together; smaller batches are padded to it.
    """
    run, parts = on_local_devices(model)
    pending = collections.deque()  # the rows of each group that is under way

    def groups():
        source = iter(batches)
        while group := list(itertools.islice(source, parts)):
            pending.append([rows for rows, _ in group])
            yield [
                _stacked(arrays, batch_size)
                for arrays in zip(*(inputs for _, inputs in group), strict=True)
            ]

    for result in pipelined(run, groups(), parts * batch_size):
        for i, rows in enumerate(pending.popleft()):
            part = slice(i * batch_size, i * batch_size + len(rows))
            yield rows, jax.tree.map(operator.itemgetter(part), result)


def _stacked(arrays: tuple[np.ndarray, ...], batch_size: int) -> np.ndarray:
    """Stack the batches, all but the last padded to the batch size by their own last row."""
    if len(arrays) == 1:
        return arrays[0]
    padding = [batch_size - len(array) for array in arrays[:-1]]
    padded = [
        np.concatenate([array, np.repeat(array[-1:], missing, 0)]) if missing else array
        for array, missing in zip(arrays, padding, strict=False)
    ]
    return np.concatenate([*padded, arrays[-1]])
