"""Programs are built from the config alone: no data set, no trained model, no weights."""

import re

import jax
import pytest

from fct_jax import config as configs
from fct_jax.cli.compile import change
from fct_jax.compiling import chips, compile_programs, stand_ins
from fct_jax.compiling.programs import programs_of
from fct_jax.compiling.settings import candidates
from fct_jax.compiling.stand_ins import Given, Size
from fct_jax.errors import UserError
from fct_jax.runtime import sharding
from fct_jax.runtime.config_files import find_config, read_config
from fct_jax.train.compatible.methods import METHODS


def read(name: str, *words: str):
    config = read_config(find_config(name))
    change(config, words)
    configs.check(config)
    return config


FLAT = ("model.name=flat", "batch_size=8")  # a model that is traced quickly


@pytest.mark.usefixtures("flat_model")
@pytest.mark.parametrize(
    ("name", "words", "found"),
    [
        ("digits_backbone_new", FLAT, ("training step", "embedding")),
        ("digits_simclr", FLAT, ("training step", "embedding")),
        ("digits_fct", ("batch_size=8",), ("training step", "transformation")),
        ("digits_fastfill", ("batch_size=8",), ("training step", "transformation")),
        ("digits_compatible", (*FLAT, "method=advbct"), ("training step", "embedding")),
    ],
)
def test_lowered(name, words, found):
    """Each task's programs lower with the whole batch, and without any data."""
    config = read(name, *words)
    made = programs_of(config, sharding.make_mesh(), platform="cuda")
    assert tuple(each.name for each in made) == found
    assert made[0].items == 8
    assert made[0].of == 1000
    # Images, labels or indices of the whole batch, after the axis of a call's steps.
    assert re.search(r"tensor<(1|16)x8x", made[0].lower().as_text())


@pytest.mark.usefixtures("flat_model")
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method(method):
    """The inputs that each compatible method needs of the old model are given as shapes."""
    words = ("method=" + method, "model.embedding_dim=40")
    config = read("digits_compatible", *FLAT, *words)
    step = programs_of(config, sharding.make_mesh(), platform="cpu")[0]
    step.lower()


def test_operations_follow_the_formula():
    """A transformation pass has 2 * vectors * weights operations, and little more."""
    config = read("digits_fct", "batch_size=8")
    made = programs_of(config, sharding.make_mesh(), Given(100, 10, 128, 64), platform="cpu")[1]
    (found,) = compile_programs([made], chips.CHIPS["v5e"], 1)
    variables = jax.tree.leaves(made.lower().in_avals)[:-2]
    weights = sum(each.size for each in variables if each.ndim == 2)
    assert found.fits
    assert 1 <= found.flops / (2 * 4096 * weights) < 1.1
    assert found.collectives == {}
    assert found.seconds == max(found.compute, found.memory_time)


def test_mistakes():
    config = read("digits_fct")
    config.data.name = "mydata"
    with pytest.raises(UserError, match="size of data.name=mydata is not known: give --images"):
        stand_ins.size_of(config, Given(images=5))
    assert stand_ins.size_of(config, Given(50, 5)) == Size(50, 5)
    with pytest.raises(UserError, match="unknown chip 'v5'.*v5e"):
        chips.find_chip("v5:2x2")
    with pytest.raises(UserError, match="'batch_size' is no key=value"):
        change(config, ["batch_size"])
    with pytest.raises(UserError, match="does not fit the config"):
        change(config, ["nothing.here=3"])


def test_settings_that_save_memory():
    found = list(candidates(read("digits_compatible", "batch_size=64"), 4))
    assert found[:3] == [
        {"compute_dtype": "bfloat16"},
        {"compute_dtype": "bfloat16", "mesh.model": 4},
        {"compute_dtype": "bfloat16", "mesh.model": 4, "remat": True},
    ]
    assert [each["accumulate_steps"] for each in found[3:]] == [2, 4, 8, 16]
