"""Host and device give the same images; crops follow torchvision's rules."""

import json
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fct_jax.data import Preprocessing
from fct_jax.errors import UserError
from fct_jax.models.preprocessing import random_box

# Normalisation that leaves grey levels as they are.
PLAIN = {"mean": (0, 0, 0), "std": (1 / 255,) * 3}


def image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_dict_and_back():
    settings_ = Preprocessing(64, 72, "random_resized", False, (0, 0.5, 1), (1, 2, 3))
    assert Preprocessing.from_dict(json.loads(json.dumps(settings_.to_dict()))) == settings_
    assert Preprocessing.from_dict({}) == Preprocessing()
    assert hash(settings_) == hash(Preprocessing.from_dict(settings_.to_dict()))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_crop": "random"}, "unknown train_crop 'random'; .*random_resized"),
        ({"size": 0}, "at least 1"),
        ({"size": 224, "resize": 200}, "nearest right value is 224"),
        ({"mean": (0.5,)}, "mean needs 3 values"),
        ({"std": (1, 0, 1)}, "std must be above 0"),
        ({"sizes": 3}, "unknown preprocessing key 'sizes'; did you mean 'size'"),
    ],
)
def test_bad_values(values, message):
    with pytest.raises(UserError, match=message):
        Preprocessing.from_dict(values)


def test_squash_is_pillows():
    x = image(37, 61)
    wanted = Image.fromarray(x).resize((24, 24), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(Preprocessing(size=24).on_host(x), np.asarray(wanted))


@pytest.mark.parametrize(
    ("height", "width", "scaled"),
    [(64, 48, (42, 32)), (48, 64, (32, 42)), (40, 40, (32, 32)), (33, 101, (32, 97))],
)
def test_shorter_side_and_centre_crop(height, width, scaled):
    x = image(height, width)
    got = Preprocessing(size=25, resize=32).on_host(x)
    whole = np.asarray(Image.fromarray(x).resize((scaled[1], scaled[0]), Image.Resampling.BILINEAR))
    top, left = round((scaled[0] - 25) / 2), round((scaled[1] - 25) / 2)
    np.testing.assert_array_equal(got, whole[top : top + 25, left : left + 25])


@pytest.mark.parametrize(
    ("height", "width", "size", "resize"),
    [
        (8, 8, 32, None),  # enlarged
        (32, 32, 33, None),
        (64, 48, 32, None),  # reduced, squashed
        (37, 61, 24, None),
        (50, 90, 40, 47),  # centre crop
        (90, 50, 41, 41),
        (1, 1, 5, None),
        (2, 7, 1, 3),
        (12, 12, 12, None),
    ],
)
def test_device_agrees_with_host(height, width, size, resize):
    settings_ = Preprocessing(size=size, resize=resize, **PLAIN)
    noise = image(height, width)
    edges = np.where(image(height, width, 1) > 127, 255, 0).astype(np.uint8)
    x = np.stack([noise, edges])
    host = np.stack([settings_.on_host(one) for one in x]).astype(np.float32)
    device = np.asarray(jax.jit(settings_.on_device)(x))
    assert device.shape == (2, size, size, 3) and device.dtype == np.float32
    # Rounding rarely differs, and then by one grey level.
    np.testing.assert_allclose(device, host, atol=1.001)
    assert np.mean(np.abs(device - host) > 0.01) < 0.05


def test_flip_and_normalisation():
    settings_ = Preprocessing(size=5)
    x = np.stack([image(5, 5, seed) for seed in range(4)])
    flip = np.array([False, True, True, False])
    got = np.asarray(jax.jit(settings_.on_device)(x, flip))
    for one, mirrored, result in zip(x, flip, got, strict=True):
        wanted = one[:, ::-1] if mirrored else one
        for channel in range(3):
            grey = (wanted[..., channel] / 255 - settings_.mean[channel]) / settings_.std[channel]
            np.testing.assert_allclose(result[..., channel], grey, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(settings_.on_device(x), settings_.on_device(x, np.zeros(4, bool)))
    np.testing.assert_allclose(
        settings_.on_device(x.astype(np.float32)), settings_.on_device(x), atol=1e-6
    )


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 10**6))
def test_random_box_is_inside_and_of_admissible_shape(width, height, seed):
    left, top, right, bottom = random_box(width, height, np.random.default_rng(seed))
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    w, h = right - left, bottom - top
    # Rounding to whole pixels changes the ratio by up to half a pixel per side.
    assert (w + 0.5) / max(h - 0.5, 0.1) >= 3 / 4 or h == 1
    assert (w - 0.5) / (h + 0.5) <= 4 / 3 or w == 1
    if min(width, height) > 20 and 3 / 4 <= width / height <= 4 / 3:
        assert 0.07 <= w * h / (width * height) <= 1


def test_random_box_falls_back_to_the_centre():
    # If the image is so narrow that no attempt fits: the largest centred crop of ratio 3:4 or 4:3.
    assert random_box(6, 1000, np.random.default_rng(0)) == (0, 496, 6, 504)
    assert random_box(1000, 6, np.random.default_rng(0)) == (496, 0, 504, 6)


def test_random_box_distribution():
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(400, 400, rng) for _ in range(3000)])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    # Small areas always fit, so below 0.75 the area is uniform, as it was drawn.
    area = w * h / 160_000
    assert abs(np.mean(area[area < 0.7]) - (0.08 + 0.7) / 2) < 0.02
    small = area < 0.5
    assert abs(np.mean(np.log(w / h)[small])) < 0.02
    assert abs(np.std(np.log(w / h)[small]) - 2 * math.log(4 / 3) / math.sqrt(12)) < 0.01
    # The position is uniform over the remaining range.
    assert abs(np.mean((boxes[:, 0] / (400 - w + 1e-9))[small]) - 0.5) < 0.03
    assert abs(np.mean((boxes[:, 1] / (400 - h + 1e-9))[small]) - 0.5) < 0.03


def test_random_crop_is_the_box_resized():
    settings_ = Preprocessing(size=16, resize=20, train_crop="random_resized")
    x = image(50, 40)
    box = random_box(40, 50, np.random.default_rng(7))
    wanted = Image.fromarray(x).crop(box).resize((16, 16), Image.Resampling.BILINEAR)
    got = settings_.on_host(x, np.random.default_rng(7))
    np.testing.assert_array_equal(got, np.asarray(wanted))
    # Without random numbers or train_crop, the crop is fixed.
    fixed = Preprocessing(size=16, resize=20).on_host(x)
    np.testing.assert_array_equal(settings_.on_host(x), fixed)
    again = Preprocessing(size=16, resize=20).on_host(x, np.random.default_rng(7))
    np.testing.assert_array_equal(again, fixed)


def test_needs_host():
    squash, crop = Preprocessing(size=8), Preprocessing(size=8, resize=9)
    assert not squash.needs_host((8, 8)) and not squash.needs_host((32, 20))
    assert squash.needs_host(None) and crop.needs_host((8, 8))
    assert squash.needs_host((8, 8), random_crop=True)
    # Large images are reduced before they are sent.
    assert squash.needs_host((65, 64)) and not Preprocessing(size=65).needs_host((65, 64))
