"""Gradients of a batch from micro-batches, one after the other.

For a loss that is a mean over samples the mean of the micro-batches' gradients is the gradient of
the whole batch. Operations across a batch (BatchNorm, contrasts between samples, means over
selected samples) see one micro-batch; running statistics pass from one to the next.
"""

from typing import NamedTuple

import jax


class MicroBatches(NamedTuple):
    """The division of a batch into micro-batches.

    Attributes:
      count: number of micro-batches; ``count * group`` divides the batch.
      group: number of neighbouring samples that stay together in one micro-batch.
    """

    count: int = 1
    group: int = 1

    def part(self, batch, i):
        """Return micro-batch ``i`` of a pytree of arrays (B, …): every ``count``-th group.

        In this order each device uses only samples that it already has.
        """

        def take(array):
            rest = array.shape[1:]
            groups = array.reshape(-1, self.count, self.group, *rest)
            return jax.lax.dynamic_index_in_dim(groups, i, 1, keepdims=False).reshape(-1, *rest)

        return batch if self.count == 1 else jax.tree.map(take, batch)

    def key(self, key: jax.Array, i) -> jax.Array:
        """Return the key of micro-batch ``i``, or the batch's key if there is only one."""
        return key if self.count == 1 else jax.random.fold_in(key, i)


WHOLE = MicroBatches()
