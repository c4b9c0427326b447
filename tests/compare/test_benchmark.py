"""The benchmark of compatible methods, from its config to its report, on a tiny one."""

import json

import numpy as np
import pytest
import tiny_compatible
import tiny_runs  # noqa: F401 - puts the repository on the path

from fct_jax import data
from fct_jax.compare import benchmark as benchmarks
from fct_jax.errors import UserError
from fct_jax.evaluate.metrics import retrieval_metrics
from fct_jax.frozen.model import load_model
from fct_jax.runtime.report import FILES

pytestmark = pytest.mark.usefixtures("flat_model")

CONFIG = """
import tiny_compatible, tiny_runs

def get_config():
    return tiny_compatible.config(epochs=1, optimizer__schedule__warmup_epochs=0)

def benchmark():
    return {
        "scenarios": {
            "extended-data": ({"data.subset": "old images 0.3"}, {"data.subset": "new images 0.3"}),
            "extended-class": ({}, {}),
        },
        "tests": {"digits": {}},
        "methods": {"mixbct": {"base_loss": "arcface"}},
        "transformations": {"FCT": tiny_runs.transformation("", "", epochs=2)},
    }
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    # The process keeps its own compilation cache.
    monkeypatch.setattr(benchmarks, "_keep_compiled", lambda folder: None)
    (tmp_path / "configs").mkdir()
    path = tmp_path / "configs" / "tiny.py"
    path.write_text(CONFIG)

    def call(config=path, **settings):
        return benchmarks.benchmark(config, tmp_path / "runs", **settings)

    return call


@pytest.mark.slow
def test_trains_and_reports(run, tmp_path, capsys):
    methods = ["bct", "oca", "bt2", "mixbct"]
    settings = {"scenarios": ["extended-data"], "methods": methods, "seeds": 2}
    (report,) = run(**settings)
    assert report.rows == ["new alone", *methods, "FCT"] and report.runs == 2
    folder = tmp_path / "runs" / "report"
    assert {file.name for file in folder.iterdir()} == set(FILES)
    written = json.loads((folder / "report.json").read_text())["comparisons"]
    assert written["extended-data"]["tests"]["digits"]["bct"]["self"] > 0.2
    assert report.spread["digits"]["bct"]["self"] > 0
    assert "| bct |" in (folder / "report.md").read_text()
    # Old and new start from different weights, or they would be compatible without training.
    seeds = [
        json.loads((tmp_path / "runs" / run / "config.json").read_text())["seed"]
        for run in ("old-old_images_0.3/seed1", "extended-data/seed1/bct")
    ]
    assert seeds[0] != seeds[1]
    with pytest.raises(UserError, match="report exists already"):
        run(**settings)
    # Only the report is made again, from the existing runs.
    before = report.to_json()
    (folder).rename(tmp_path / "first")
    capsys.readouterr()
    assert run(**settings)[0].to_json() == before
    assert capsys.readouterr().out.count("is finished") == 2 * 7
    changed = json.loads((tmp_path / "runs/extended-data/seed1/mixbct/config.json").read_text())
    assert (changed["base_loss"], changed["label_smoothing"]) == ("arcface", 0.0)
    # A model with the old space in its first numbers searches as if it were cut to these.
    source, of_seeds = data.open_source(tiny_compatible.config().data, "validation"), []
    for seed in ("seed0", "seed1"):
        runs = (f"extended-data/{seed}/oca", f"old-old_images_0.3/{seed}")
        pixels = np.stack([source[row]["image"] for row in range(len(source))])
        new, old = (load_model(tmp_path / "runs" / run).embed(pixels) for run in runs)
        assert (new.shape[1], old.shape[1]) == (10, 8)
        options = {"metric": "cosine", "ks": (1,)}
        of_seeds.append(retrieval_metrics(new[:, :8], old, source.labels, **options)["map"])
    assert report.tests["digits"]["oca"]["cross"] == pytest.approx(np.mean(of_seeds), abs=1e-6)


def test_mistakes_are_named_before_training(run, tmp_path):
    with pytest.raises(UserError, match="unknown scenario 'extended-clas'.*'extended-class'"):
        run(scenarios=["extended-clas"])
    with pytest.raises(UserError, match="unknown compatible training method 'bkt'"):
        run(methods=["bct", "bkt"])
    with pytest.raises(UserError, match="seeds must be at least 1"):
        run(seeds=0)
    with pytest.raises(UserError, match="no config file"):
        run(config=tmp_path / "none.py")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match="has no function get_config"):
        run(config=tmp_path / "empty.py")
    with pytest.raises(UserError, match="has no benchmark"):
        run(config="digits_fct")
    assert not (tmp_path / "runs").exists()
