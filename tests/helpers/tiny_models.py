"""Frozen models that need no training, for tests that use models; and images for them."""

import os
import time

import jax
import numpy as np
import tiny_runs
from ml_collections import ConfigDict

from fct_jax import config as configs
from fct_jax import data, models
from fct_jax.data import UnreadableImage
from fct_jax.frozen.model import read_description, write_model

# Rows like those of models.MODELS, known everywhere as "tiny_models:ONE_BLOCK": a ResNet-18 cut
# down to its first block, which compiles much faster.
ONE_BLOCK = (models.ResNet, {**models.RESNETS["resnet18"], "depths": (1,)})
ONE_BLOCK_PROJECTION = (models.ProjectionResNet, ONE_BLOCK[1])


def pixels(images):
    """Return every other pixel of an 8×8 digit: a model that costs nothing."""
    return images[:, ::2, ::2, 0].reshape(len(images), -1) / 255.0


pixels.image_size = 8


_SLOW: list[int] = []  # sizes of the batches of `slow_pixels` so far


def slow_pixels(images):
    """Return `pixels`, slowly; if ``$BATCHES`` is set, stop for ever after so many batches.

    Whatever is to happen meanwhile then does, however late.
    """
    _SLOW.append(len(images))
    time.sleep(0.2)
    while len(_SLOW) > int(os.environ.get("BATCHES", "1000000")):
        time.sleep(0.1)
    return pixels(images)


slow_pixels.image_size = 8


def backbone_run(folder, dim=8):
    """Write a run of an untrained residual block of 4 channels, for digits of 10 classes."""
    kwargs = {"num_classes": 10, "embedding_dim": dim, "width": 4, "small_stem": True}
    shape = np.zeros((1, 8, 8, 3), np.float32)
    variables = jax.jit(models.build(tiny_runs.MODEL, **kwargs).init)(jax.random.key(0), shape)
    description = {
        "kind": "backbone",
        "name": tiny_runs.MODEL,
        "kwargs": kwargs,
        "dim": dim,
        "preprocessing": {"size": 8, "flip": True, "mean": [0.5] * 3, "std": [0.5] * 3},
        "data": configs.data().to_dict(),
    }
    write_model(folder / "model", description, variables)
    return folder


def transformation_run(folder, kind="fastfill", old=None, new=None, side=None):
    """Write a run of an untrained FCT or FastFill between runs, or from dimension 6 to 5."""
    parts = {"old": old, "new": new, "side": side}
    known = {role: read_description(run) for role, run in parts.items() if run}
    dims = {role: found["dim"] for role, found in known.items()}
    dims = {"old": 6, "new": 5, "side": dims.get("old", 6)} | dims
    kwargs = {"embedding_dim": dims["new"], "inner_dim": 16}
    inputs = [np.zeros((2, dims[role]), np.float32) for role in ("old", "side")]
    variables = jax.jit(models.build(kind, **kwargs).init)(jax.random.key(0), *inputs)
    fingerprints = {role: known.get(role, {}).get("fingerprint") for role in parts}
    description = {
        "kind": "transformation",
        "name": kind,
        "kwargs": kwargs,
        "dim": dims["new"],
        "old_dim": dims["old"],
        "side_dim": dims["side"],
        "needs_side": side is not None,
        **{f"{role}_fingerprint": value for role, value in fingerprints.items()},
    }
    write_model(folder / "model", description, variables)
    return folder


def digits():
    """Return the 797 images of the validation split."""
    return data.open_source(ConfigDict({"name": "digits"}), "validation")


class Patchy:
    """A source that cannot read some images, and counts every read."""

    def __init__(self, source, bad=()):
        self._source, self.bad, self.reads = source, set(bad), []
        self.name, self.ids, self.labels = source.name, source.ids, source.labels
        self.image_size, self.on_error = source.image_size, source.on_error

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        self.reads.append(index)
        if index in self.bad:
            raise UnreadableImage(f"image {index} is broken")
        return self._source[index]
