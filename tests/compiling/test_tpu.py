"""The real compiler of TPUs, where libtpu is installed; no TPU is needed.

pip install --target .libtpu --no-deps libtpu==…
PYTHONPATH=.libtpu JAX_PLATFORMS=cpu python -m pytest tests/compiling/test_tpu.py
"""

import json

import pytest

from fct_jax import cli
from fct_jax import config as configs
from fct_jax.cli.compile import change
from fct_jax.compiling import chips, compile_config, hlo
from fct_jax.compiling.stand_ins import Given
from fct_jax.errors import UserError
from fct_jax.runtime.config_files import find_config, read_config

pytest.importorskip("libtpu", reason="libtpu, the compiler of the extra tpu, is not installed")

IMAGES = 1_000_000
DATA = 2 * IMAGES * 32 * 4  # bytes of old and new embeddings


@pytest.fixture(scope="module")
def step():
    config = read_config(find_config("digits_fct"))
    change(config, ["batch_size=4096", "old=a", "new=b"])
    configs.check(config)
    given = Given(images=IMAGES, old_dim=32, new_dim=32)
    return next(compile_config(config, "v5e:2x2", given))


def test_a_training_step(step):
    assert step.chips == 4
    assert step.fits
    assert DATA < step.memory < 1.5 * DATA
    assert set(step.collectives) <= {"all-reduce", "all-gather"}
    assert 0 < step.share_of_peak <= 1
    assert step.memory_traffic < step.bytes_accessed


def test_only_the_batch_of_the_cached_embeddings_is_touched(step):
    """XLA once converted all embeddings to bfloat16 in every call, before it picked the batch."""
    named = ("parameter", "tuple", "get-tuple-element", "while", "bitcast")
    made = [each for each in hlo.instructions(step.text) if each.kind not in named]
    assert max(each.size for each in made) < DATA / 8


def test_unknown_topology():
    with pytest.raises(UserError, match="no topology v5e:3x7"):
        chips.topology_mesh("v5e:3x7")


@pytest.mark.slow(minutes=1)
def test_a_large_classifier_is_not_copied():
    """Gradient, momentum and parameters have one layout, also where nothing divides the classes."""
    config = read_config(find_config("digits_compatible"))
    words = ["method=none", "base_loss=softmax", "model.name=tiny_compatible:FlatModel"]
    change(config, [*words, "model.embedding_dim=256", "preprocessing.size=8", "batch_size=64"])
    configs.check(config)
    given = Given(images=100_000, classes=81_313)
    step = next(compile_config(config, "v5e:2x2", given))
    assert step.largest_copy < 81_313 * 256 * 4 / 10


@pytest.mark.slow(minutes=1)
def test_a_recipe_too_large(capsys):
    """It ends with 1, and with settings that the compiler accepts."""
    words = ["batch_size=6291456", "model.inner_dim=2048", "compute_dtype=bfloat16", "remat=True"]
    sizes = ["--images", "6291456", "--old-dim", "32", "--new-dim", "32"]
    command = ["compile", "digits_fct", "--topology", "v5e:2x2", *sizes, *words]
    assert cli.main([*command, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    first, nearest = found["programs"][0], found["nearest"]
    chip = chips.CHIPS["v5e"].memory
    assert not first["fits"]
    assert first["memory"] > chip
    assert nearest["changes"]["accumulate_steps"] >= 2
    assert nearest["program"]["memory"] <= chip
