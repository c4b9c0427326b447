"""The scripts behind the README's picture and its figures of several seeds."""

import json

import numpy as np
import pytest
from PIL import Image

from fct_jax.errors import UserError
from tools import draw_readme, quickstart_spread


def one_seed(seed, folder):
    """Return a report like the quickstart's, with figures that a reader can check."""
    value = 0.5 + 0.1 * seed
    rows = ("old/old", "new/new", "FCT new/old")
    curve = {"fraction": [0.0, 0.5, 1.0], "map": [value, value + 0.1, value + 0.2]}
    curves = {"FCT": {"random": curve}, "FastFill": {"random": curve, "uncertainty": curve}}
    return {
        "retrieval": {row: {"cmc@1": value, "cmc@5": 1.0, "map": value} for row in rows},
        "auc": {"FCT · random": {"cmc@1": value, "cmc@5": 1.0, "map": value + 0.1}},
        "curves": curves,
    }


def test_means_and_spreads_of_three_seeds(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quickstart_spread, "one_seed", one_seed)
    picture = tmp_path / "curves.png"
    words = ["--workdir", str(tmp_path / "runs"), "--picture", str(picture)]
    report = quickstart_spread.run([*words, "--seeds", "3"])
    # 50, 60 and 70 %: mean 60, standard deviation 10.
    assert report.tables[0].rows[0] == ["old/old", "60.0 ± 10.0", "60.0 ± 10.0"]
    assert report.tables[1].rows == [["FCT · random", "60.0 ± 10.0", "70.0 ± 10.0"]]
    curve = report.panels[0].curves[0]
    assert (curve.name, curve.x) == ("FCT · random", [0, 50, 100])
    np.testing.assert_allclose(
        [curve.y, curve.low, curve.high], [[60, 70, 80], [50, 60, 70], [70, 80, 90]]
    )
    with Image.open(picture) as drawn:
        assert drawn.width > 300
    assert "60.0 ± 10.0" in capsys.readouterr().out
    with pytest.raises(UserError, match="exists already"):
        quickstart_spread.run(words)
    assert quickstart_spread.spread([0.25]) == "25.0"


def test_the_picture_of_the_readme(tmp_path):
    options = [
        {"way": way, "order": order, "share": share, "values": {"map": value},
         "interval": [value - 0.01, value + 0.01]}
        for way, order, share, value in (
            ("keep", "", 0.0, 0.6),
            ("re-embed all", "", 1.0, 0.9),
            ("translated", "uncertainty", 1.0, 0.9),
            ("translated", "uncertainty", 0.0, 0.8),
        )
    ]  # fmt: skip
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"target": "map", "options": options}))
    draw_readme.draw(json.loads(report.read_text()), tmp_path / "upgrade.png")
    with Image.open(tmp_path / "upgrade.png") as drawn:
        pixels = np.asarray(drawn.convert("RGB")).reshape(-1, 3)
    # Both colours frame a box; only the first has a curve in this report.
    blue, orange = (np.array(c) for c in ([0, 114, 178], [213, 94, 0]))
    count = [(np.abs(pixels.astype(int) - c).max(axis=1) < 8).sum() for c in (blue, orange)]
    assert count[0] > count[1] > 0
