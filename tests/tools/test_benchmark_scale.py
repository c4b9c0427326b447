"""The run at scale: a small one from end to end, its measuring of processes, and its table."""

import dataclasses
import json

import numpy as np
import pytest

from tools import benchmark_scale
from tools.scale import gallery
from tools.scale.growth import Prices, draw, grown, table
from tools.scale.watching import Kills, Watched
from tools.script import status

STEPS = ("plain loop", "plan", "two parts", "re-embed 1 %", "rollback")
STORE = ("plain loop", "plan", "apply", "re-embed 1 %", "switch", "switch back")


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_quick_run_survives_a_kill(tmp_path, capsys):
    pytest.importorskip("lancedb", reason="a store is upgraded, too")
    words = ["--quick", "--engines", "parts,store", "--store-rows", "4000"]
    words += ["--folder", str(tmp_path / "data")]
    words += ["--out", str(tmp_path / "out")]
    assert status(benchmark_scale.main, words) == 0
    found = json.loads((tmp_path / "out" / "scale.json").read_text())["100000"]
    assert set(found["steps"]) == {*STEPS, *(f"store: {name}" for name in STORE)}
    for step in found["steps"].values():
        assert step["cpu_seconds"] > 0 and step["peak_mb"] > 10
        assert len(step["resumed_after"]) <= step["kills"] <= 1
    assert any(step["kills"] for step in found["steps"].values())
    # Every row is read and written at least once: 768 bytes of float16.
    assert found["steps"]["two parts"]["written_per_row"] > 768
    assert found["steps"]["plain loop"]["read_per_row"] > 768
    assert (tmp_path / "out" / "growth.png").stat().st_size > 1000
    assert not list((tmp_path / "data").iterdir())
    assert "apply --part 1/2 and 2/2" in capsys.readouterr().out
    assert status(benchmark_scale.main, ["--table", "--out", str(tmp_path / "out")]) == 0
    assert "10¹⁰" in capsys.readouterr().out


@pytest.mark.multiprocess
def test_processes_are_measured_killed_and_started_again(tmp_path):
    """The process writes, waits, and ends only if it was killed once."""
    code = (
        "import pathlib, sys, time; p = pathlib.Path(sys.argv[1]); again = p.exists();"
        "p.open('ab').write(bytes(3 << 20)); time.sleep(3 if again else 3600)"
    )
    with Watched(tmp_path / "log.txt") as watched:
        watched.survive([("-c", code, str(tmp_path / "made"))], Kills(every=0.2), most=1)
    assert watched.kills == 1 and len(watched.resumed) == 1
    figures = watched.figures(rows=1 << 20)
    assert figures["written_per_row"] == pytest.approx(6, abs=0.5)  # both processes
    assert figures["cpu_seconds"] > 0 and not watched.alive()


def test_a_failed_process_is_one_line_with_the_end_of_its_log(tmp_path, capsys):
    def run(words):
        with Watched(tmp_path / "log.txt") as watched:
            watched.run("-c", "raise SystemExit('no such gallery')")

    assert status(run, []) == 1
    assert "no such gallery" in capsys.readouterr().err


def test_new_vectors_depend_on_the_item_alone(tmp_path, monkeypatch):
    gallery.write_gallery(tmp_path / "gallery", 50)
    monkeypatch.setenv(gallery.GALLERY, str(tmp_path / "gallery"))
    some, all_of_them = gallery.embed(np.array([40, 3])), gallery.embed(np.arange(50))
    np.testing.assert_allclose(some, all_of_them[[40, 3]], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(some, axis=1), 1, atol=1e-6)


def _figures(cpu: float) -> dict:
    return {"cpu_seconds_per_million": cpu, "read_per_row": 1000.0, "written_per_row": 1000.0}


def test_the_table_follows_from_the_largest_run(tmp_path):
    found = {
        "1000": {"steps": {"plan": _figures(999.0)}},
        "1000000": {"steps": {"plan": _figures(30.0), "two parts": _figures(60.0)}},
    }
    prices = Prices(cores=10, core_hour=0.1, disk=1e9, gpu_rate=1000.0, gpu_hour=2.0, share=0.1)
    rows = [line.split("|") for line in table(found, prices).splitlines()]
    # 10⁸ rows: 100 × 30 CPU seconds of one process; 100 × 60 of ten cores, who wait for 200 GB.
    assert [cell.strip() for cell in rows[2][1:7]] == ["10⁸", "0.8", "1.7", "0.2", "$0.25", "3"]
    assert [cell.strip() for cell in rows[3][1:6]] == ["10⁹", "8.3", "16.7", "1.7", "$2.50"]
    assert [cell.strip() for cell in rows[4][8:10]] == ["2,778", "$5,556"]
    dear = dataclasses.replace(prices, disk=1e8)  # 2,000 bytes of 10⁹ rows take 5.6 hours
    assert "| 16.7 | 5.6 | $6.39 |" in table(found, dear)
    shown = grown(found, {"plan": "the plan", "two parts": "parts", "store: plan": "no file"})
    assert shown.splitlines()[2:] == [
        "| the plan | 999.0 s, 2,000 | 30.0 s, 2,000 |",
        "| parts |  | 60.0 s, 2,000 |",
    ]
    draw(found, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--engines", "spark"], "parts, ray, store"),
        (["--rows", "2000", "--store-rows", "3000"], "from 1000 to --rows (2,000)"),
        (["--rows", "10"], "at least 1000"),
        (["--table"], "measure first"),
        (["--rows", "1000000000000"], "GB free, but 1,000,000,000,000 rows need 1612800.0 GB"),
    ],
)
def test_mistakes_are_one_line(words, message, tmp_path, capsys):
    words = [*words, "--out", str(tmp_path), "--folder", str(tmp_path / "data")]
    assert status(benchmark_scale.main, words) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list((tmp_path / "data").glob("*"))  # nothing is left


def test_an_existing_folder_is_not_touched(tmp_path, capsys):
    (tmp_path / "rows-1000").mkdir()
    words = ["--rows", "1000", "--folder", str(tmp_path), "--out", str(tmp_path)]
    assert status(benchmark_scale.main, words) == 1
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "rows-1000").is_dir()
