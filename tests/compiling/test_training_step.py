"""A backbone's training step: its operations, and what its program moves, converts and keeps."""

import re

import jax
import jax.numpy as jnp
import pytest

from fct_jax import config as configs
from fct_jax.cli.compile import change
from fct_jax.compiling import stand_ins
from fct_jax.compiling.programs import programs_of
from fct_jax.runtime import sharding
from fct_jax.runtime.config_files import find_config, read_config

BATCH = 4


def lowered(*words: str, name: str = "imagenet_backbone_new", platform: str = "tpu"):
    config = read_config(find_config(name))
    change(config, [f"batch_size={BATCH}", *words])
    configs.check(config)
    return programs_of(config, sharding.make_mesh(), platform=platform)[0].lower()


@pytest.fixture(scope="module")
def resnet50():
    return lowered("compute_dtype=bfloat16")


def forward_operations(dim: int) -> tuple[int, int]:
    """Return the operations of ResNet-50 on an image of 224 px, and those of its first convolution.

    From the table of He et al., CVPR 2016; a multiplication and its addition are two. ``dim`` is
    the width of the last block.
    """

    def conv(side, size, inputs, outputs):
        return 2 * side * side * size * size * inputs * outputs

    first = total = conv(112, 7, 3, 64)
    inputs, side = 64, 56
    for stage, depth in enumerate((3, 4, 6, 3)):
        inner = 64 * 2**stage
        for index in range(depth):
            before = side
            side //= 2 if stage and not index else 1
            last = (stage, index) == (3, 2)
            outputs = dim if last else 4 * inner
            total += conv(before, 1, inputs, inner) + conv(side, 3, inner, inner)
            total += conv(side, 1, inner, outputs)
            if inputs != outputs:
                total += conv(side, 1, inputs, outputs)
            inputs = outputs
    return total + 2 * dim * stand_ins.SIZES["imagenet2012"].classes, first


@pytest.mark.slow(minutes=0.2)
def test_operations_of_resnet50(resnet50):
    """Training takes three times the forward pass, less the gradient for the images' own pixels."""
    published, _ = forward_operations(2048)
    assert round(published / 2e9, 1) == 4.1  # GFLOP, of one for a multiplication and its addition
    forward, first = forward_operations(128)
    expected = BATCH * (3 * forward - first)
    found = resnet50.cost_analysis()["flops"]
    # Rows of zeros around a map are not multiplied; elementwise operations come on top.
    assert 0.93 < found / expected < 1.05


@pytest.mark.slow(minutes=0.2)
def test_convolutions_are_in_bfloat16(resnet50):
    found = re.findall(r"stablehlo\.convolution.*: \((.*?)\) -> (\S+)", resnet50.as_text())
    assert len(found) == 3 * (1 + 3 * 16 + 5) - 1  # output, and gradients for kernel and input
    for inputs, output in found:
        assert all(each.endswith("xbf16>") for each in [*inputs.split(", "), output])


@pytest.mark.slow(minutes=0.2)
def test_images_arrive_as_bytes(resnet50):
    arrays = jax.tree.leaves(resnet50.in_avals)
    moved = [each for each in arrays if each.shape[:2] == (1, BATCH)]
    assert {each.dtype for each in moved if each.ndim == 5} == {jnp.dtype("uint8")}
    assert sum(each.size * each.dtype.itemsize for each in moved) < BATCH * (3 * 224 * 224 + 16)


@pytest.mark.usefixtures("flat_model")
def test_the_state_is_updated_in_place():
    step = lowered("model.name=flat", name="digits_backbone_new", platform="cpu")
    state = jax.tree.leaves(step.in_avals[0][0])
    made = step.compile()
    donated = made.as_text().partition("input_output_alias={")[2].partition("entry_computation")[0]
    assert donated.count("alias)") == len(state)
    kept = sum(each.size * each.dtype.itemsize for each in state)
    assert made.memory_analysis().alias_size_in_bytes >= kept
