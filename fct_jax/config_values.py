"""Allowed values of the configuration keys: names of tables, kinds and ranges.

``fct_jax.config.check`` calls `check_values` before any data or model is loaded. A name may be a
row of a table, an entry point of another package, or ``module:name`` (docs/plugins.md).
"""

import importlib
import numbers
from collections.abc import Callable, Iterable

from ml_collections import ConfigDict

from fct_jax.errors import UserError, unknown
from fct_jax.runtime import plugins


def check_values(config: ConfigDict) -> None:
    """Compare a config's values with the tables below.

    Args:
      config: a config whose keys are known and whose values have the defaults' types.

    Raises:
      UserError: a name is in no table (the message gives the nearest one), or a number is out of
        range.
    """
    for key, allowed in CHOICES.items():
        if (value := _value(config, key)) is not None and value not in allowed:
            raise unknown(f"config.{key}", value, allowed)
    for key, table in TABLES.items():
        if (value := _value(config, key)) is not None:
            table(config, value)
    for key, (least, most) in RANGES.items():
        if (value := _value(config, key)) is not None:
            _check_range(f"config.{key}", value, least, most)


def check_kind(value, default, where: str) -> None:
    """Raise UserError if a value does not have the type of the key's default."""
    for kind, words in _KINDS:
        if isinstance(default, kind):
            if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
                raise UserError(f"{where} must be {words}, not {value!r}")
            return


_KINDS: tuple[tuple[type | tuple, str], ...] = (
    (bool, "True or False"),
    (numbers.Integral, "an integer"),
    (numbers.Real, "a number"),
    (str, "text"),
    ((tuple, list), "a list, such as (1, 5)"),
)


def _value(config: ConfigDict, key: str):
    """Return the value of a dotted key; None if the task has no such key."""
    for part in key.split("."):
        if not isinstance(config, ConfigDict) or part not in config:
            return None
        config = config[part]
    return config


def _check_range(where: str, value, least, most) -> None:
    if (least is None or value >= least) and (most is None or value <= most):
        return
    said = f"from {least} to {most}" if most is not None else f"{least} or more"
    raise UserError(f"{where} must be {said}, not {value}")


def _row(module: str, table: str, what: str, group: str, fits: Callable | None = None):
    """Return a function that checks a name against a table, which it imports only when called.

    Args:
      module, table: names of the table's module and of the table.
      what, group: see ``plugins.find``.
      fits: function ``(config, names) -> names`` that selects the names which the task accepts.
    """

    def check(config: ConfigDict, name: str) -> None:
        rows = getattr(importlib.import_module(module), table)
        names = fits(config, rows) if fits else rows
        plugins.find(dict.fromkeys(names), name, what, group)

    return check


_TRANSFORMATIONS = ("fct", "fastfill", "lce")
_EXPORTED = ("bt2",)  # models that compatible training only exports


def _models_of_task(config: ConfigDict, names: Iterable[str]) -> list[str]:
    """Return the models that the task can train: transformations, or models of images."""
    if config.task == "transformation":
        return [name for name in names if name in _TRANSFORMATIONS and name != "lce"]
    return [name for name in names if name not in (*_TRANSFORMATIONS, *_EXPORTED)]


def _check_data_set(config: ConfigDict, name: str) -> None:
    if not name and config.task == "embed":
        return  # "" means the data that the model was trained on
    importlib.import_module("fct_jax.data.readers").splits_of(name)


# key -> allowed values
CHOICES: dict[str, tuple[str, ...]] = {
    "data.on_error": ("raise", "skip"),
    "data.in_memory": ("auto", "yes", "no"),
    "preprocessing.train_crop": ("none", "random_resized"),
    "sampler.name": ("", "identities", "balanced"),
    "last_batch": ("drop", "keep"),
    "export": ("last", "best"),
    "compute_dtype": ("float32", "bfloat16", "float16"),
    "optimizer.name": ("sgd", "adam", "lars"),
    "optimizer.schedule.name": ("cosine", "constant", "multistep"),
    "loss.similarity": ("mse", "l1", "cosine"),
    "compatibility.radius": ("max", "min"),
    "compatibility.focal_kind": ("kl", "l2"),
    "split": ("train", "validation", "query", "gallery"),
    "metric": ("l2", "cosine"),
}

# key -> check(config, value), for names that other packages may add
TABLES: dict[str, Callable] = {
    "data.name": _check_data_set,
    "model.name": _row("fct_jax.models", "MODELS", "model", "models", _models_of_task),
    "method": _row(
        "fct_jax.train.compatible.methods", "METHODS", "compatible training method", "methods"
    ),
    "base_loss": _row("fct_jax.losses.heads", "HEADS", "base loss", "losses"),
}

# key -> (least, most)
RANGES: dict[str, tuple] = {
    "epochs": (1, None),
    "seed": (0, None),
    "log_every_steps": (1, None),
    "evaluate_every_epochs": (1, None),
    "checkpoint_every_steps": (0, None),
    "keep_checkpoints": (1, None),
    "freeze_batch_norm_from": (0, 1),
    "label_smoothing": (0, 1),
    "loss.label_smoothing": (0, 1),
    "preprocessing.size": (1, None),
    "preprocessing.width": (0, None),
    "preprocessing.resize": (0, None),
    "data.workers": (0, None),
    "optimizer.lr": (0, None),
    "optimizer.momentum": (0, 1),
    "optimizer.weight_decay": (0, None),
    "optimizer.schedule.warmup_epochs": (0, None),
    "compatibility.top_k": (0, None),
    "compatibility.mix_share": (0, 1),
    "compatibility.extra": (0, None),
    "shard_size": (1, None),
    "map_at": (0, None),
    "steps": (0, None),
    "random_orders": (1, None),
}
