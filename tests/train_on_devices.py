"""Run by test_devices.py in a process of its own: trains every task and reports the losses.

Usage: train_on_devices.py FOLDER RUNS MODEL, with JAX_NUM_CPU_DEVICES set.
"""

import json
import sys
from pathlib import Path

import jax
import tiny_runs

from fct_jax.train import loop

STEPS = {
    "batch_size": 48,
    "epochs": 1,
    "optimizer__schedule__warmup_epochs": 0,
    "optimizer__lr": 1e-3,
    "log_every_steps": 1,
    "data__classes": "",
}


def main(folder: Path, runs: Path, model: int) -> None:
    jax.config.update("jax_default_matmul_precision", "highest")
    check_split(model)
    changes = {**STEPS, "mesh__model": model}
    tasks = {
        "fastfill": tiny_runs.transformation(runs / "old", runs / "new", "fastfill", **changes),
        "advbct": tiny_runs.compatible("advbct", runs / "old", **changes),
    }
    losses = {}
    for name, config in tasks.items():
        loop.train(config, folder / name)
        lines = (folder / name / "metrics.jsonl").read_text().splitlines()
        entries = map(json.loads, lines)
        losses[name] = [entry["train/loss"] for entry in entries if "train/loss" in entry]
    (folder / "losses.json").write_text(json.dumps(losses))


def check_split(model: int) -> None:
    """Makes the loop check that a classifier's columns lie on ``model`` different devices."""
    start = loop._start

    def checked(*arguments):
        state = start(*arguments)
        for path, array in jax.tree_util.tree_leaves_with_path(state):
            if "classifier" in jax.tree_util.keystr(path):
                part = array.addressable_shards[0].data.shape[-1]
                assert part * model == array.shape[-1], path
        return state

    loop._start = checked


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
