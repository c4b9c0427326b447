"""Every input of a user, wrong in every way that we know, gives one line and no traceback.

The cases are a table: a name, the call, and the text that the line must contain. Every fault that
somebody finds becomes a row.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_runs
from patience import LONG
from wrong_inputs import write_inputs

from fct_jax import cli, load_map, load_model
from fct_jax import config as configs
from fct_jax.embed.command import embed
from fct_jax.errors import UserError
from fct_jax.evaluate.command import evaluate
from fct_jax.runtime.config_files import find_config, read_config
from fct_jax.train.loop import train
from fct_jax.upgrade import fit
from fct_jax.upgrade.ways.serving import search

LONGEST = 500  # characters of a line


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Make a folder of sound and broken files of every kind, the current folder of all rows."""
    folder = tmp_path_factory.mktemp("world")
    write_inputs(folder)
    before = Path.cwd()
    os.chdir(folder)
    fit("old.npy", "new.npy", method="ridge", out="map")
    yield folder
    os.chdir(before)


def trains(**changes):
    def call():
        train(tiny_runs.backbone(**changes), changes.pop("workdir", "run"))

    return call


def trains_in(workdir):
    return lambda: train(tiny_runs.backbone(), workdir)


def moves(old="old.npy", new="new.npy", **changes):
    def call():
        train(tiny_runs.transformation(old, new, **changes), "run")

    return call


def binds(method="bct", old="no_run", **changes):
    def call():
        train(tiny_runs.compatible(method, old, **changes), "run")

    return call


def embeds(**changes):
    def call():
        embed(tiny_runs.changed(configs.embed(), changes), "run")

    return call


def evaluates(**changes):
    def call():
        evaluate(tiny_runs.evaluation("old.npy", "new.npy", **changes), "run")

    return call


def says(words):
    """Return the words of a row that is typed as a command."""
    return words.split()


FOLDER = {"data__name": "folder", "data__dir": "damaged"}

TABLE = {
    # ---- training
    "train: workdir is a file": (trains_in("letter.txt"), "letter.txt is a file; name a folder"),
    "train: workdir below a file": (trains_in("letter.txt/run"), "letter.txt is a file"),
    "train: workdir of something else": (trains_in("no_run"), "is not empty and holds no run"),
    "train: workdir with a broken config": (trains_in("stopped"), "is not the config of a run"),
    "train: unknown task": (trains(task="backbon"), "config.task is 'backbon'"),
    "train: unknown data set": (trains(data__name="digit"), "did you mean 'digits'"),
    "train: no folder": (trains(data__name="folder", data__dir="nowhere"), "no folder nowhere"),
    "train: no splits": (trains(data__name="folder", data__dir="nothing"), "nothing/training"),
    "train: damaged image": (
        trains(**FOLDER, data__classes="", batch_size=2),
        "1.png.*config.data.on_error=skip",
    ),
    "train: list with a missing image": (
        trains(data__name="list", data__dir="damaged", data__list="list.txt"),
        "1 of 2 images are missing under damaged: training/b/none.png",
    ),
    "train: list that is no list": (
        trains(data__name="list", data__dir="damaged", data__list="letter.txt"),
        "letter.txt, line 1: label 'reader' is not a class number",
    ),
    "train: list that is not there": (
        trains(data__name="list", data__dir="damaged", data__list="none.txt"),
        "cannot read image list none.txt",
    ),
    "train: classes": (trains(data__classes="first 11"), "nearest right value is 'first 10'"),
    "train: subset": (trains(data__classes="", data__subset="old 0.3"), "write '' .all."),
    "train: batch of zero": (trains(batch_size=0), "config.batch_size=0"),
    "train: batch too large": (trains(batch_size=4000), "largest possible: 501"),
    "train: warm-up": (
        trains(optimizer__schedule__warmup_epochs=5),
        "config.optimizer.schedule.warmup_epochs=5 .* config.epochs=2 .* possible: 1",
    ),
    "train: schedule": (
        trains(optimizer__schedule__name="multistep", optimizer__schedule__step=0),
        "config.optimizer.schedule",
    ),
    "train: pretrained": (trains(pretrained="none.pth"), "none.pth"),
    "train: pretrained garbage": (trains(pretrained="letter.txt"), "letter.txt"),
    "train: keep_best": (trains(keep_best="max top3"), "unknown metric .*did you mean 'top5'"),
    "train: export": (trains(export="best"), "needs config.keep_best"),
    "train: mesh": (trains(mesh__data=3), "mesh"),
    # ---- transformations and compatible models
    "transformation: nothing there": (moves(old="none.npy"), "none.npy does not exist"),
    "transformation: empty": (moves(old=""), "config.old"),
    "transformation: a folder of notes": (moves(old="no_run"), "no_run"),
    "transformation: unfinished run": (moves(old="stopped"), "stopped.* training"),
    "transformation: lengths": (moves(new="short.npy"), "200.*150|150.*200"),
    "transformation: NaN": (moves(old="nan.npy"), "nan.npy.* 3"),
    "transformation: 1-D": (moves(old="one_d.npy"), "one_d.npy"),
    "transformation: text": (moves(old="text.npy"), "text.npy"),
    "transformation: garbage": (moves(old="garbage.npy"), "garbage.npy cannot be read"),
    "transformation: pickled": (moves(old="pickled.npy"), "pickled.npy"),
    "transformation: no labels": (moves(kind="fastfill"), "labels"),
    "transformation: online": (moves(online=True), "needs runs"),
    "compatible: no old model": (binds(old=""), "config.old"),
    "compatible: not a run": (binds(), "no_run"),
    "compatible: vectors for a classifier": (binds(old="old.npy"), "classifier"),
    "compatible: unknown method": (binds(method="bctt"), "did you mean 'bct'"),
    "compatible: unknown base loss": (binds(base_loss="arcfase"), "did you mean 'arcface'"),
    # ---- models
    "load_model: nowhere": (lambda: load_model("nowhere"), "nowhere"),
    "load_model: a file": (lambda: load_model("letter.txt"), "letter.txt"),
    "load_model: no run": (lambda: load_model("no_run"), "no_run"),
    "load_model: unfinished": (lambda: load_model("stopped"), "stopped"),
    "load_model: damaged": (lambda: load_model("broken_run"), "model.json"),
    "load_model: no module": (lambda: load_model("nopackage:net"), "there is no such module"),
    "load_model: no function": (lambda: load_model("functions:goood"), "did you mean 'good'"),
    "load_model: a number": (
        lambda: load_model("functions:number"),
        "must be a function, but it is of type int",
    ),
    "load_model: it fails": (lambda: load_model("functions:fails"), "KeyError: 'weights'"),
    "load_model: its shape": (lambda: load_model("functions:flat"), r"must be \(4, D\)"),
    # ---- embedding
    "embed: no model": (embeds(), "config.model is empty"),
    "embed: no data": (embeds(model="functions:good"), "config.data.name is empty"),
    "embed: damaged image": (
        embeds(model="functions:good", **FOLDER, split="train"),
        "1.png.*config.data.on_error=skip",
    ),
    "embed: unknown split": (
        embeds(model="functions:good", data__name="digits", split="test"),
        "unknown config.split 'test'",
    ),
    "embed: batch of zero": (
        embeds(model="functions:good", data__name="digits", batch_size=0),
        "config.batch_size must be at least 1, not 0",
    ),
    "embed: out exists": (lambda: embed(configs.embed(), "nothing"), "exists already"),
    "embed: out is below a file": (lambda: embed(configs.embed(), "letter.txt/x"), "is a file"),
    # ---- evaluation
    "evaluate: lengths": (
        lambda: evaluate(tiny_runs.evaluation("old.npy", "short.npy"), "run"),
        "200.*150|150.*200",
    ),
    "evaluate: no labels": (evaluates(), "labels"),
    "evaluate: an emptied run": (
        lambda: evaluate(tiny_runs.evaluation("set_old", "set_new", "FCT=stopped"), "run"),
        "config.transformed: FCT=stopped is a run whose training has not ended",
    ),
    "evaluate: metric": (evaluates(metric="cosin"), "did you mean 'cosine'"),
    "evaluate: orders": (evaluates(orders="randm"), "did you mean 'random'"),
    "evaluate: workdir exists": (
        lambda: evaluate(tiny_runs.evaluation("old.npy", "new.npy"), "nothing"),
        "exists already",
    ),
    # ---- config files
    "config: none of that name": (lambda: find_config("digits_ftc"), "did you mean digits_fct"),
    "config: no get_config": (lambda: read_config(Path("no_function.py")), "no function get_conf"),
    "config: syntax": (lambda: read_config(Path("syntax.py")), "is not Python.*line 1"),
    "config: import": (lambda: read_config(Path("imports.py")), "no_such_module.*line 1"),
    "config: it raises": (lambda: read_config(Path("raises.py")), "ZeroDivisionError.*line 2"),
    # ---- maps
    "fit: nothing there": (says("fit none.npy new.npy --out m"), "none.npy does not exist"),
    "fit: lengths": (says("fit old.npy short.npy --out m"), "200.*150|150.*200"),
    "fit: NaN": (says("fit nan.npy new.npy --out m"), "nan"),
    "fit: constant": (says("fit constant.npy new.npy --out m"), "old model is degenerate"),
    "fit: 1-D": (says("fit one_d.npy new.npy --out m"), "one_d.npy"),
    "fit: 3-D": (says("fit three_d.npy new.npy --out m"), "three_d.npy"),
    "fit: empty": (says("fit empty.npy empty.npy --out m"), "empty.npy"),
    "fit: text": (says("fit text.npy new.npy --out m"), "text.npy"),
    "fit: garbage": (says("fit garbage.npy new.npy --out m"), "garbage.npy"),
    "fit: cut short": (says("fit cut.npy new.npy --out m"), "cut.npy"),
    "fit: pickled": (says("fit pickled.npy new.npy --out m"), "pickled.npy"),
    "fit: a letter": (says("fit letter.txt new.npy --out m"), "letter.txt"),
    "fit: an empty folder": (says("fit nothing new.npy --out m"), "nothing"),
    "fit: method": (says("fit old.npy new.npy --method rigde --out m"), "did you mean 'ridge'"),
    "fit: labels": (says("fit old.npy new.npy --labels labels_short.npy --out m"), "label"),
    "fit: float labels": (says("fit old.npy new.npy --labels labels_float.npy --out m"), "label"),
    "fit: held out": (says("fit old.npy new.npy --held-out 2 --out m"), "held"),
    "fit: out exists": (says("fit old.npy new.npy --out map"), "exists"),
    "load_map: nowhere": (lambda: load_map("nowhere"), "no map in nowhere"),
    "load_map: unfinished": (lambda: load_map("stopped"), "without model"),
    "load_map: a letter": (lambda: load_map("letter.txt"), "letter.txt"),
    "transform: dimension": (lambda: load_map("map").transform(np.ones((2, 9))), "9"),
    "transform: 1-D": (lambda: load_map("map").transform(np.ones(8)), r"\(8,\)"),
    "transform: NaN": (lambda: load_map("map").transform(np.full((2, 8), np.nan)), "finite|NaN"),
    "transform: text": (lambda: load_map("map").transform(np.array([["a"] * 8])), "numbers|<U1"),
    # ---- upgrades
    "assess: nothing there": (says("assess map none.npy new.npy"), "none.npy"),
    "assess: swapped": (says("assess map new.npy old.npy"), "8|6"),
    "assess: no map": (says("assess no_run old.npy new.npy"), "no_run"),
    "assess: labels": (says("assess map old.npy new.npy --labels labels_short.npy"), "label"),
    "plan: no map": (says("plan up --map no_run --gallery old.npy"), "no_run"),
    "plan: no gallery": (says("plan up --map map --gallery none.npy"), "none.npy"),
    "plan: nothing named": (says("plan up"), "map"),
    "plan: dimension": (says("plan up --map map --gallery new.npy --budget-items 5"), "6|8"),
    "plan: order": (
        says("plan up --map map --gallery old.npy --order randm --budget-items 5"),
        "did you mean 'random'",
    ),
    "plan: workdir is a file": (says("plan letter.txt --map map --gallery old.npy"), "letter.txt"),
    "apply: nothing planned": (says("apply up"), "map|plan"),
    "status: nothing there": (says("status nowhere"), "nowhere"),
    "rollback: nothing there": (says("rollback nowhere --to 0"), "nowhere"),
    "doctor: nothing there": (says("doctor nowhere"), "nowhere"),
    "doctor: a letter": (says("doctor letter.txt"), "letter.txt"),
    # ---- searching
    "search: way": (
        lambda: search("fusd", *_searched()),
        "did you mean 'fused'",
    ),
    "search: swapped": (lambda: search("dual", *_swapped()), "8|6"),
    "search: nothing to search": (
        lambda: search("dual", np.load("old.npy")[:5], None, *_searched()[2:]),
        "query_new",
    ),
}


def _searched():
    old, new = np.load("old.npy"), np.load("new.npy")
    return old[:5], new[:5], old, new, np.zeros(200, bool), 3


def _swapped():
    old, new = np.load("old.npy"), np.load("new.npy")
    return new[:5], old[:5], old, new, np.zeros(200, bool), 3


@pytest.mark.parametrize("row", TABLE)
def test_one_line_and_nothing_left(row, world, capsys):
    call, message = TABLE[row]
    before = {path.name for path in world.iterdir()}
    if callable(call):
        with pytest.raises(UserError, match=f"(?s){message}") as caught:
            call()
        line = str(caught.value)
    else:
        assert cli.main(call) == cli.MISTAKE
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(said) == 1
        line = said[0]
        assert re.search(message, line), line
    assert "\n" not in line and len(line) <= LONGEST, line
    left = {path.name for path in world.iterdir()} - before - {"__pycache__"}
    for name in left:  # it must not make other rows fail
        shutil.rmtree(world / name)
    assert not left, "something was left behind"


# Linux lets nobody make a folder here, not even root.
FORBIDDEN = Path("/sys/fct_jax")


@pytest.mark.skipif(not FORBIDDEN.parent.is_dir(), reason="only Linux has /sys")
@pytest.mark.parametrize(
    "words",
    [
        f"fit old.npy new.npy --method ridge --out {FORBIDDEN}",
        f"assess map old.npy new.npy --labels labels.npy --out {FORBIDDEN}",
        f"plan {FORBIDDEN} --map map --gallery old.npy --budget-items 5",
        f"apply {FORBIDDEN} --map map --gallery old.npy --unchecked",
    ],
)
def test_a_place_that_may_not_be_written_to(words, world, capsys):
    assert cli.main(words.split()) == cli.MISTAKE
    check_forbidden(capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.skipif(not FORBIDDEN.parent.is_dir(), reason="only Linux has /sys")
@pytest.mark.parametrize(
    "words",
    [
        "train --config digits_backbone_old",
        "embed --config.model=functions:good --config.data.name=digits --config.split=train",
        "evaluate --config.old=set_old --config.new=set_new",
    ],
)
def test_an_experiment_in_a_place_that_may_not_be_written_to(words, world):
    name, *rest = words.split()
    command = [sys.executable, "-m", f"fct_jax.{name}", *rest, f"--workdir={FORBIDDEN}"]
    paths = os.pathsep.join([str(tiny_runs.REPOSITORY), str(world)])
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert done.returncode == 1
    check_forbidden(done.stderr)


def check_forbidden(error: str) -> None:
    """Check that one line names the place and says that it is forbidden."""
    said = error.splitlines()
    assert len(said) == 1 and len(said[0]) <= LONGEST, error
    assert re.search("/sys/.*(not permitted|denied|read-only)", said[0], re.I), said[0]


def test_images_of_different_sizes_are_embedded(world):
    """Different sizes are no mistake: every image is resized to the model's size."""
    config = configs.embed()
    config.model, config.data.name, config.data.dir = "functions:good", "folder", "sizes"
    made = embed(config, world / "embedded")
    assert len(made) == 6 and made.dim == 8
