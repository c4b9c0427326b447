"""Tiny configs and runs of the digits that several test files use."""

import os
from pathlib import Path

from fct_jax import recipes

REPOSITORY = Path(__file__).parents[2]
HELPERS = Path(__file__).parent
# the environment of subprocesses
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{HELPERS}{os.pathsep}{REPOSITORY}"}
# models for tests that hold for any model
MODEL, PROJECTION = "tiny_models:ONE_BLOCK", "tiny_models:ONE_BLOCK_PROJECTION"


def backbone(**changes):
    """Return the config of a 4-channel residual block: 8-px digits, two epochs of five steps."""
    config = recipes.digits_backbone()
    config.preprocessing.size = 8
    config.model.name = MODEL
    config.model.width = 4
    config.model.embedding_dim = 8
    config.data.classes = "first 5"
    config.epochs = 2
    config.optimizer.schedule.warmup_epochs = 1
    config.evaluate_every_epochs = 2
    config.log_every_steps = 5
    return changed(config, changes)


def transformation(old, new, kind="fct", **changes):
    """Return the config of FCT or FastFill between two runs or EmbeddingSets, four epochs."""
    config = recipes.digits_transformation(getattr(recipes, kind)())
    config.preprocessing.size = 8
    config.old, config.new = str(old), str(new)
    config.model.inner_dim = 16
    config.epochs = 4
    config.optimizer.schedule.warmup_epochs = 1
    return changed(config, changes)


def compatible(method, old, **changes):
    """Return the config of a backward-compatible new model of 4 channels."""
    config = recipes.digits_compatible()
    config.method, config.old = method, str(old)
    config.preprocessing.size = 8
    config.model.width = 4
    config.model.embedding_dim = 8
    return changed(config, changes)


def evaluation(old, new, transformed="", **changes):
    """Return the config of an evaluation of two runs or EmbeddingSets."""
    config = recipes.digits(recipes.evaluate())
    config.old, config.new, config.transformed = str(old), str(new), transformed
    return changed(config, changes)


def changed(config, changes):
    """Return the config with keys such as "a__b" set as config.a.b."""
    for key, value in changes.items():
        *path, last = key.split("__")
        section = config
        for part in path:
            section = section[part]
        section[last] = value
    return config
