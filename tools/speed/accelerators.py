"""The accelerator that is measured, if there is one: its peak, and what a measurement reached."""

from typing import NamedTuple

import jax

from fct_jax.compiling.chips import CHIPS

# Part of a device's name -> dense bfloat16 operations a second, from the makers' data sheets; the
# first part that occurs in the name counts. Cards without bfloat16 (V100, T4) have float16's.
PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "V100": 125e12,
    "T4": 65e12,
    "TPU v4": CHIPS["v4"].flops,
    "TPU v5 lite": CHIPS["v5e"].flops,
    "TPU v5": CHIPS["v5p"].flops,
    "TPU v6 lite": CHIPS["v6e"].flops,
}


class Accelerator(NamedTuple):
    """A device that is no CPU.

    Attributes:
      name: its maker's name for it.
      peak: operations per second, or None if they are not known.
    """

    name: str
    peak: float | None

    def share(self, operations: float, seconds: float) -> str:
        """Return the share of the peak that a measurement reached, as text."""
        if self.peak is None:
            return f"the peak of {self.name} is not known"
        return f"{100 * operations / seconds / self.peak:.0f} % of the peak of {self.name}"


def accelerator(device=None) -> Accelerator | None:
    """Return the accelerator that JAX uses, or None on a CPU.

    Args:
      device: a jax.Device; None: the first one.
    """
    device = device or jax.devices()[0]
    if device.platform == "cpu":
        return None
    peaks = (peak for part, peak in PEAKS.items() if part.lower() in device.device_kind.lower())
    return Accelerator(device.device_kind, next(peaks, None))


def device_peak_mb(device=None) -> float | None:
    """Return the megabytes that a device has held at most, or None if it does not count them."""
    stats = (device or jax.devices()[0]).memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return None if peak is None else peak / 1e6
