"""The whole workflow on real images: the quickstart's steps, and a folder of pictures."""

import json

import numpy as np
import pytest
import tiny_runs
from PIL import Image

from configs import digits_backbone_new, digits_backbone_old
from fct_jax import recipes
from fct_jax.evaluate.command import evaluate
from fct_jax.train.loop import train

SEEDS = (0, 1, 2)


def story(folder, seed):
    """Train backbones, FCT and FastFill as in the quickstart; return the report."""
    runs = {name: folder / name for name in ("old", "new", "fct", "fastfill")}
    configs = {
        "old": digits_backbone_old.get_config(),
        "new": digits_backbone_new.get_config(),
        "fct": recipes.digits_transformation(recipes.fct()),
        "fastfill": recipes.digits_transformation(recipes.fastfill()),
    }
    for name, config in configs.items():
        config.seed = seed
        # Images and models are smaller and epochs fewer than in the quickstart, to save time.
        config.preprocessing.size = 8
        if name in ("old", "new"):
            config.model.width = 8
            config.epochs = 5
        if name in ("fct", "fastfill"):
            config.epochs = 20
            config.old, config.new = str(runs["old"]), str(runs["new"])
        train(config, runs[name])
    config = tiny_runs.evaluation(
        runs["old"], runs["new"], f"FCT={runs['fct']},FastFill={runs['fastfill']}"
    )
    return evaluate(config, folder / "report")


@pytest.mark.slow(minutes=1.5)
def test_digits_over_three_seeds(tmp_path):
    """old/old < FCT new/old < new/new, and the uncertainty's order beats a random one."""
    reports = [story(tmp_path / str(seed), seed) for seed in SEEDS]

    def mean(row, column):
        return np.mean([report.rows[row][column] for report in reports])

    for column in ("cmc@1", "map"):
        assert mean("old/old", column) + 0.02 < mean("FCT new/old", column)
        assert mean("FCT new/old", column) + 0.005 < mean("new/new", column)
    gain = np.mean(
        [
            report.auc()["FastFill · uncertainty"]["map"] - report.auc()["FastFill · random"]["map"]
            for report in reports
        ]
    )
    assert gain > 0.003


def write_pictures(root, classes=102, size=32):
    """Write a folder of small PNGs; each class has a colour and a stripe pattern, with noise."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(size), np.arange(size))
    for label in range(classes):
        colour = rng.uniform(60, 190, 3)
        wave = rng.uniform(0.1, 0.9, 2)
        pattern = np.sin(wave[0] * x + wave[1] * y)[..., None]
        for split, count in (("training", 4), ("validation", 2)):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = colour + 40 * pattern + rng.normal(0, 20, (size, size, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")


@pytest.mark.slow(minutes=0.6)
def test_picture_folder_by_config_alone(tmp_path):
    """The same commands run on 102 classes of 32-px PNGs; only data and preprocessing change."""
    write_pictures(tmp_path / "pictures")
    folder = {"data__name": "folder", "data__dir": str(tmp_path / "pictures")}
    images = {**folder, "preprocessing__size": 16, "preprocessing__flip": True}
    small = {"model__name": tiny_runs.MODEL, "model__width": 4}
    small |= {"epochs": 2, "optimizer__schedule__warmup_epochs": 1}
    runs = {name: tmp_path / name for name in ("old", "new", "fastfill")}
    train(
        tiny_runs.changed(
            recipes.digits_backbone(), {**images, **small, "data__classes": "first 51"}
        ),
        runs["old"],
    )
    train(tiny_runs.changed(recipes.digits_backbone(), {**images, **small}), runs["new"])
    fastfill = tiny_runs.transformation(runs["old"], runs["new"], "fastfill", **images, views=2)
    train(fastfill, runs["fastfill"])
    report = evaluate(
        tiny_runs.evaluation(runs["old"], runs["new"], f"FastFill={runs['fastfill']}", **folder),
        tmp_path / "report",
    )
    assert report.rows.keys() == {"old/old", "new/new", "FastFill new/old"}
    # Each of 204 pictures has one other of its class: chance finds it first in 1 of 203 cases.
    assert min(report.rows[row]["cmc@1"] for row in ("old/old", "new/new")) > 10 / 203
    epochs = [
        json.loads(line) for line in (runs["fastfill"] / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [entry["epoch/loss"] for entry in epochs if "epoch/loss" in entry]
    assert len(losses) == fastfill.epochs and losses[-1] < losses[0]
