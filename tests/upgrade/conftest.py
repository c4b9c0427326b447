"""Fixtures that several tests of upgrades share."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def text():
    """Return the text sample: 500 items by two sentence encoders, and queries."""
    with np.load(Path(__file__).parents[1] / "text_sample.npz") as file:
        return {name: file[name] for name in file.files}
