"""The commands and the code of docs/upgrade.md, in their order, with smaller models."""

import ast
import os
import re
import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest

from fct_jax import config as defaults
from fct_jax.embed.command import embed
from fct_jax.train.loop import train
from fct_jax.upgrade import __main__ as upgrade_main

REPOSITORY = Path(__file__).parents[2]
TUTORIAL = (REPOSITORY / "docs" / "upgrade.md").read_text()

# What makes a training small enough for a test.
SMALLER = {
    "fct_jax.train": {
        "preprocessing.size": 8,
        "model.width": 4,
        "model.embedding_dim": 8,
        "epochs": 6,
        "evaluate_every_epochs": 6,
    },
    "assess": {"assess.shares": (0.5,), "assess.max_queries": 200},
    "fit": {"fit.epochs": 4, "fit.inner_dim": 16, "fit.candidates": "ridge,fct"},
}


def configured(argv: list[str], changes: dict):
    """The config of ``--config FILE --config.a.b=value …``, and the work directory."""
    if "--config" in argv:
        path = str(REPOSITORY / argv[argv.index("--config") + 1])
        config = runpy.run_path(path)["get_config"]()
    else:
        config = defaults.embed()
    given = dict(a[len("--config.") :].split("=", 1) for a in argv if a.startswith("--config."))
    for key, value in {**given, **changes}.items():
        *path, last = key.split(".")
        section = config
        for part in path:
            section = section[part]
        assert last in section, key
        is_text = isinstance(section[last], str) or not isinstance(value, str)
        section[last] = value if is_text else ast.literal_eval(value)
    return config, argv[argv.index("--workdir") + 1]


def run_command(line: str) -> None:
    program, flag, module, *rest = shlex.split(line)
    assert (program, flag) == ("python", "-m"), line
    command = module if rest[0].startswith("-") else rest[0]
    config, workdir = configured(rest, SMALLER.get(command, {}))
    if module == "fct_jax.upgrade":
        name, function = upgrade_main.COMMANDS[command]
        loaded = __import__(f"fct_jax.upgrade.{name}", fromlist=[function])
        getattr(loaded, function)(config, workdir)
    else:
        {"fct_jax.train": train, "fct_jax.embed": embed}[module](config, workdir)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The directory in which everything of the tutorial has run."""
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / "tests").symlink_to(REPOSITORY / "tests")
    before = Path.cwd()
    os.chdir(folder)
    try:
        for kind, block in re.findall(r"```(sh|python)\n(.*?)```", TUTORIAL, re.S):
            if kind == "python":
                exec(block, {})
            else:
                for line in block.replace("\\\n", " ").strip().splitlines():
                    run_command(line)
    finally:
        os.chdir(before)
    return folder


def test_images(ran):
    from fct_jax.upgrade.galleries.base import open_gallery

    gallery = open_gallery(ran / "digits" / "upgrade" / "gallery", unfinished=True)
    assert len(gallery) == 797
    assert gallery.versions.sum() == 200  # rolled back to the second batch of a hundred
    new = np.load(ran / "digits" / "gallery_new" / "vectors.npy")
    rows = np.flatnonzero(gallery.versions)
    np.testing.assert_array_equal(gallery.rows(rows), new[rows])
    assert (ran / "digits" / "report" / "report.md").is_file()


def test_text(ran):
    assert (ran / "text" / "report" / "calibration" / "calibration.json").is_file()
    assert (ran / "text" / "ridge" / "numpy.safetensors").is_file()


def test_every_line_of_code_is_in_a_block_that_runs():
    kinds = set(re.findall(r"```(\w+)\n", TUTORIAL))
    assert kinds <= {"sh", "python", "text"}
    for command in upgrade_main.COMMANDS:
        assert f"fct_jax.upgrade {command} " in TUTORIAL
