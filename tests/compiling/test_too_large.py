"""A program that the compiler rejects as too large is told with its size."""

from types import SimpleNamespace

import pytest

from fct_jax.compiling.compiling import _too_large
from fct_jax.errors import UserError

PROGRAM = SimpleNamespace(name="training step", items=8, unit="images", of=8)


@pytest.mark.parametrize(
    "said",
    [
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Used 20.5G of 15.75G hbm. Exceeded",
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (20.5G) exceeds available HBM (15.75G).",
    ],
)
def test_both_messages_of_the_compiler(said):
    found = _too_large(PROGRAM, 4, said)
    assert found.memory == 20.5 * 2**30 and not found.fits


def test_another_failure_is_one_line():
    with pytest.raises(UserError, match="training step cannot be compiled: INTERNAL: no"):
        _too_large(PROGRAM, 4, "INTERNAL: no\nmore lines")
