"""Classifiers over very many classes, in a form that any number of devices can share.

Columns can be split only if the devices divide their number, and few numbers of devices divide
81,313 classes. While such a model trains, its classifier is padded with columns of zeros. They are
cut off before the task sees them, so they have no gradient and stay zero. Their number
depends only on the classes: a checkpoint fits every mesh.
"""

import jax
import jax.numpy as jnp

from fct_jax.runtime import processes, sharding

LARGE = 1024  # smallest number of classes with which a classifier is padded
MULTIPLE = 384  # divisible by 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, … devices; 3 x 128 lanes of a TPU


def with_padded_classes(task, mesh):
    """Return the task with padded parameters, or itself without a large classifier.

    Args:
      task: see ``loop.py``; ``sharding.class_axis`` finds the class axes of what ``init`` returns.
      mesh: as ``sharding.make_mesh`` returns it.
    """
    shapes = jax.eval_shape(task.init, jax.random.key(0))["params"]
    for path, array in jax.tree_util.tree_leaves_with_path(shapes):
        axis = sharding.class_axis(path)
        if axis is not None and (array.shape[axis] + _padding(path, array)) % mesh.shape["model"]:
            processes.say(
                f"config.mesh.model={mesh.shape['model']} does not divide {array.shape[axis]:,} "
                f"classes: every device keeps all of {jax.tree_util.keystr(path, simple=True)}"
            )
    padding = jax.tree_util.tree_map_with_path(_padding, shapes)
    return _PaddedTask(task, padding) if any(jax.tree.leaves(padding)) else task


def _padding(path, array) -> int:
    """Return the number of classes missing to the next multiple."""
    axis = sharding.class_axis(path)
    if axis is None or array.shape[axis] < LARGE:
        return 0
    return -array.shape[axis] % MULTIPLE


class _PaddedTask:
    """A task whose parameters have padded classes outside, and those that it knows inside."""

    def __init__(self, task, padding):
        self._task, self._padding = task, padding

    def __getattr__(self, name):
        return getattr(self._task, name)

    def init(self, key):
        variables = self._task.init(key)
        return {**variables, "params": self._each(_pad, variables["params"])}

    def loss(self, variables, *rest):
        return self._task.loss(self._cut(variables), *rest)

    def evaluate(self, variables):
        # Outside of compiled code an array cannot be split unevenly: the task cuts inside.
        return self._task.evaluate(variables, cut=self._cut)

    def export(self, variables):
        return self._task.export(self._cut(variables))

    def finish(self, workdir, fingerprint, variables):
        self._task.finish(workdir, fingerprint, self._cut(variables))

    def _cut(self, variables):
        return {**variables, "params": self._each(_cut, variables["params"])}

    def _each(self, change, params):
        def changed(path, array, missing):
            axis = sharding.class_axis(path)
            return change(array, (axis, missing)) if missing else array

        return jax.tree_util.tree_map_with_path(changed, params, self._padding)


def _pad(array, classes):
    axis, missing = classes
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, missing)
    return jnp.pad(array, widths)


def _cut(array, classes):
    axis, missing = classes
    return array[(slice(None),) * axis + (slice(array.shape[axis] - missing),)]
