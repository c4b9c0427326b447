"""Random augmentation of whole batches on the device, with the strengths of SimCLR.

Everything is a product with small matrices or arithmetic on whole arrays, so it runs inside a
compiled training step on any device, at a small fraction of the model's cost.
Source: "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020,
appendix A.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from fct_jax.data.colour import greyscale, jitter
from fct_jax.errors import UserError, unknown
from fct_jax.models.preprocessing import CROP_AREA, CROP_RATIO

_ATTEMPTS = 10
_NO_BLUR = 1e-3  # a standard deviation, in pixels, whose kernel is exactly the identity


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The random changes to an image, and their strength.

    Attributes:
      crop_area: smallest and largest share of the image's area that a crop keeps.
      rotation: largest angle in degrees, to either side; 0: none.
      jitter_strength: 1 changes brightness, contrast and saturation by up to 0.8, hue by up to
        0.2 of the circle; 0: none.
      jitter_probability: share of the images whose colours are changed.
      grey_probability: share of the images that lose their colours.
      blur_probability: share of the images that are blurred.
      blur_sigma: smallest and largest standard deviation of the Gaussian, in pixels.
    """

    crop_area: tuple[float, float] = CROP_AREA
    rotation: float = 0.0
    jitter_strength: float = 1.0
    jitter_probability: float = 0.8
    grey_probability: float = 0.2
    blur_probability: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self):
        """Check the values; raises UserError."""
        for name, most in (("crop_area", 1.0), ("blur_sigma", math.inf)):
            pair = tuple(float(value) for value in getattr(self, name))
            object.__setattr__(self, name, pair)
            if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= most:
                limit = "" if most == math.inf else f", at most {most}"
                raise UserError(
                    f"augmentation.{name} must be two ascending numbers above 0{limit}, not {pair}"
                )
        for name in ("jitter_probability", "grey_probability", "blur_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augmentation.{name} must be in [0, 1], not {getattr(self, name)}")
        if self.jitter_strength < 0:
            raise UserError(
                f"augmentation.jitter_strength must not be negative: {self.jitter_strength}"
            )
        if not 0 <= self.rotation <= 180:
            raise UserError(f"augmentation.rotation must be in [0, 180], not {self.rotation}")

    @classmethod
    def from_dict(cls, values: Mapping) -> "Augmentation":
        """Read a config section; missing keys take the default, unknown ones raise UserError."""
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise unknown("augmentation key", key, known)
        return cls(**values)


def augment(
    images: jax.Array,
    key: jax.Array,
    options: Augmentation,
    *,
    size: int,
    crop: bool = True,
    flip: bool = True,
) -> jax.Array:
    """Return one random view of each image, float32 (B, size, size, 3), grey levels 0..255.

    The changes are applied in this order: rotation, random resized crop, flip, colour jitter,
    greyscale, blur. Everything is drawn per image, except the order of the jitter's parts.

    Args:
      images: uint8 or float (B, H, W, 3), grey levels 0..255.
      key: random key for all draws.
      options: the changes and their strength.
      size: height and width of the views, in pixels.
      crop: False if the host has already cropped; the whole image is then scaled.
      flip: whether to mirror half of the images.
    """
    count, height, width = images.shape[:3]
    keys = jax.random.split(key, 8)
    x = jnp.asarray(images, jnp.float32) / 255
    if options.rotation:
        limit = math.radians(options.rotation)
        x = rotate(x, jax.random.uniform(keys[0], (count,), minval=-limit, maxval=limit))
    boxes = jnp.tile(jnp.array([0, 0, width, height]), (count, 1))
    if crop:
        boxes = random_boxes(keys[1], count, height, width, options.crop_area)
    if crop or (height, width) != (size, size):
        x = crop_and_resize(x, boxes, size)
    if flip:
        mirrored = jax.random.bernoulli(keys[2], 0.5, (count, 1, 1, 1))
        x = jnp.where(mirrored, x[:, :, ::-1], x)
    if options.jitter_strength and options.jitter_probability:
        chosen = jax.random.bernoulli(keys[3], options.jitter_probability, (count, 1, 1, 1))
        x = jnp.where(chosen, jitter(x, keys[4], options.jitter_strength), x)
    if options.grey_probability:
        chosen = jax.random.bernoulli(keys[5], options.grey_probability, (count, 1, 1, 1))
        x = jnp.where(chosen, greyscale(x), x)
    if options.blur_probability:
        chosen = jax.random.bernoulli(keys[6], options.blur_probability, (count,))
        low, high = options.blur_sigma
        sigma = jax.random.uniform(keys[7], (count,), minval=low, maxval=high)
        x = blur(x, jnp.where(chosen, sigma, _NO_BLUR))
    return jnp.clip(x, 0, 1) * 255


def pad_and_crop(x: jax.Array, key: jax.Array, pixels: int, fill: jax.Array) -> jax.Array:
    """Move x (B, H, W, C) by up to ``pixels`` to each side; bare pixels become ``fill`` (C,).

    Source: Luo et al., "Bag of Tricks and A Strong Baseline for Deep Person Re-identification",
    CVPRW 2019 (padding by 10 pixels and a random crop).
    """
    sides = ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0))
    padded = jnp.pad(x - fill, sides) + fill
    corners = jax.random.randint(key, (len(x), 2), 0, 2 * pixels + 1)

    def crop(image, corner):
        return jax.lax.dynamic_slice(image, (*corner, 0), x.shape[1:])

    return jax.vmap(crop)(padded, corners)


def erase(x: jax.Array, key: jax.Array, probability: float) -> jax.Array:
    """Put a random rectangle of zeros in a share ``probability`` of the images x (B, H, W, C).

    The rectangle's area is uniform between 2 and 40 % of the image's, its ratio of height to width
    between 0.3 and 3.3; a side longer than the image's is cut. In normalised images, zero is the
    mean colour.

    Source: Zhong et al., "Random Erasing Data Augmentation", AAAI 2020.
    """
    (count, height, width), keys = x.shape[:3], jax.random.split(key, 4)
    area = jax.random.uniform(keys[0], (count,), minval=0.02, maxval=0.4) * height * width
    ratio = jax.random.uniform(keys[1], (count,), minval=0.3, maxval=1 / 0.3)
    h = jnp.minimum(jnp.round(jnp.sqrt(area * ratio)), height)
    w = jnp.minimum(jnp.round(jnp.sqrt(area / ratio)), width)
    top, left = jax.random.uniform(keys[2], (2, count))
    top, left = jnp.floor(top * (height - h + 1)), jnp.floor(left * (width - w + 1))
    rows, columns = jnp.arange(height), jnp.arange(width)
    in_rows = (rows >= top[:, None]) & (rows < (top + h)[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + w)[:, None])
    chosen = jax.random.bernoulli(keys[3], probability, (count, 1, 1))
    inside = chosen & in_rows[:, :, None] & in_columns[:, None, :]
    return jnp.where(inside[..., None], 0.0, x)


def random_boxes(
    key: jax.Array,
    count: int,
    height: int,
    width: int,
    area: tuple[float, float] = CROP_AREA,
) -> jax.Array:
    """Return left, top, width and height of random crops in pixels, int (count, 4).

    They follow the same distribution as those that `fct_jax.models.preprocessing.random_box` draws
    on the host: the area is uniform, the ratio log-uniform, and the first of ten attempts that
    fits is taken; if none fits, the largest centred crop of an admissible ratio.
    """
    keys = jax.random.split(key, 3)
    shape, ratio = (_ATTEMPTS, count), CROP_RATIO
    share = jax.random.uniform(keys[0], shape, minval=area[0], maxval=area[1])
    logarithm = jax.random.uniform(
        keys[1], shape, minval=math.log(ratio[0]), maxval=math.log(ratio[1])
    )
    root, half = jnp.sqrt(share * height * width), jnp.exp(logarithm / 2)
    w, h = jnp.round(root * half).astype(int), jnp.round(root / half).astype(int)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = jnp.argmax(fits, 0), jnp.arange(count)
    wide = min(width, round(height * ratio[1]))  # if the image is too wide
    high = min(height, round(width / ratio[0]))  # if the image is too tall
    w = jnp.where(fits.any(0), w[first], max(wide, 1))
    h = jnp.where(fits.any(0), h[first], max(high, 1))
    place = jax.random.uniform(keys[2], (2, count))
    left, top = (
        jnp.where(fits.any(0), jnp.floor(at * (margin + 1)).astype(int), margin // 2)
        for at, margin in zip(place, (width - w, height - h), strict=True)
    )
    return jnp.stack([left, top, w, h], -1)


def crop_and_resize(x: jax.Array, boxes: jax.Array, size: int) -> jax.Array:
    """Scale the boxes (B, 4) of x (B, H, W, 3) to (B, size, size, 3), bilinear, antialiased.

    The result equals that of cropping with Pillow and resizing the crop, except that Pillow rounds
    to grey levels.
    """
    rows = _scaling(boxes[:, 1], boxes[:, 3], x.shape[1], size)
    columns = _scaling(boxes[:, 0], boxes[:, 2], x.shape[2], size)
    return _separable(x, rows, columns)


def blur(x: jax.Array, sigma: jax.Array) -> jax.Array:
    """Return the Gaussian blur of x (B, H, W, 3) with standard deviations (B,) in pixels.

    The kernel extends 5 % of the image's side in each direction, as published (23 px at 224), and
    at least one pixel; at the border it is renormalised over the pixels that exist.
    """

    def weights(length: int) -> jax.Array:
        reach = max(length // 20, 1)
        offset = jnp.arange(length)[:, None] - jnp.arange(length)
        near = jnp.abs(offset) <= reach
        exponent = -0.5 * jnp.square(offset / sigma[:, None, None])
        kernel = jnp.where(near, jnp.exp(exponent), 0.0)
        return kernel / kernel.sum(-1, keepdims=True)

    return _separable(x, weights(x.shape[1]), weights(x.shape[2]))


def rotate(x: jax.Array, angle: jax.Array) -> jax.Array:
    """Turn x (B, H, W, 3) about its centre by angles (B,) in radians, anticlockwise.

    Interpolation is bilinear; positions outside the image take the value of the nearest border
    pixel.
    """
    height, width = x.shape[1:3]
    row, column = jnp.mgrid[:height, :width]
    row, column = row - (height - 1) / 2, column - (width - 1) / 2

    def one(image, angle):
        cosine, sine = jnp.cos(angle), jnp.sin(angle)
        # The position that each pixel of the result is read from; rows count downwards.
        source_row = cosine * row + sine * column + (height - 1) / 2
        source_column = cosine * column - sine * row + (width - 1) / 2

        def channel(plane):
            return jax.scipy.ndimage.map_coordinates(
                plane, [source_row, source_column], order=1, mode="nearest"
            )

        return jax.vmap(channel, -1, -1)(image)

    return jax.vmap(one)(x, angle)


def _scaling(start: jax.Array, length: jax.Array, available: int, size: int) -> jax.Array:
    """Return weights (B, size, available) that scale pixels [start, start + length) to ``size``."""
    start, length = start[:, None, None], length[:, None, None]
    scale = length / size
    centre = start + (jnp.arange(size)[:, None] + 0.5) * scale - 0.5
    pixel = jnp.arange(available)
    weights = jnp.maximum(1 - jnp.abs(pixel - centre) / jnp.maximum(scale, 1.0), 0.0)
    weights = jnp.where((pixel >= start) & (pixel < start + length), weights, 0.0)
    return weights / weights.sum(-1, keepdims=True)


def _separable(x: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Apply rows (B, h, H) and columns (B, w, W) to x (B, H, W, 3); return (B, h, w, 3)."""
    x = jnp.einsum("bwW,bHWc->bHwc", columns, x, precision="highest")
    return jnp.einsum("bhH,bHwc->bhwc", rows, x, precision="highest")
