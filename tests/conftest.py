"""Shared by every test: the golden arrays, and exact float32 products."""

import collections
import ctypes
import gc
import json
import os
import re
import signal
import sys
from pathlib import Path

import costs
import hypothesis
import jax
import numpy as np
import pytest
import scheduling

GOLDEN = Path(__file__).parent / "golden"

# Golden arrays are float32: no device may shorten products to bfloat16 or TF32.
jax.config.update("jax_default_matmul_precision", "highest")

# Tiny models take longer to compile than to run: compile fast, and each program only once, also for
# subprocesses, down to single operations, which files and processes repeat most often. Programs
# compiled with other flags (another instruction set) are cached separately.
_QUICK = "--xla_backend_optimization_level=0"
_given = os.environ.get("XLA_FLAGS", "").replace(_QUICK, "").split()
os.environ["XLA_FLAGS"] = " ".join([*_given, _QUICK])
_KIND = re.sub(r"[^a-zA-Z0-9_=]+", "-", " ".join(_given)).strip("-") or "usual"
COMPILED = Path(__file__).parent.parent / ".pytest_cache" / "compiled" / _KIND
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(COMPILED)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_compilation_cache_dir", str(COMPILED))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

# The same examples everywhere, however slow or busy the machine is: a failure is a change's.
hypothesis.settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--costs", type=Path, help="append what each test costs to this file")


def pytest_configure(config: pytest.Config) -> None:
    # A shell lets its background jobs, and what they start, ignore Ctrl-C, which tests send.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.pluginmanager.register(scheduling)
    if path := config.getoption("--costs"):
        config.pluginmanager.register(costs.Costs(path.absolute()), "costs")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the slowest files, so that no worker is left alone with them at the end."""
    minutes = collections.Counter()
    for item in items:
        for mark in item.iter_markers("slow"):
            minutes[item.path] += mark.kwargs.get("minutes", 0.2)
    items.sort(key=lambda item: -minutes[item.path])


# Large arrays return to the system as soon as they are freed, and few threads have their own heaps:
# glibc's thresholds, which would otherwise grow with the arrays, are fixed.
if sys.platform == "linux":
    _LIBC = ctypes.CDLL(None)
    if hasattr(_LIBC, "mallopt"):
        _MMAP_THRESHOLD, _ARENA_MAX = -3, -8
        _LIBC.mallopt(_MMAP_THRESHOLD, 4 << 20)
        _LIBC.mallopt(_ARENA_MAX, 2)


@pytest.fixture(scope="module", autouse=True)
def memory_goes_back():
    """Drop compiled programs after each file, and return freed memory to the system."""
    yield
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux" and hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)


@pytest.fixture(scope="module")
def flat_model():
    """Register a model that compiles quickly as "flat" for the tests of one file."""
    import tiny_compatible  # imports Flax, which many tests do not need

    from fct_jax import models

    models.MODELS["flat"] = (tiny_compatible.FlatModel, {})
    yield
    del models.MODELS["flat"]


class Golden:
    """The arrays and JSON files of one golden folder, read once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._arrays = {}

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        if name not in self._arrays:
            with np.load(self.folder / f"{name}.npz") as file:
                self._arrays[name] = {key: file[key] for key in file.files}
        return self._arrays[name]

    def json(self, name: str):
        return json.loads((self.folder / f"{name}.json").read_text())


@pytest.fixture(scope="session")
def golden_fct() -> Golden:
    return Golden(GOLDEN / "fct")


@pytest.fixture(scope="session")
def golden_advbct() -> Golden:
    return Golden(GOLDEN / "advbct")
