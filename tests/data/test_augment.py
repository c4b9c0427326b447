"""Augmentation on the device against Pillow, colorsys and loops; what is drawn, and how often."""

import colorsys
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fct_jax.data import colour
from fct_jax.data.augment import (
    Augmentation,
    augment,
    blur,
    crop_and_resize,
    erase,
    pad_and_crop,
    random_boxes,
    rotate,
)
from fct_jax.errors import UserError
from fct_jax.models.preprocessing import random_box

NOTHING = Augmentation(
    jitter_strength=0.0, jitter_probability=0.0, grey_probability=0.0, blur_probability=0.0
)
draw_boxes = jax.jit(random_boxes, static_argnums=(1, 2, 3, 4))


def pictures(count=3, height=12, width=15, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


@pytest.mark.parametrize("size", [5, 8, 24])
def test_crops_are_pillows(size):
    """Images smaller and larger than the crop agree up to the grey levels that Pillow rounds to."""
    images = pictures()
    boxes = np.array([[0, 0, 15, 12], [3, 2, 7, 9], [14, 11, 1, 1]])
    found = jax.jit(crop_and_resize, static_argnums=2)(images.astype(np.float32), boxes, size)
    for image, (left, top, w, h), made in zip(images, boxes, found, strict=True):
        picture = Image.fromarray(image).crop((left, top, left + w, top + h))
        expected = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
        np.testing.assert_allclose(made, expected, atol=1.01)


@pytest.mark.parametrize("height, width", [(12, 15), (200, 100), (8, 8)])
def test_boxes_are_drawn_as_on_the_host(height, width):
    area = (0.25, 0.75)
    boxes = np.asarray(draw_boxes(jax.random.key(0), 4000, height, width, area))
    left, top, w, h = boxes.T
    assert (left >= 0).all() and (top >= 0).all()
    assert (left + w <= width).all() and (top + h <= height).all()
    rng = np.random.default_rng(0)
    host = np.array([random_box(width, height, rng, area) for _ in range(4000)])
    host[:, 2:] -= host[:, :2]
    for column in range(4):
        spread = host[:, column].std() + 0.1
        assert abs(boxes[:, column].mean() - host[:, column].mean()) < 0.1 * spread
        assert abs(boxes[:, column].std() - host[:, column].std()) < 0.1 * spread


def test_boxes_fall_back_to_the_centre():
    key = jax.random.key(1)
    assert draw_boxes(key, 2, 1000, 6, (0.08, 1.0)).tolist() == [[0, 496, 6, 8]] * 2
    assert draw_boxes(key, 2, 6, 1000, (0.08, 1.0)).tolist() == [[496, 0, 8, 6]] * 2
    assert draw_boxes(key, 1, 1, 1, (0.08, 1.0)).tolist() == [[0, 0, 1, 1]]


def test_hue_is_that_of_hsv():
    x = np.random.default_rng(0).random((2, 3, 4, 3)).astype(np.float32)
    x[0, 0] = [[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1, 0, 0]]
    turn = np.array([0.3, -0.45], np.float32)
    found = colour.hue(jnp.asarray(x), jnp.asarray(turn))
    for index in np.ndindex(2, 3, 4):
        h, s, v = colorsys.rgb_to_hsv(*x[index].tolist())
        expected = colorsys.hsv_to_rgb((h + turn[index[0]]) % 1, s, v)
        np.testing.assert_allclose(found[index], expected, atol=2e-6)


def test_brightness_contrast_saturation_and_grey_written_out():
    x = np.random.default_rng(1).random((2, 3, 4, 3)).astype(np.float32)
    factors = np.array([0.3, 1.7], np.float32)
    grey = 0.299 * x[..., 0] + 0.587 * x[..., 1] + 0.114 * x[..., 2]
    given = jnp.asarray(x), jnp.asarray(factors)
    for i, factor in enumerate(factors):
        mean = np.full_like(x[i], grey[i].mean())
        pixel = np.repeat(grey[i][..., None], 3, -1)
        for function, base in (
            (colour.brightness, 0 * mean),
            (colour.contrast, mean),
            (colour.saturation, pixel),
        ):
            expected = np.clip(factor * x[i] + (1 - factor) * base, 0, 1)
            np.testing.assert_allclose(function(*given)[i], expected, atol=1e-6)
        np.testing.assert_allclose(colour.greyscale(given[0])[i], pixel, atol=1e-6)


def test_jitter_differs_by_image_and_strength_zero_leaves_it():
    x = jnp.tile(jnp.asarray(pictures(1) / 255, jnp.float32), (5, 1, 1, 1))
    made = np.asarray(jax.jit(colour.jitter)(x, jax.random.key(0)))
    assert len(np.unique(made.reshape(5, -1), axis=0)) == 5
    np.testing.assert_allclose(colour.jitter(x, jax.random.key(0), 0.0), x, atol=1e-5)


def test_blur_written_out():
    x = np.random.default_rng(2).random((2, 45, 41, 3)).astype(np.float32)  # reaches 2 pixels
    sigma = [0.7, 1.9]
    found = blur(jnp.asarray(x), jnp.asarray(sigma))
    for image, row, column in ((0, 20, 20), (1, 0, 40), (1, 44, 1)):
        total, weight = np.zeros(3), 0.0
        for r in range(max(row - 2, 0), min(row + 3, 45)):
            for c in range(max(column - 2, 0), min(column + 3, 41)):
                square = (r - row) ** 2 + (c - column) ** 2
                w = math.exp(-square / 2 / sigma[image] ** 2)
                total, weight = total + w * x[image, r, c], weight + w
        np.testing.assert_allclose(found[image, row, column], total / weight, rtol=1e-5)


def test_rotation():
    x = jnp.asarray(pictures(2, 9, 9), jnp.float32)
    turned = rotate(x, jnp.array([math.pi / 2, 0.0]))
    np.testing.assert_allclose(turned[0], np.rot90(x[0]), atol=0.01)
    np.testing.assert_allclose(turned[1], x[1], atol=0.01)
    even = jnp.asarray(pictures(1, 4, 4), jnp.float32)
    np.testing.assert_allclose(
        rotate(even, jnp.array([math.pi]))[0], even[0, ::-1, ::-1], atol=0.01
    )


def test_nothing_leaves_the_image():
    images = pictures(3, 8, 8)
    found = augment(images, jax.random.key(0), NOTHING, size=8, crop=False, flip=False)
    np.testing.assert_allclose(found, images, atol=1e-4)


def test_flip_mirrors_half_of_the_images():
    images = np.tile(pictures(1, 8, 8), (400, 1, 1, 1))
    found = augment(images, jax.random.key(0), NOTHING, size=8, crop=False)
    mirrored = np.isclose(found, images[:, :, ::-1], atol=1e-3).all((1, 2, 3))
    same = np.isclose(found, images, atol=1e-3).all((1, 2, 3))
    assert (mirrored ^ same).all() and 150 < mirrored.sum() < 250


@pytest.mark.parametrize(
    "change",
    [
        {"jitter_strength": 1.0, "jitter_probability": 0.25},
        {"grey_probability": 0.25},
        {"blur_probability": 0.25, "blur_sigma": (0.5, 2.0)},
    ],
)
def test_probabilities(change):
    images = pictures(400, 8, 8)
    options = dataclasses.replace(NOTHING, **change)
    found = augment(images, jax.random.key(0), options, size=8, crop=False, flip=False)
    changed = np.abs(np.asarray(found) - images).max((1, 2, 3)) > 0.5
    assert 65 < changed.sum() < 140


@pytest.mark.slow
@pytest.mark.parametrize("size, shape", [(8, (8, 8)), (16, (8, 8)), (8, (30, 20)), (1, (1, 1))])
def test_views(size, shape):
    """Views of any size are in range, depend on the key, and differ between images."""
    images = np.tile(pictures(1, *shape), (4, 1, 1, 1))
    options = Augmentation(rotation=20.0)
    run = jax.jit(lambda images, key: augment(images, key, options, size=size))
    views = run(images, jax.random.key(0))
    assert views.shape == (4, size, size, 3) and views.dtype == jnp.float32
    assert np.isfinite(views).all() and views.min() >= 0 and views.max() <= 255
    np.testing.assert_array_equal(views, run(images, jax.random.key(0)))
    assert not np.allclose(views, run(images, jax.random.key(1)))
    assert len(np.unique(np.asarray(views).reshape(4, -1), axis=0)) > 1


@pytest.mark.parametrize(
    "values, message",
    [
        ({"crop_aera": (0.1, 1.0)}, "did you mean 'crop_area'"),
        ({"crop_area": (0.0, 1.0)}, "crop_area must be two ascending numbers"),
        ({"crop_area": (0.5, 1.5)}, "at most 1.0"),
        ({"crop_area": (0.5,)}, "two ascending"),
        ({"blur_sigma": (2.0, 1.0)}, "blur_sigma"),
        ({"blur_probability": 1.5}, r"blur_probability must be in \[0, 1\]"),
        ({"jitter_strength": -1.0}, "jitter_strength"),
        ({"rotation": 270.0}, "rotation"),
    ],
)
def test_mistakes(values, message):
    with pytest.raises(UserError, match=message):
        Augmentation.from_dict(values)


def test_pad_and_crop_against_a_loop():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(40, 6, 5, 3)), jnp.float32)
    fill = jnp.array([-1.0, 0.5, 2.0])
    moved = jax.jit(pad_and_crop, static_argnums=2)(x, jax.random.key(0), 2, fill)
    seen = set()
    for image, found in zip(np.asarray(x), np.asarray(moved), strict=True):
        padded = np.tile(np.asarray(fill), (10, 9, 1))
        padded[2:8, 2:7] = image
        matches = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if np.allclose(padded[top : top + 6, left : left + 5], found, atol=1e-6)
        ]
        assert len(matches) == 1
        seen |= set(matches)
    assert {top for top, _ in seen} == {left for _, left in seen} == set(range(5))


def test_erased_rectangles():
    """The chosen images have one rectangle of zeros; its area, shape and frequency are right."""
    x = jnp.ones((400, 40, 20, 3))
    for probability, least, most in ((0.0, 0, 0), (0.5, 160, 240), (1.0, 400, 400)):
        found = np.asarray(jax.jit(erase)(x, jax.random.key(1), probability))
        gone = found == 0
        assert (gone.all(-1) == gone.any(-1)).all() and set(np.unique(found)) <= {0, 1}
        chosen = gone.any((1, 2, 3))
        assert least <= chosen.sum() <= most
    shares = []
    for mask in gone[..., 0]:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert mask.sum() == height * width  # it is a rectangle
        shares.append(mask.mean())
    assert min(shares) > 0.01 and max(shares) <= 0.42 and np.std(shares) > 0.05
    assert gone[..., 0].any(0).all()  # rectangles occur everywhere
