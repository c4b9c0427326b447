"""Validates a classifier over many classes, split or whole; test_large_evaluation.py runs it.

Usage: evaluate_large_classes.py, on 8 devices; prints the results as JSON.
"""

import json

import jax
import numpy as np
import tiny_compatible
from train_large_classes import collectives

from fct_jax.runtime import sharding
from fct_jax.train import backbone
from fct_jax.train.compatible.task import Compatible
from fct_jax.train.large_classes import with_padded_classes

CLASSES, BATCH = 100_003, 32


class Wide(Compatible):
    """A task with far more classes than its data have."""

    def _model_options(self):
        return {"num_classes": CLASSES}


def images(number: int):
    """Return the images (B, h, w, 3) of a batch."""
    return np.random.default_rng(number).integers(0, 255, (BATCH, 8, 8, 3)).astype(np.uint8)


def labels_of_ranks(task, variables) -> list[np.ndarray]:
    """Return the labels of two batches: of sample i the class of rank i mod 8, some of no class."""
    found = []
    for number in range(2):
        scores = task._class_scores(
            task.export(variables), task._preprocessing.on_device(images(number), None)
        )
        best = np.asarray(jax.lax.top_k(scores, 8)[1], np.int32)
        found.append(best[np.arange(BATCH), np.arange(BATCH) % 8])
        found[-1][:2] = [-1, CLASSES]
    return found


def run(data: int, model: int, labels) -> tuple[dict, list]:
    """Return (metrics and the compiled pass's collectives, labels) on data x model devices."""
    devices = jax.devices()[: data * model]
    axes = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((data, model), ("data", "model"), axes, devices=devices)
    config = tiny_compatible.config(
        batch_size=40, base_loss="arcface", model__name="tiny_compatible:FlatModel", model__width=64
    )
    task = with_padded_classes(Wide(config, mesh), mesh)
    key = jax.random.key(0)
    places = sharding.of_state(jax.eval_shape(task.init, key), mesh)
    variables = jax.jit(task.init, out_shardings=places)(key)
    kernel = variables["params"]["model"]["classifier"]["kernel"]
    labels = labels or labels_of_ranks(task, variables)
    rows = np.arange(BATCH)

    def batches(source, preprocessing, config, mesh):
        for number, own in enumerate(labels):
            yield tuple(sharding.put_rows(x, rows, BATCH, mesh) for x in (images(number), own))

    backbone.validation_batches = batches
    batch = next(batches(None, None, config, mesh))
    with jax.set_mesh(mesh):
        program = task._correct.lower(variables, *batch, cut=task._cut).compile()
    found = {
        "metrics": task.evaluate(variables),
        "collectives": collectives(program.as_text()),
        "parts": kernel.size / kernel.addressable_shards[0].data.size,
        "memory": program.memory_analysis().temp_size_in_bytes,
    }
    return found, labels


if __name__ == "__main__":
    jax.config.update("jax_default_matmul_precision", "highest")
    whole, labels = run(1, 1, None)
    split, _ = run(2, 4, labels)
    print(json.dumps({"whole": whole, "split": split}))
