"""``fct-jax compile`` for this machine's CPU in place of a TPU: figures, exit codes, remedies."""

import functools
import json
import re

import pytest

from fct_jax import cli
from fct_jax.compiling import chips, compiling, programs, settings
from fct_jax.runtime import sharding

# Activations of many vectors, few weights.
WORDS = ["compile", "digits_fct", "--topology", "v5e:2x2", "--images", "9000"]
WORDS += ["batch_size=8192", "model.inner_dim=64"]


@pytest.fixture(autouse=True)
def on_this_machine(monkeypatch):
    """Compile for one CPU device what would be compiled for the chips of a topology."""
    monkeypatch.setattr(programs, "_TRANSFORMED", 64)
    monkeypatch.setattr(settings, "_MOST_STEPS", 2)
    for module in (compiling, settings):
        monkeypatch.setattr(module, "topology_mesh", lambda *rest: sharding.make_mesh())
        on_cpu = functools.partial(programs.programs_of, platform="cpu")
        monkeypatch.setattr(module, "programs_of", on_cpu)


def memory_of(chip: str, size: float, monkeypatch) -> None:
    monkeypatch.setitem(chips.CHIPS, chip, chips.CHIPS[chip]._replace(memory=size))


def result(capsys, *words: str, code: int) -> dict:
    assert cli.main([*WORDS, "--json", *words]) == code
    return json.loads(capsys.readouterr().out)


def test_figures(capsys):
    step, passed = result(capsys, code=0)["programs"]
    assert (step["name"], passed["name"]) == ("training step", "transformation")
    assert step["items"] == 8192
    assert step["of"] == 9000
    assert step["fits"]
    assert step["seconds"] == max(step["compute"], step["memory_time"], step["link_time"])
    assert step["items_per_second"] == pytest.approx(8192 / step["seconds"])


def test_time_and_money(capsys):
    assert cli.main([*WORDS, "--price", "3600"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "vectors/s" in out
    assert "an epoch" in out
    assert "the run" in out
    assert re.search(r"minutes, [\d.]+ at 3600", out)


def test_what_does_not_fit_ends_with_what_does(capsys, monkeypatch):
    saved = ["compute_dtype=bfloat16", "remat=True"]
    whole = result(capsys, *saved, code=0)["programs"][0]["memory"]
    memory_of("v5e", whole - 1, monkeypatch)
    found = result(capsys, *saved, code=1)
    assert not found["programs"][0]["fits"]
    nearest = found["nearest"]
    assert nearest["changes"] == {"accumulate_steps": 2}
    assert nearest["program"]["memory"] < whole
    assert nearest["program"]["fits"]


def test_nothing_fits(capsys, monkeypatch):
    memory_of("v5e", 1000, monkeypatch)
    assert cli.main([*WORDS, "remat=True"]) == 1
    printed = capsys.readouterr()
    said = " ".join([*printed.err.split(), *printed.out.split()])
    assert "does not fit" in said
    assert "under no setting that was tried" in said
    assert said.index("compute_dtype=bfloat16") < said.index("accumulate_steps=2")


def test_a_mistake_is_one_line(capsys):
    assert cli.main([*WORDS, "batchsize=3"]) == 1
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1
    assert "unknown config key config.batchsize; did you mean 'batch_size'?" in err
