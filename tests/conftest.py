"""What every test needs: where the golden arrays are, and exact float32 products."""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

GOLDEN = Path(__file__).parent / "golden"

# Golden arrays are float32: no device may shorten products to bfloat16 or TF32.
jax.config.update("jax_default_matmul_precision", "highest")

# Many tests train the same tiny model: each program is compiled once, for subprocesses too.
COMPILED = Path(__file__).parent.parent / ".pytest_cache" / "compiled"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(COMPILED)
jax.config.update("jax_compilation_cache_dir", str(COMPILED))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


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
