"""A folder of images that cannot all be read."""

import pytest
from tiny_data import write_folder


@pytest.fixture
def damaged(tmp_path):
    write_folder(tmp_path, train=10)
    for name in ("0/3", "1/0", "1/1"):
        (tmp_path / "training" / f"{name}.png").write_bytes(b"damaged")
    return tmp_path
