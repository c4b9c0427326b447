"""tools/quickstart_check.py: the usual range of a table, and one line about a report."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from patience import LONG

from fct_jax.errors import UserError
from tools import quickstart_check


def report(tmp_path, **changed):
    rows = {"old/old": {"map": 0.5}, "new/new": {"map": 0.9}}
    for name, value in changed.items():
        rows[name.replace("_", "/")]["map"] = value
    folder = tmp_path / "report"
    folder.mkdir(exist_ok=True)
    (folder / "report.json").write_text(json.dumps({"retrieval": rows}))
    return folder


def ranges(tmp_path, **values):
    path = tmp_path / "ranges.json"
    given = {"old/old, map": [49.0, 50.0, 51.0], "new/new, map": [89.9, 90.0, 90.1], **values}
    path.write_text(json.dumps({"values": given}))
    return path


def test_one_more_training_of_the_same_kind_is_usual():
    """All twelve values lie in their ranges as often as promised, for any number of seeds."""
    rng = np.random.default_rng(0)
    trials = 400
    for seeds in (3, 5, 10):
        inside = 0
        for _ in range(trials):
            drawn = rng.normal(70, 3, (12, seeds + 1))
            known = quickstart_check.usual({str(i): list(row[:-1]) for i, row in enumerate(drawn)})
            pairs = zip(known.values(), drawn[:, -1], strict=True)
            inside += all(low <= value <= high for (low, high), value in pairs)
        # Bonferroni promises at least 95 %; the bound is three standard errors below that.
        assert inside / trials > 0.95 - 3 * np.sqrt(0.95 * 0.05 / trials)


def test_a_report_inside_and_one_outside(tmp_path):
    path = ranges(tmp_path)
    said = quickstart_check.compare(report(tmp_path), path)
    assert said.startswith("All 2 values are within the usual spread of 3 seeds (the widest: old/")
    said = quickstart_check.compare(report(tmp_path, new_new=0.6), path)
    assert said.startswith("outside the usual spread of 3 seeds: new/new, map 60.0 (usually 89.")
    assert "old/old" not in said and "\n" not in said
    more = ranges(tmp_path, **{"FCT new/old, map": [1.0, 2.0, 3.0]})
    assert "FCT new/old, map is missing" in quickstart_check.compare(report(tmp_path), more)


def test_what_is_not_there_or_says_nothing(tmp_path, capsys):
    with pytest.raises(UserError, match=r"no .*report\.json"):
        quickstart_check.compare(tmp_path / "nothing", ranges(tmp_path))
    with pytest.raises(UserError, match="2 seeds say nothing of a spread; measure at least 3"):
        quickstart_check.usual({"a": [1.0, 2.0]})
    assert quickstart_check.main([str(tmp_path / "nothing")]) == 1
    assert capsys.readouterr().err.startswith("error: no ")


def test_usual_values_are_learnt_from_a_spread(tmp_path, monkeypatch):
    seeds = [{"retrieval": {"old/old": {"map": 0.5 + i / 100}}} for i in range(3)]
    (tmp_path / "report.json").write_text(json.dumps({"seeds": seeds}))
    made = tmp_path / "learnt.json"
    assert quickstart_check.learn(tmp_path, made).endswith("1 values of 3 seeds")
    assert json.loads(made.read_text())["values"]["old/old, map"] == pytest.approx([50, 51, 52])
    assert quickstart_check.compare(report(tmp_path, old_old=0.51), made).startswith("All 1")
    with pytest.raises(UserError, match="is no report of tools/quickstart_spread.py"):
        quickstart_check.learn(report(tmp_path), made)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_quickstart_ends_with_the_check():
    root = Path(__file__).parents[2]
    command = ["make", "-n", "quickstart", "VENV=made", "DIGITS=there"]
    # The make that runs the tests says more in its own name.
    alone = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    said = subprocess.run(
        command, cwd=root, env=alone, capture_output=True, text=True, timeout=LONG, check=True
    ).stdout.splitlines()
    assert said[-1] == "made/bin/python -m tools.quickstart_check there/report"
    assert "fct_jax.evaluate" in said[-2] and said[-2].endswith("--workdir there/report")
