"""Weights files: both formats, wrapped checkpoints, and everything that can be wrong."""

import importlib
import pickle

import numpy as np
import pytest
import safetensors.numpy

from fct_jax.errors import UserError
from fct_jax.models import torch_import
from fct_jax.models.torch_files import read_state_dict

WEIGHTS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.ones(2, "f4")}


def assert_same(state):
    assert set(state) == set(WEIGHTS)
    for name, expected in WEIGHTS.items():
        np.testing.assert_array_equal(torch_import.to_numpy(state[name]), expected)


def test_safetensors_needs_no_torch(tmp_path, monkeypatch):
    safetensors.numpy.save_file(WEIGHTS, tmp_path / "w.safetensors")
    monkeypatch.setattr(importlib, "import_module", None)
    assert_same(torch_import.read_state_dict(tmp_path / "w.safetensors"))


def test_safetensors_in_bfloat16(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    tensors = {k: torch.from_numpy(v).bfloat16() for k, v in WEIGHTS.items()}
    save_file(tensors, tmp_path / "w.safetensors")
    assert_same(read_state_dict(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_pth(wrapper, tmp_path):
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(value) for name, value in WEIGHTS.items()}
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, tmp_path / "w.pth")
    assert_same(read_state_dict(str(tmp_path / "w.pth")))


def test_pth_without_torch(tmp_path, monkeypatch):
    (tmp_path / "w.pth").write_bytes(b"anything")

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match="needs PyTorch"):
        read_state_dict(tmp_path / "w.pth")


class Hostile:
    def __reduce__(self):
        return pytest.fail, ("code of the file was run",)


def test_hostile_or_damaged_files(tmp_path):
    pytest.importorskip("torch")
    with (tmp_path / "hostile.pth").open("wb") as file:
        pickle.dump({"a": Hostile()}, file, protocol=2)
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 not a checkpoint")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 20)
    (tmp_path / "text.bin").write_text("weights")
    for name in ("hostile.pth", "cut.pth", "empty.pt", "cut.safetensors", "text.bin"):
        with pytest.raises(UserError, match=f"cannot read .*{name}") as error:
            read_state_dict(tmp_path / name)
        assert "\n" not in str(error.value)


def test_no_weights_inside(tmp_path):
    torch = pytest.importorskip("torch")
    for content in ({"epoch": 3}, {}, [torch.zeros(1)]):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(UserError, match="holds no weights"):
            read_state_dict(tmp_path / "w.pth")


def test_wrong_paths(tmp_path):
    with pytest.raises(UserError, match="no weights file"):
        read_state_dict(tmp_path / "nothing.pth")
    (tmp_path / "w.onnx").write_bytes(b"")
    with pytest.raises(UserError, match=r"end in \.safetensors"):
        read_state_dict(tmp_path / "w.onnx")
