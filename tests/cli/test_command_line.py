"""The command fct-jax as a person types it: help, one line for a mistake, exit codes, JSON."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from patience import LONG

from fct_jax import __version__, cli
from fct_jax.cli.experiments import translated
from fct_jax.cli.parser import Parser
from fct_jax.demo import load
from fct_jax.errors import UserError

REPOSITORY = Path(__file__).parents[2]


def run(*words, cwd=None):
    """Run the command in its own process, in a folder other than the checkout."""
    return subprocess.run(
        [sys.executable, "-m", "fct_jax", *map(str, words)],
        cwd=cwd or Path("/"),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1", "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=LONG,
    )


def test_help_lists_every_command_and_imports_nothing_heavy():
    code = (
        "import sys; from fct_jax.cli import main; main(['--help']); main(['--version'])\n"
        "heavy = {'numpy', 'jax', 'rich', 'absl', 'faiss'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=LONG
    )
    assert done.returncode == 0, done.stderr
    assert all(f"  {name} " in done.stdout for name in cli.COMMANDS)
    assert f"fct-jax {__version__}" in done.stdout


@pytest.mark.parametrize(
    "name", [n for n in cli.COMMANDS if cli.load(n).__name__[-11:] != "experiments"]
)
def test_every_command_has_help_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert f"  fct-jax {name}" in said and "--json" in said


def test_defaults_are_those_of_the_function(capsys):
    with pytest.raises(SystemExit):
        cli.main(["fit", "--help"])
    assert "(default: auto)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "words, said",
    [
        (["fitt"], "unknown command 'fitt'; did you mean 'fit'?"),
        (["fit", "a", "b", "--oot=x"], "fct-jax fit has no option --oot; did you mean --out?"),
        (["fit", "a"], "required: new, --out"),
        (["fit", "a", "b", "--out", "m", "--seed", "x"], "invalid int value: 'x'"),
        (["assess", "only"], "assess takes OLD NEW or MAP OLD NEW, not 1"),
        (["assess", "no/such.npy", "no/such.npy"], "no/such.npy"),
        (["doctor", "/no/such"], "/no/such"),
        (["train", "digits_ftc", "--workdir", "w"], "did you mean digits_fct?"),
        (["train", "digits_fct", "more", "--workdir", "w"], "'more' is neither key=value"),
        (["train", "digits_fct"], "--workdir"),
    ],
)
def test_a_mistake_is_one_line(words, said, tmp_path):
    done = run(*words, cwd=tmp_path)
    assert done.returncode == cli.MISTAKE, done.stderr
    assert said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == "" and not list(tmp_path.iterdir())


def test_words_of_experiments():
    words = ["digits_fct", "--workdir", "runs/a=b", "optimizer.lr=0.5"]
    made = ["--config=digits_fct", "--workdir", "runs/a=b", "--config.optimizer.lr=0.5"]
    assert translated(words) == made
    with pytest.raises(UserError, match="config is already named"):
        translated(["one", "two"])


def test_doctor(tmp_path, capsys):
    vectors = load("validation").new
    (tmp_path / "set").mkdir()
    np.save(tmp_path / "set" / "vectors.npy", vectors)
    assert cli.main(["doctor", str(tmp_path / "set"), "--json"]) == cli.DONE
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["dim"], found["dtype"]) == (797, 32, "float32")
    assert found["findings"] == []
    vectors[7, 1] = np.nan
    np.save(tmp_path / "set" / "vectors.npy", vectors)
    assert cli.main(["doctor", str(tmp_path / "set"), "--json"]) == cli.LOOK
    found = json.loads(capsys.readouterr().out)
    assert [(f["kind"], f["count"]) for f in found["findings"]] == [("NaN", 1)]


@pytest.mark.slow
def test_demo_ends_with_a_verdict_and_a_picture(tmp_path):
    done = run("demo", "--json", cwd=tmp_path)
    assert done.returncode == cli.DONE, done.stderr
    said = json.loads(done.stdout)
    assert said["advice"] == "upgrade" and "re-embed" in said["text"]
    report = tmp_path / "fct_jax_demo"
    assert (report / "curves.png").stat().st_size > 1000
    assert run("demo", "--out", report, cwd=tmp_path).returncode == cli.MISTAKE


@pytest.mark.slow
def test_fit_and_assess_with_json_alone_on_stdout(tmp_path):
    """Two files lead to a verdict: the map is fitted on one part and judged on the other."""
    sample, gallery = load("train"), load("validation")
    for name, array in (
        ("a", sample.old),
        ("b", sample.new),
        ("c", gallery.old),
        ("d", gallery.new),
    ):
        np.save(tmp_path / f"{name}.npy", array)
    np.save(tmp_path / "labels.npy", gallery.labels)
    done = run("fit", "a.npy", "b.npy", "--method", "ridge", "--out", "map", "--json", cwd=tmp_path)
    assert done.returncode == cli.DONE, done.stderr
    assert json.loads(done.stdout)["dim_out"] == 32
    options = ["--labels", "labels.npy", "--shares", "0.5", "--resamples", "50", "--json"]
    done = run("assess", "map", "c.npy", "d.npy", *options, cwd=tmp_path)
    assert done.returncode == cli.DONE, done.stderr
    assert json.loads(done.stdout)["advice"] == "upgrade"
    done = run("assess", "map", "c.npy", "d.npy", *options[:-1], "--quiet", cwd=tmp_path)
    assert done.returncode == cli.DONE and done.stderr == ""
    assert done.stdout.startswith("Upgrade") and done.stdout.count("\n") == 1
    options[1:2] = ["nothing.npy"]
    done = run("assess", "map", "c.npy", "d.npy", *options, cwd=tmp_path)
    assert done.returncode == cli.MISTAKE and "nothing.npy" in done.stderr


def test_an_upgrade_from_plain_arrays(tmp_path, monkeypatch, capsys):
    """plan, apply, status and rollback work on .npy files; map and gallery are named only once."""
    monkeypatch.chdir(tmp_path)
    sample, gallery = load("train"), load("validation")
    vectors = {"a": sample.old, "b": sample.new, "c": gallery.old, "d": gallery.new}
    for name, array in vectors.items():
        np.save(f"{name}.npy", array)
    for words in (
        "fit a.npy b.npy --method ridge --out map",
        "plan up --map map --gallery c.npy --budget-items 300",
        "apply up --reembed d.npy --batch-items 100",
        "rollback up --to 2",
    ):
        assert cli.main(words.split()) == cli.DONE, capsys.readouterr().err
    capsys.readouterr()
    assert cli.main(["status", "up", "--json"]) == cli.DONE
    assert json.loads(capsys.readouterr().out)["reembedded"] == 200
    made = np.load("up/gallery/vectors.npy")
    new = np.load("up/gallery/version.npy") == 1
    assert new.sum() == 200
    np.testing.assert_array_equal(made[new], gallery.new[new])
    assert cli.main(["apply", "up", "--reembed", "nothing.npy"]) == cli.MISTAKE
    assert "nothing.npy does not exist" in capsys.readouterr().err


def test_a_run_as_vectors_needs_images(tmp_path, capsys):
    run = tmp_path / "run" / "model"
    run.mkdir(parents=True)
    (run / "model.json").write_text("{}")
    assert cli.main(["fit", str(tmp_path / "run"), "b.npy", "--out", "m"]) == cli.MISTAKE
    assert "is a model; name the images that it embeds" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_commands_and_options(shell, capsys):
    assert cli.main(["completion", shell]) == cli.DONE
    script = capsys.readouterr().out
    assert "doctor" in script and "--budget-items" in script


def test_a_missing_extra_is_named(tmp_path):
    program = (
        "import sys; sys.modules['orbax'] = None\n"
        "from fct_jax.cli import main\n"
        f"sys.exit(main(['train', 'digits_backbone_old', '--workdir', {str(tmp_path / 'run')!r}]))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=LONG)
    assert done.returncode == cli.MISTAKE
    assert done.stderr.endswith("pip install 'fct_jax[train]'\n"), done.stderr


def test_early_interrupt_is_one_line():
    """Ctrl-C comes before the command has begun, for instance while JAX is imported."""
    program = (
        "import os, signal, sys\n"
        "from fct_jax.runtime import starting\n"
        "starting.exit_status(3)\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "import time; time.sleep(60)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=LONG)
    assert done.returncode == cli.INTERRUPTED
    assert done.stderr == "stopped before any work began\n"


def test_help_needs_no_extra(monkeypatch):
    """In an install without an extra the help is shown, but without the defaults."""

    def missing(name):
        raise ModuleNotFoundError("No module named 'orbax'", name="orbax")

    parser = Parser("compare", "Compare models.", "fct_jax.compare.command:compare")
    parser.add_argument("--metric", help="how vectors are compared")
    with monkeypatch.context() as patched:
        patched.setattr(importlib, "import_module", missing)
        assert "how vectors are compared\n" in parser.format_help()
    parser = Parser("assess", "Assess.", "fct_jax.evaluate.orders:backfill_order")
    parser.add_argument("--metric", help="how vectors are compared")
    assert "how vectors are compared (default: l2)" in parser.format_help()
