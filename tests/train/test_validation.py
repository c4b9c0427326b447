"""Validation batches hold every image once, in order; rows without an image do not count."""

import numpy as np
import pytest
import tiny_data
import tiny_runs

from fct_jax import data
from fct_jax.errors import UserError
from fct_jax.runtime import sharding
from fct_jax.train.image_batches import preprocessing_of
from fct_jax.train.validation import NOTHING, validation_batches


def batches_of(folder, batch_size, on_error="raise"):
    """Return all labels and images, batch after batch."""
    config = tiny_runs.backbone(
        data__name="folder",
        data__dir=str(folder),
        data__on_error=on_error,
        data__classes="",
        batch_size=batch_size,
    )
    source = data.open_source(config.data, "validation")
    made = validation_batches(
        source, preprocessing_of(config.preprocessing), config, sharding.make_mesh()
    )
    images, labels = zip(*made, strict=True)
    assert {len(batch) for batch in (*images, *labels)} == {batch_size}
    return source, np.concatenate(images), np.concatenate(labels)


@pytest.fixture
def folder(tmp_path):
    """Write twelve validation images of four classes."""
    return tiny_data.write_folder(tmp_path, size=(8, 8))


@pytest.mark.parametrize("batch_size", [5, 12, 30])
def test_every_image_once(folder, batch_size):
    source, images, labels = batches_of(folder, batch_size)
    there = labels != NOTHING
    assert there[: len(source)].all() and not there[len(source) :].any()
    np.testing.assert_array_equal(labels[there], source.labels)
    expected = np.stack([source[i]["image"] for i in range(len(source))])
    np.testing.assert_array_equal(images[there], expected)


@pytest.mark.parametrize("place", [0, 4, 11])
def test_unreadable_images_do_not_count(folder, place):
    """This also holds at the end, where the last image fills up the batch."""
    whole, _, _ = batches_of(folder, 5)
    file = sorted((folder / "validation").glob("*/*.png"))[place]
    file.write_bytes(b"no image")
    source, _, labels = batches_of(folder, 5, on_error="skip")
    expected = np.full(15, NOTHING)
    expected[: len(source)] = whole.labels
    gone = np.flatnonzero(labels[: len(source)] != whole.labels)
    assert len(gone) == 1 and labels[gone[0]] == NOTHING
    expected[gone[0]] = NOTHING
    np.testing.assert_array_equal(labels, expected)


def test_batch_without_a_readable_image(folder):
    for file in (folder / "validation" / "0").iterdir():
        file.write_bytes(b"no image")
    _, _, labels = batches_of(folder, 3, on_error="skip")
    assert (labels == NOTHING).sum() == 3


def test_unreadable_image_is_named(folder):
    file = next((folder / "validation" / "0").iterdir())
    file.write_bytes(b"no image")
    with pytest.raises(UserError, match=file.name):
        batches_of(folder, 5)
