"""The benchmark on a GPU or TPU, of which the CPU plays the part: rates, share of peak, memory."""

import types

import pytest

from tools.speed import accelerators, backbone, common, transformation
from tools.speed.accelerators import Accelerator, accelerator, device_peak_mb


def device(kind: str, platform: str = "gpu", **stats):
    return types.SimpleNamespace(
        platform=platform, device_kind=kind, memory_stats=lambda: stats or None
    )


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("A card of tomorrow", None),
    ],
)
def test_peaks(kind, peak):
    assert accelerator(device(kind)) == Accelerator(kind, peak)


def test_no_accelerator():
    assert accelerator(device("cpu", "cpu")) is None
    assert accelerator() is None  # the tests run on CPUs


def test_shares_and_memory():
    assert Accelerator("X", 100e12).share(25e12, 0.5) == "50 % of the peak of X"
    assert Accelerator("X", None).share(25e12, 0.5) == "the peak of X is not known"
    assert device_peak_mb(device("X", peak_bytes_in_use=3e9)) == 3000
    assert device_peak_mb(device("X")) is None


@pytest.fixture
def pretended(monkeypatch):
    """Let the benchmark find an accelerator of 1 TFLOP/s where there is a CPU."""
    found = Accelerator("Pretended", 1e12)
    for module in (backbone, transformation):
        monkeypatch.setattr(module, "accelerator", lambda: found)
    return accelerators


@pytest.mark.usefixtures("pretended")
@pytest.mark.slow(minutes=0.3)
def test_backbone(monkeypatch):
    monkeypatch.setattr(backbone, "ON_ACCELERATOR", [("resnet18", 32, 4, False)])
    rows = backbone.run(quick=True)
    assert [row["name"] for row in rows] == [
        "resnet18 forward, 32 px, batch 4",
        "resnet18 step, 32 px, batch 4",
    ]
    for row in rows:
        assert "images/s" in row["note"]
        assert "% of the peak of Pretended" in row["note"]
        assert row["peak_mb"] > 0
        # PyTorch on the CPU is no baseline for a GPU.
        assert row["baseline_s"] is None
        assert "no baseline" in row["note"]


@pytest.mark.usefixtures("pretended")
@pytest.mark.slow(minutes=0.2)
def test_transformation(tmp_path):
    epoch = transformation._epoch(tmp_path, 2048)
    moved = transformation._translation(tmp_path, 4096)
    for row in (epoch, moved):
        assert "vectors/s" in row["note"]
        assert "% of the peak of Pretended" in row["note"]
        assert row.keys() == common.figure("", 1, 1, 1, "").keys()
