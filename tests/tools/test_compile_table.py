"""tools/compile_table.py: the table of docs/pods.md follows from the results that are kept."""

import json
import shutil

import pytest

from fct_jax.errors import UserError
from tools import compile_table

STEP = {
    "memory": 3 * 2**30,
    "fits": True,
    "seconds": 0.02,
    "bound": "memory",
    "share_of_peak": 0.385,
    "items_per_second": 51_200.0,
    "unit": "images",
    "collectives": {"all-reduce": [50, 46_000_000], "all-gather": [54, 4_000_000]},
}


def kept(**changes) -> dict:
    recipe = compile_table.command(compile_table.RECIPES["resnet50"], "v5e:4x4")
    result = {"recipe": recipe, "step": {**STEP, **changes}, "nearest": None}
    return {"resnet50": {"v5e:4x4": result}}


def rows(results: dict) -> list[list[str]]:
    return [row for row in compile_table.table(results).rows if row[0].startswith("ResNet-50")]


def test_the_page_is_what_the_results_give():
    """Fails if docs/pods.json or a recipe was changed without the command."""
    page = compile_table.PAGE.read_text()
    results = json.loads(compile_table.RESULTS.read_text())
    assert page == compile_table.with_table(page, compile_table.table(results).markdown())


def test_cells():
    first, other, *_ = rows(kept())
    assert first[1:] == [
        "v5e:4x4",
        "3.00 of 16 GiB",
        "20 ms",
        "memory",
        "38 %",
        "51,200 images/s",
        "54 all-gather, 50 all-reduce; 50 MB",
    ]
    assert other[-1] == "not compiled yet: `--compile --only resnet50 --topology v4:2x2x4`"


def test_what_does_not_fit_is_followed_by_what_does():
    results = kept(fits=False, memory=20 * 2**30)
    results["resnet50"]["v5e:4x4"]["nearest"] = {"changes": {"remat": True}, "step": STEP}
    (first, *_), (nearest,) = (
        rows(results),
        [row for row in compile_table.table(results).rows if "remat" in row[0]],
    )
    assert first[2:4] == ["**20.00 of 16 GiB**", "does not fit"]
    assert nearest[0] == "the same with remat=True"
    assert nearest[3] == "20 ms"


def test_only_what_is_missing_or_has_changed_is_compiled(tmp_path, monkeypatch):
    page = shutil.copy(compile_table.PAGE, tmp_path / "pods.md")
    monkeypatch.setattr(compile_table, "PAGE", page)
    monkeypatch.setattr(compile_table, "RESULTS", tmp_path / "pods.json")
    made = []

    def compiled(recipe, topology):
        if topology == "v6e:4x4":
            raise KeyboardInterrupt  # what was compiled before is kept
        made.append(topology)
        command = compile_table.command(recipe, topology)
        return {"recipe": command, "step": STEP, "nearest": None}

    monkeypatch.setattr(compile_table, "compiled", compiled)
    with pytest.raises(KeyboardInterrupt):
        compile_table.main(["--compile", "--only", "resnet50"])
    assert made == ["v5e:4x4", "v4:2x2x4", "v5p:2x2x4"]
    compile_table.main(["--compile", "--only", "resnet50", "--topology", "v5e:4x4"])
    assert len(made) == 3
    changed = compile_table.RECIPES["resnet50"]._replace(changes=("batch_size=512",))
    monkeypatch.setitem(compile_table.RECIPES, "resnet50", changed)
    compile_table.main(["--compile", "--only", "resnet50", "--topology", "v5e:4x4"])
    assert len(made) == 4


def test_mistakes(monkeypatch):
    with pytest.raises(UserError, match="unknown recipe 'resnet5'.*resnet50"):
        compile_table.main(["--only", "resnet5"])
    with pytest.raises(UserError, match="has no lines"):
        compile_table.with_table("a page", "")
