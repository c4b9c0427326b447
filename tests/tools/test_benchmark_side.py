"""The benchmark of side information, from its flags to its report, with a tiny model."""

import json

import pytest
import tiny_runs

from configs import digits_simclr
from fct_jax import recipes
from fct_jax.errors import UserError
from tools import benchmark_side

pytestmark = pytest.mark.usefixtures("flat_model")

WITH = benchmark_side.WITH


def read_config(data: str, kind: str):
    """Return the digits' configs, reduced to train within a second."""
    if kind == "evaluate":
        config = recipes.digits(recipes.evaluate())
        config.random_orders = 1
        return config
    if kind in ("fct", "fastfill"):
        return tiny_runs.transformation("", "", kind, epochs=10)
    config = digits_simclr.get_config() if kind == "simclr" else tiny_runs.backbone()
    config.data.classes = "" if kind == "backbone_new" else "first 5"
    changes = {"model__name": "flat", "preprocessing__size": 8, "model__embedding_dim": 8}
    changes |= {"epochs": 1, "optimizer__schedule__warmup_epochs": 0}
    return tiny_runs.changed(config, changes)


@pytest.fixture
def run(flat_model, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_side, "read_config", read_config)
    return lambda *flags: benchmark_side.run(["--workdir", str(tmp_path / "runs"), *flags])


@pytest.mark.slow
def test_trains_and_reports(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark_side, "METHODS", {"FCT": "fct"})  # saves time
    seeds = run()
    methods = [f"FCT{more} new/old" for more in ("", WITH)]
    assert len(seeds) == 1 and set(seeds[0]) == {"old/old", "new/new", *methods}
    for kind, side in (("fct", False), ("fct_side", True)):
        config = json.loads((tmp_path / "runs" / "seed0" / kind / "config.json").read_text())
        assert config["side"] == (str(tmp_path / "runs" / "seed0" / "simclr") if side else "")
    text = (tmp_path / "runs" / "report" / "report.md").read_text()
    assert f"| FCT{WITH} new/old |" in text and "**FCT: mAP " in text
    written = json.loads((tmp_path / "runs" / "report" / "report.json").read_text())
    assert written["mean"] == seeds[0] and written["seeds"] == seeds
    with pytest.raises(UserError, match="report exists already"):
        run()
    # Only the report is made again, from the existing runs.
    (tmp_path / "runs" / "report").rename(tmp_path / "first")
    capsys.readouterr()
    assert run() == seeds
    assert capsys.readouterr().out.count("is finished") == 5


def test_means_and_verdicts():
    values = {"FCT": ((0.9, 0.92), (0.8, 0.78)), "FastFill": ((0.5, 0.4), (0.7, 0.6))}
    seeds = [
        {
            f"{name}{more} new/old": {"map": pair[which], "cmc@1": 1.0}
            for name, pairs in values.items()
            for pair in [pairs[seed]]
            for which, more in enumerate(("", WITH))
        }
        for seed in range(2)
    ]
    means = benchmark_side.mean_rows(seeds)
    assert means["FCT new/old"] == pytest.approx({"map": 0.85, "cmc@1": 1.0})
    assert benchmark_side.verdicts(seeds) == [
        "FCT: mAP 85.0 without side information, 85.0 with it; higher in 1 of 2 seeds",
        "FastFill: mAP 60.0 without side information, 50.0 with it; higher in 0 of 2 seeds",
    ]


def test_mistakes(tmp_path):
    for flags, message in (
        (("--data", "digit"), "unknown data set 'digit'; did you mean 'digits'"),
        (("--seeds", "0"), "--seeds must be at least 1"),
        (("--seed", "x"), "see --help"),
    ):
        with pytest.raises(UserError, match=message):
            benchmark_side.run(["--workdir", str(tmp_path / "runs"), *flags])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("data", benchmark_side.DATA)
def test_every_data_set_has_the_configs(data):
    for kind in (
        "backbone_old",
        "backbone_new",
        "simclr",
        *benchmark_side.METHODS.values(),
        "evaluate",
    ):
        config = benchmark_side.read_config(data, kind)
        assert "seed" in config and "dir" in config.data
