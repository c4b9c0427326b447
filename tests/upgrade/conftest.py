"""What several tests of upgrades start from."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def text():
    """The text sample: 500 items by two sentence encoders, and queries."""
    with np.load(Path(__file__).parents[1] / "text_sample.npz") as file:
        return {name: file[name] for name in file.files}
