"""Classifiers over very many classes, in a form that any number of devices can share.

Columns can be split only if the devices divide their number, and few numbers of devices divide
81,313 classes. While such a model trains, its classifier is padded with columns of zeros. They are
cut off before the task sees them, so they have no gradient and stay zero. Their number
depends only on the classes: a checkpoint fits every mesh.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec

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
        params = self._each(_in_its_layout, variables["params"])
        return self._task.loss(self._cut({**variables, "params": params}), *rest)

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


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _in_its_layout(array, classes):
    """Return the array; its gradient gets the layout that parameters have in memory.

    Of a number of classes that is no multiple of 128, a TPU would else make the gradient
    transposed, and transpose parameters and momentum before each update and back after it.
    """
    return array


def _gradient_in_its_layout(classes, _, gradient):
    axis, layout = classes[0], Layout(major_to_minor=tuple(range(gradient.ndim)))
    parts = jax.sharding.get_abstract_mesh().shape.get("model", 1)
    if parts == 1 or gradient.shape[axis] % parts:
        return (with_layout_constraint(gradient, layout),)
    place = PartitionSpec(*[None] * axis, "model")
    constrained = jax.shard_map(
        lambda part: with_layout_constraint(part, layout), in_specs=place, out_specs=place
    )
    return (constrained(gradient),)


_in_its_layout.defvjp(lambda array, classes: (array, None), _gradient_in_its_layout)


def _pad(array, classes):
    axis, missing = classes
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, missing)
    return jnp.pad(array, widths)


def _cut(array, classes):
    axis, missing = classes
    return array[(slice(None),) * axis + (slice(array.shape[axis] - missing),)]
