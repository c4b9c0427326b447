"""The commands and the code of docs/upgrade.md, in their order, with smaller models."""

import ast
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tiny_runs

from fct_jax import cli
from fct_jax import config as defaults
from fct_jax.cli.experiments import translated
from fct_jax.embed.command import embed
from fct_jax.runtime.config_files import find_config, read_config
from fct_jax.train.loop import train

REPOSITORY = Path(__file__).parents[2]
TUTORIAL = (REPOSITORY / "docs" / "upgrade.md").read_text()

# Settings that make a training small enough for a test.
SMALLER = {
    "train": {
        "preprocessing.size": 8,
        "model.name": tiny_runs.MODEL,
        "model.width": 4,
        "model.embedding_dim": 8,
        "epochs": 6,
        "evaluate_every_epochs": 6,
    },
    "assess": ["--shares", "0.5", "--max-queries", "200"],
    "fit": ["--epochs", "4", "--inner-dim", "16", "--candidates", "ridge,fct"],
}


def run_experiment(name: str, words: list[str]) -> None:
    """Run ``fct-jax train`` or ``embed`` in this process, which defines absl's flags only once."""
    given = dict(word[2:].split("=", 1) for word in translated(words) if "=" in word)
    workdir = words[words.index("--workdir") + 1]
    config = read_config(find_config(given.pop("config"))) if "config" in given else None
    config = config or defaults.embed()
    changes = {key.removeprefix("config."): value for key, value in given.items()}
    for key, value in {**changes, **SMALLER.get(name, {})}.items():
        *path, last = key.split(".")
        section = config
        for part in path:
            section = section[part]
        assert last in section, key
        is_text = isinstance(section[last], str) or not isinstance(value, str)
        section[last] = value if is_text else ast.literal_eval(value)
    {"train": train, "embed": embed}[name](config, workdir)


def run_command(line: str) -> None:
    program, name, *words = shlex.split(line)
    assert program == "fct-jax", line
    if name in ("train", "embed"):
        run_experiment(name, words)
    else:
        assert cli.main([name, *words, *SMALLER.get(name, [])]) in (cli.DONE, cli.LOOK), line


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Run the whole tutorial; return its directory."""
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / "tests").symlink_to(REPOSITORY / "tests")
    before = Path.cwd()
    os.chdir(folder)
    names = {}  # one session, since later blocks use names of earlier ones
    try:
        for kind, block in re.findall(r"```(sh|python)\n(.*?)```", TUTORIAL, re.S):
            if kind == "python":
                exec(block, names)
            else:
                for line in block.replace("\\\n", " ").strip().splitlines():
                    run_command(line)
    finally:
        os.chdir(before)
    return folder


@pytest.mark.slow(minutes=0.4)
def test_images(ran):
    from fct_jax.upgrade.galleries.base import open_gallery

    gallery = open_gallery(ran / "digits" / "upgrade" / "gallery", unfinished=True)
    assert len(gallery) == 797
    assert gallery.versions.sum() == 200  # rolled back to the second batch of a hundred
    new = np.load(ran / "digits" / "gallery_new" / "vectors.npy")
    rows = np.flatnonzero(gallery.versions)
    np.testing.assert_array_equal(gallery.rows(rows), new[rows])
    assert (ran / "digits" / "report" / "report.md").is_file()


@pytest.mark.slow
def test_text(ran):
    assert (ran / "text" / "report" / "calibration" / "calibration.json").is_file()
    assert (ran / "text" / "ridge" / "numpy.safetensors").is_file()


def test_every_block_of_code_runs():
    """Every block that is not output is run; all commands of an upgrade are among them."""
    blocks = re.findall(r"```(\w*)\n(.*?)```", TUTORIAL, re.S)
    assert {kind for kind, _ in blocks} == {"sh", "python", "text"}
    shell = "".join(block for kind, block in blocks if kind == "sh")
    for name in ("fit", "assess", "plan", "apply", "status", "rollback"):
        assert f"fct-jax {name} " in shell
