"""The small runs that fault_injection.py kills: their commands and the cases that they need."""

from pathlib import Path
from typing import NamedTuple

CONFIGS = Path(__file__).parents[2] / "configs"

_SMALL = {"preprocessing.size": 8}
_BACKBONE = {
    **_SMALL,
    "model.width": 4,
    "model.embedding_dim": 8,
    "data.classes": "first 5",
    "epochs": 4,
    "optimizer.schedule.warmup_epochs": 1,
    "evaluate_every_epochs": 2,
    "log_every_steps": 2,
    "checkpoint_every_steps": 3,
}
_NEW = {**_BACKBONE, "data.classes": ""}
_TRANSFORMATION = {**_SMALL, "old": "old", "new": "new", "model.inner_dim": 16, "epochs": 8}
_TRANSFORMATION |= {"evaluate_every_epochs": 3, "log_every_steps": 2, "checkpoint_every_steps": 7}
_COMPATIBLE = {
    **_NEW,
    "old": "old",
    "epochs": 2,
    "batch_size": 100,
    "compatibility.transformation_blocks": 0,
}
_EMBED = {"model": "old", "split": "train", "batch_size": 32, "shard_size": 64}


class Case(NamedTuple):
    """One command of fct_jax.

    Attributes:
      module: "train" or "embed".
      config: name of a file in ``configs``; "": the command needs none.
      changes: changed keys of the config; runs and sets are relative to the current directory.
      needs: cases whose output must be there before, each in a directory of its name.
    """

    module: str
    config: str
    changes: dict
    needs: tuple[str, ...] = ()

    def arguments(self, workdir: str) -> list[str]:
        """Return the command's arguments, for a folder that holds the needed outputs."""
        config = ["--config", str(CONFIGS / f"{self.config}.py")] if self.config else []
        return [
            *config,
            "--workdir",
            workdir,
            *[f"--config.{key}={value}" for key, value in self.changes.items()],
        ]


def _train(config: str, changes: dict, *needs: str, **more) -> Case:
    return Case("train", config, {**changes, **more}, needs)


def _compatible(method: str, **more) -> Case:
    changes = {**_COMPATIBLE, "method": method, **more}
    return Case("train", "digits_compatible", changes, ("old",))


CASES = {
    "old": _train("digits_backbone_old", _BACKBONE, epochs=2),
    "new": _train("digits_backbone_new", {**_NEW, "optimizer.schedule.warmup_epochs": 0}, epochs=1),
    "backbone": _train("digits_backbone_old", _BACKBONE),
    "stream": _train("digits_backbone_old", {**_BACKBONE, "data.in_memory": "no"}),
    "workers": _train(
        "digits_backbone_old", {**_BACKBONE, "data.in_memory": "no", "data.workers": 2}
    ),
    "simclr": _train("digits_simclr", _BACKBONE, batch_size=50),
    "fct": _train("digits_fct", _TRANSFORMATION, "old", "new"),
    "fastfill": _train("digits_fastfill", _TRANSFORMATION, "old", "new"),
    "online": _train("digits_fct", {**_TRANSFORMATION, "online": True}, "old", "new", epochs=4),
    "bct": _compatible("bct"),
    "lce": _compatible("lce", **{"compatibility.transformation_blocks": 2}),
    "hot_refresh": _compatible("hot_refresh"),
    "unibct": _compatible("unibct"),
    "advbct": _compatible("advbct"),
    "embed": Case("embed", "", {**_EMBED, "class_statistics": True}, ("old",)),
    "transform": Case(
        "embed",
        "",
        {"model": "fct", "old": "embed", "batch_size": 32, "shard_size": 64},
        ("old", "new", "fct", "embed"),
    ),
}
