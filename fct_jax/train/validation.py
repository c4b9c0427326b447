"""The validation split: batches that all devices share, and the ranks of the right classes."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from fct_jax import data
from fct_jax.runtime import sharding
from fct_jax.train.feeds import rows_of_process

NOTHING = -1  # label of a row that fills up a batch


def validation_batches(
    source, preprocessing, config: ConfigDict, mesh
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Yield (images uint8 (B, h, w, 3), labels int32 (B,)), once through the source.

    All batches are full: rows past the end, and rows of unreadable images that are skipped, have
    the label ``NOTHING``.

    Args:
      source: as ``data.open_source`` returns it.
      preprocessing: how images are prepared for the model.
      config: a config with ``batch_size`` and ``data``.
      mesh: the devices.
    """
    size, count = config.batch_size, len(source)
    rows = rows_of_process(size, mesh)
    places = np.arange(-(-count // size))[:, None] * size + rows
    wanted = np.minimum(places, count - 1)  # all processes read equally many full batches
    batches = data.batches(
        source,
        preprocessing,
        batch_size=len(rows),
        train=False,
        seed=0,
        workers=config.data.workers,
        on_error=config.data.on_error,
        indices=wanted.ravel(),
    )
    shape = (*preprocessing.shape, 3)
    for place, positions, found in zip(places, wanted, batches, strict=True):
        readable = np.isin(positions, found["index"])
        if readable.any():
            shape = found["image"].shape[1:]
        images = np.zeros((len(rows), *shape), np.uint8)
        labels = np.full(len(rows), NOTHING, np.int32)
        if readable.any():
            images[readable], labels[readable] = found["image"], found["label"]
        labels[place >= count] = NOTHING
        yield tuple(sharding.put_rows(array, rows, size, mesh) for array in (images, labels))


def ranks(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return (N,) how many classes come before a sample's own; equal ones come in their order.

    The label is among the k best of ``jax.lax.top_k`` if its rank is below k. Counting needs no
    sample's logits on one device: only counts travel where they are split by class.

    Args:
      logits: (N, C); NaN comes before all others, but has the rank C itself.
      labels: (N,) in [0, C); the rank of any other label means nothing.
    """
    classes = jnp.arange(logits.shape[-1])
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1, mode="clip")
    behind = (own > logits) | ((own == logits) & (classes >= labels[:, None]))
    return logits.shape[-1] - behind.sum(-1)
