"""PyTorch weights in and out: equal after the round trip, clear about what does not fit."""

import numpy as np
import pytest
from rule_weights import rule_weights

from fct_jax.errors import UserError
from fct_jax.models import torch_import


@pytest.fixture(scope="module")
def resnet18(golden_fct):
    return rule_weights(golden_fct.json("resnet_ResNet18")["state_dict"])


def assert_same(left, right):
    assert list(left) == list(right)
    for name, array in right.items():
        assert left[name].dtype == array.dtype and left[name].flags.c_contiguous
        np.testing.assert_array_equal(left[name], array)


@pytest.mark.parametrize("file", ["resnet_ResNet18", "resnet_ResNet50"])
def test_resnet_round_trip(file, golden_fct):
    state = rule_weights(golden_fct.json(file)["state_dict"])
    assert_same(torch_import.resnet_to_torch(torch_import.resnet(state)), state)


@pytest.mark.parametrize("kind", ["plain", "sigma1"])
def test_transformation_round_trip(kind, golden_fct):
    prefix = f"{kind}/state/"
    arrays = golden_fct.arrays("transformation")
    state = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    back = torch_import.transformation_to_torch(torch_import.transformation(state))
    assert_same(back, state)


def test_layout_of_kernels(resnet18):
    params = torch_import.resnet(resnet18)["params"]
    kernel = params["layer2_0"]["conv1"]["kernel"]
    assert kernel[0, 2, 5, 7] == resnet18["layer2.0.conv1.weight"][7, 5, 0, 2]
    assert params["classifier"]["kernel"][3, 4] == resnet18["fc.weight"][4, 3, 0, 0]
    assert "downsample_conv" not in params["layer1_0"]


def test_accepted_spellings(resnet18):
    """A DataParallel prefix, no counters, a two-axis classifier and PyTorch tensors are read."""
    torch = pytest.importorskip("torch")
    expected = torch_import.resnet(resnet18)
    spelled = {
        f"module.{name}": torch.from_numpy(np.array(value))
        for name, value in resnet18.items()
        if not name.endswith("num_batches_tracked")
    }
    spelled["module.fc.weight"] = spelled["module.fc.weight"][:, :, 0, 0].requires_grad_()
    got = torch_import.resnet(spelled)
    assert_same(torch_import.resnet_to_torch(got), torch_import.resnet_to_torch(expected))


def test_all_wrong_names_in_one_line(resnet18):
    state = dict(resnet18)
    del state["layer1.0.bn1.weight"], state["conv1.weight"]
    state["fc.bias"] = np.zeros(100)
    state["extra"] = np.zeros(1)
    with pytest.raises(UserError) as error:
        torch_import.resnet(state)
    message = str(error.value)
    assert "missing conv1.weight, layer1.0.bn1.weight" in message
    assert "unknown extra, fc.bias" in message
    assert "\n" not in message


@pytest.mark.parametrize("prefix", ["layer4.1.", "layer4.1.downsample.", "fc.", "layer3."])
def test_missing_parts_are_noticed(prefix, resnet18):
    state = {k: v for k, v in resnet18.items() if not k.startswith(prefix)}
    with pytest.raises(UserError, match=f"missing {prefix}"):
        torch_import.resnet(state)


def test_wrong_ranks(resnet18):
    for name, shape in (("conv1.weight", (64, 3)), ("fc.weight", (9, 128, 3, 3)), ("bn1.bias", ())):
        with pytest.raises(UserError, match=name):
            torch_import.resnet({**resnet18, name: np.zeros(shape)})


def test_other_models_weights_are_refused(resnet18):
    with pytest.raises(UserError, match="transformation weights do not fit"):
        torch_import.transformation(resnet18)
    with pytest.raises(UserError, match="ResNet weights do not fit"):
        torch_import.resnet({})
    with pytest.raises(UserError, match="unknown params/extra"):
        variables = torch_import.resnet(resnet18)
        variables["params"]["extra"] = np.zeros(1)
        torch_import.resnet_to_torch(variables)
