"""One and eight devices train alike; other numbers and all tasks in tools/check_devices.py."""

import pytest

from fct_jax.errors import UserError
from fct_jax.runtime import sharding
from tools import check_devices

# One task of each kind: a shared classifier; LARS and losses between samples; BatchNorm that is
# frozen half-way; old embeddings and statistics with the discriminator's BatchNorm.
TASKS = ["backbone", "simclr", "fastfill", "advbct"]
STEPS = 14  # four per epoch; FastFill freezes its BatchNorm after twelve


@pytest.fixture(scope="module")
def differences(tmp_path_factory):
    names = [*TASKS, check_devices.EMBEDDING]
    folder = tmp_path_factory.mktemp("devices")
    return check_devices.compare(["1", "8m2"], names, STEPS, folder)


@pytest.mark.slow(minutes=0.25)
@pytest.mark.multiprocess
@pytest.mark.parametrize("devices", ["8m2"])
@pytest.mark.parametrize("task", [*TASKS, check_devices.EMBEDDING])
def test_agrees_with_one_device(differences, task, devices):
    """Each step agrees, from the same seed and with the same global batch."""
    loss, arrays, worst = differences[task, devices]
    assert loss < 1e-4
    assert arrays < 1e-4, worst


def test_mesh_must_fit():
    with pytest.raises(UserError, match="data=-1, model=7 does not fit 1 devices"):
        sharding.make_mesh(model=7)
