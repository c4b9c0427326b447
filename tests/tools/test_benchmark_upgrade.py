"""The benchmark of upgrades: cutting a pair, its summary, and the command on little data."""

import json
from pathlib import Path

import numpy as np
import pytest

from fct_jax.errors import UserError
from fct_jax.runtime import progress
from tools import benchmark_upgrade
from tools.upgrading import pairs, summary

SAMPLE = Path(__file__).parents[1] / "text_sample.npz"


@pytest.fixture(autouse=True)
def _speaks_again(monkeypatch):
    """Undo that the command silences progress for good, as other tests need it."""
    monkeypatch.setattr(progress, "_silent", progress._silent)
    monkeypatch.setattr(progress.console, "quiet", progress.console.quiet)


@pytest.fixture
def folder(tmp_path):
    """Write the text sample as people have it: ids with the vectors, one relevant id per query."""
    made = tmp_path / "pair"
    made.mkdir()
    with np.load(SAMPLE) as file:
        for model in ("old", "new"):
            np.save(made / f"{model}.npy", file[model].astype(np.float32))
            np.save(made / f"{model}_ids.npy", file["ids"])
            np.save(made / f"query_{model}.npy", file[f"query_{model}"].astype(np.float32))
        np.save(made / "query_relevant.npy", file["query_relevant"])
    return made


def rows_in(found, whole):
    """Return the rows of some vectors in a set, found by their content."""
    place = {row.tobytes(): i for i, row in enumerate(np.asarray(whole.vectors))}
    return {place[row.tobytes()] for row in np.asarray(found.vectors)}


def test_sample_gallery_and_both_halves_of_the_queries_are_apart(folder):
    pair = pairs.from_folder("text", folder)
    made = pairs.cut(pair, 0, most_queries=40, most_items=200, largest=80)
    sample, gallery = (rows_in(part[1], pair.new) for part in (made.sample, made.gallery))
    assert (len(sample), len(gallery)) == (80, 200) and not sample & gallery
    halves = [rows_in(half[1], pair.queries[1]) for half in made.queries]
    assert [len(half) for half in halves] == [40, 40] and not halves[0] & halves[1]
    relevant = np.load(folder / "query_relevant.npy")
    sought = {int(np.flatnonzero(pair.new.ids == relevant[q])[0]) for q in halves[0] | halves[1]}
    assert sought <= gallery
    for old, new in (made.sample, made.gallery, *made.queries):
        np.testing.assert_array_equal(old.ids, new.ids)
    again = pairs.cut(pair, 0, most_queries=40, most_items=200, largest=30)
    assert rows_in(again.gallery[1], pair.new) == gallery  # for any size of the sample
    assert rows_in(again.sample[1], pair.new) <= sample
    other = pairs.cut(pair, 1, most_queries=40, most_items=200, largest=80)
    assert rows_in(other.gallery[1], pair.new) != gallery


def test_where_no_queries_are_given_items_that_leave_the_gallery_ask():
    pair = pairs.digits()
    made = pairs.cut(pair, 3, most_queries=100, most_items=300, largest=50)
    parts = [rows_in(part[1], pair.new) for part in (made.gallery, *made.queries)]
    assert [len(part) for part in parts] == [300, 100, 100]
    assert len(set.union(*parts)) == 500
    mine = sorted(parts[0])
    np.testing.assert_array_equal(np.sort(made.gallery[1].labels), np.sort(pair.new.labels[mine]))
    old, new = pairs.whole_of(made.sample, np.arange(10), made.gallery)
    assert len(old) == len(new) == 310 and len(set(new.ids)) == 310
    np.testing.assert_array_equal(new.labels[10:], made.gallery[1].labels)


def test_a_reversed_pair_swaps_the_models(folder):
    pair = pairs.from_folder("text", folder)
    other = pair.reversed()
    assert other.name == "text, reversed" and other.old is pair.new and other.new is pair.old
    assert other.queries == pair.queries[::-1] and other.sample is None


def test_folders_without_what_is_needed_are_told_in_one_line(folder, tmp_path):
    (folder / "query_old.npy").rename(tmp_path / "aside.npy")
    with pytest.raises(UserError, match="give both query_old and query_new, or neither"):
        pairs.from_folder("text", folder)
    (folder / "query_new.npy").unlink()
    with pytest.raises(UserError, match="judged pairs need query_old and query_new"):
        pairs.from_folder("text", folder)
    (folder / "query_relevant.npy").unlink()
    with pytest.raises(UserError, match="nothing says what is relevant; give labels"):
        pairs.from_folder("text", folder)
    with pytest.raises(UserError, match="holds no pair: there is no old or gallery_old"):
        pairs.from_folder("text", tmp_path)


def test_the_share_of_intervals_that_hold_a_fresh_mean():
    """Means of 50 and of 80 draws from one normal distribution are compared 40,000 times."""
    rng = np.random.default_rng(0)
    first, fresh = (rng.standard_normal(40_000) / n**0.5 for n in (50, 80))
    held = np.mean(np.abs(first - fresh) <= 1.959964 / 50**0.5)
    expected = summary.expected_share(50, 80)
    # The bound is five standard deviations of a share of 40,000 draws.
    assert abs(held - expected) <= 5 * (expected * (1 - expected) / 40_000) ** 0.5


def point(way, order, share, value, fresh, label=""):
    return {
        "way": way, "label": label or way, "order": order, "share": share, "value": value,
        "fresh_value": fresh, "gain": [0.1, 0.0, 0.2], "fresh": [fresh - 0.4, -0.1, 0.3],
    }  # fmt: skip


def test_a_path_is_chosen_by_the_deciding_queries_and_told_by_the_fresh_ones():
    cell = {
        "points": [
            point("blend", "", 0.0, 0.6, 0.2, "blend 0.1"),
            point("blend", "", 0.0, 0.5, 0.9, "blend 0.2"),
            point("dual", "random", 0.0, 0.4, 0.4),
            point("dual", "random", 0.5, 0.9, 0.5),
            point("dual", "random", 1.0, 0.8, 0.8),
            point("dual", "certainty", 0.0, 0.4, 0.4),
            point("dual", "certainty", 0.5, 0.1, 0.9),
            point("dual", "certainty", 1.0, 0.8, 0.8),
        ]
    }
    assert [p["fresh_value"] for p in summary.decided_path(cell, "blend")] == [0.2]
    chosen = summary.decided_path(cell, "dual")
    assert {p["order"] for p in chosen} == {"random"}
    assert summary.area(chosen) == pytest.approx((0.45 + 0.65) / 2)
    assert summary.area(chosen, "value") == pytest.approx((0.65 + 0.85) / 2)
    assert summary.decided_path(cell, "fused") == []


SMALL = [
    "--no-digits", "--ways", "translated,blend,dual", "--orders", "random,uncertainty",
    "--shares", "0,0.5,1", "--maps", "ridge,identity", "--sizes", "60,5000", "--queries", "40",
    "--items", "150", "--resamples", "50", "--quick",
]  # fmt: skip


@pytest.mark.slow
def test_the_command_measures_reports_and_goes_on_where_it_was_cut_off(folder, tmp_path, capsys):
    out = tmp_path / "out"
    command = [*SMALL, "--pair", f"tëxt={folder}", "--out", str(out)]
    assert benchmark_upgrade.main(command) == 0
    said = capsys.readouterr()
    assert "min left" in said.err and "Orders of re-embedding" in said.out
    assert {p.name for p in out.iterdir()} == {
        "report.md", "report.json", "report.html", "curves.png", "cells.jsonl",
    }  # fmt: skip
    found = json.loads((out / "report.json").read_text())
    assert [(c["pair"], c["map"], c["size"]) for c in found["cells"]] == [
        ("tëxt", "ridge", 60), ("tëxt, reversed", "ridge", 60),
    ]  # fmt: skip
    # A map that needs equal sizes is refused, and the refusal stays in the report.
    assert len(found["refused"]) == 2 and "identity" in found["notes"][-1]
    assert "has no sample of 5,000 pairs" in " ".join(found["notes"])
    for cell in found["cells"]:
        assert cell["queries"] == [40, 40] and cell["items"] == 150
    lines = (out / "cells.jsonl").read_text().splitlines(keepends=True)
    (out / "cells.jsonl").write_text("".join(lines[:-1]) + lines[-1][:20])  # killed while writing
    assert benchmark_upgrade.main(command) == 0
    again = json.loads((out / "report.json").read_text())
    assert "3 of them done before" in capsys.readouterr().err
    for cell in (*again["cells"], *found["cells"]):
        del cell["fit_s"], cell["assess_s"]
    assert again["cells"] == found["cells"]

    assert benchmark_upgrade.main([*command, "--queries", "41"]) == 1
    assert "holds a benchmark with other settings" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    assert benchmark_upgrade.main([*command, "--out", str(tmp_path / "mine")]) == 1
    assert "nothing was overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--maps", "rigde"], "unknown method 'rigde'; did you mean 'ridge'"),
        (["--orders", "randm"], "did you mean 'random'"),
        (["--ways", "fuse"], "did you mean 'fused'"),
        (["--sizes", "5"], "sizes must be 20 or more, not 5"),
        (["--seeds", "0"], "seeds must be 1 or more, not 0"),
        (["--pair", "here"], "--pair takes NAME=FOLDER, not 'here'"),
        (["--images", "a=b,c"], "--images takes NAME=OLD,NEW,IMAGES, not 'a=b,c'"),
        (["--no-digits"], "there is no pair"),
        (["--pair", "digits=/nowhere"], "holds no pair"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, capsys, arguments, message):
    out = tmp_path / "out"
    assert benchmark_upgrade.main([*arguments, "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not out.exists()
