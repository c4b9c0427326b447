"""Preprocessing: an image of any size becomes the model's input, on the host or on the device."""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from fct_jax.errors import UserError, unknown

TRAIN_CROPS = ("none", "random_resized")
CROP_AREA = (0.08, 1.0)  # share of the image's area
CROP_RATIO = (3 / 4, 4 / 3)  # width : height
_ATTEMPTS = 10
_SMALL = 64  # pixels


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The steps from an image to the model's input; stored with the model.

    Images are resized and cropped either *on the host* (`on_host`, by Pillow, from any size) or, if
    they share one small size, *on the device* (`on_device`); flip and normalisation are always on
    the device. Both give the same image to within two grey levels.

    Attributes:
      size: height and width of the input, in pixels.
      width: width of the input in pixels if it is not square (for upright persons, say); ``size``
        is then the height. 0: equal to ``size``.
      resize: None squashes the image to the input's shape; a number is the length in pixels to
        which the shorter side is scaled before the centre is cropped.
      train_crop: "none", or "random_resized" (Inception-style crop in training).
      flip: random horizontal flip in training.
      mean, std: per channel, of values in [0, 1]. The defaults are ImageNet's.
    """

    size: int = 224
    resize: int | None = None
    train_crop: str = "none"
    flip: bool = True
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    width: int = 0

    def __post_init__(self):
        """Check the values; raises UserError."""
        if self.train_crop not in TRAIN_CROPS:
            raise unknown("train_crop", self.train_crop, TRAIN_CROPS)
        if self.size < 1:
            raise UserError(f"image size must be at least 1, not {self.size}")
        if self.width < 0:
            raise UserError(f"image width must be at least 1, or 0 for a square; not {self.width}")
        largest = max(self.shape)
        if self.resize is not None and self.resize < largest:
            raise UserError(
                f"resize={self.resize} is smaller than the crop, size={largest}; "
                f"the nearest right value is {largest}, or None to squash"
            )
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            if len(values) != 3:
                raise UserError(f"{name} needs 3 values (red, green, blue), not {len(values)}")
            object.__setattr__(self, name, values)
        if min(self.std) <= 0:
            raise UserError(f"std must be above 0, not {self.std}")

    @property
    def shape(self) -> tuple[int, int]:
        """Return the (height, width) of the input, in pixels."""
        return self.size, self.width or self.size

    def to_dict(self) -> dict:
        """Return the settings in a form that JSON can hold."""
        return dataclasses.asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping) -> "Preprocessing":
        """Invert `to_dict`; missing keys take the default, unknown ones raise UserError."""
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise unknown("preprocessing key", key, known)
        return cls(**values)

    def needs_host(self, image_size: tuple[int, int] | None, *, random_crop: bool = False) -> bool:
        """Return whether images of this size go through `on_host`; others are sent unchanged.

        Images are sent unchanged if they all have one size, are squashed, and are no larger than
        the input or 64×64 pixels, so that resizing them on the host would save little.

        Args:
          image_size: (H, W) that all images share, or None (`Source.image_size`).
          random_crop: whether this is training (or an augmented view) with random crops.
        """
        if random_crop or self.resize is not None or image_size is None:
            return True
        height, width = image_size
        return height * width > max(self.shape[0] * self.shape[1], _SMALL**2)

    def on_host(
        self,
        image: np.ndarray,
        rng: np.random.Generator | None = None,
        area: tuple[float, float] = CROP_AREA,
    ) -> np.ndarray:
        """Resize and crop by Pillow's antialiased bilinear filter, as torchvision does.

        Args:
          image: uint8 (H, W, 3).
          rng: draws the random crop if ``train_crop="random_resized"``; None: the fixed crop.
          area: smallest and largest share of the image that a random crop keeps.

        Returns:
          uint8 (*shape, 3).
        """
        picture = Image.fromarray(image)
        if rng is not None and self.train_crop == "random_resized":
            picture = picture.crop(random_box(picture.width, picture.height, rng, area))
            return self._scaled(picture, *self.shape)
        if self.resize is None:
            return self._scaled(picture, *self.shape)
        height, width = _shorter_side(picture.height, picture.width, self.resize)
        return np.ascontiguousarray(self._scaled(picture, height, width)[self._crop(height, width)])

    @staticmethod
    def _scaled(picture: Image.Image, height: int, width: int) -> np.ndarray:
        return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))

    def _crop(self, height: int, width: int) -> tuple[slice, slice]:
        """Return the slices of the centre crop of a scaled image."""
        top, left = _centre(height, self.shape[0]), _centre(width, self.shape[1])
        return slice(top, top + self.shape[0]), slice(left, left + self.shape[1])

    def on_device(self, images: jax.Array, flip: jax.Array | None = None) -> jax.Array:
        """Resize (unless the size is right already), flip and normalise; for use under jit.

        Args:
          images: uint8 or float (B, H, W, 3), grey levels 0..255. Images of exactly the input's
            shape are neither resized nor cropped; others get the fixed resize and crop.
          flip: bool (B,), True for images to mirror; None: none.

        Returns:
          float32 (B, *shape, 3).
        """
        x = jnp.asarray(images, jnp.float32)
        height, width = x.shape[1:3]
        if (height, width) != self.shape:
            if self.resize is not None:
                height, width = _shorter_side(height, width, self.resize)
            else:
                height, width = self.shape
            x = _bilinear(x, height, width)
            x = x[:, *self._crop(height, width)]
        if flip is not None:
            x = jnp.where(flip[:, None, None, None], x[:, :, ::-1], x)
        mean, std = jnp.asarray(self.mean), jnp.asarray(self.std)
        return (x / 255 - mean) / std


def _bilinear(x: jax.Array, height: int, width: int) -> jax.Array:
    """Resize with antialiasing as Pillow does: width first, rounding to grey levels each time."""
    for shape in ((x.shape[0], x.shape[1], width, 3), (x.shape[0], height, width, 3)):
        if x.shape != shape:
            x = jnp.floor(jax.image.resize(x, shape, "bilinear", antialias=True) + 0.5)
    return x


def _shorter_side(height: int, width: int, target: int) -> tuple[int, int]:
    """Return the size with the shorter side at ``target`` and the longer one rounded down."""
    if height <= width:
        return target, int(target * width / height)
    return int(target * height / width), target


def _centre(length: int, size: int) -> int:
    return round((length - size) / 2)


def random_box(
    width: int, height: int, rng: np.random.Generator, area: tuple[float, float] = CROP_AREA
) -> tuple[int, int, int, int]:
    """Return a crop of random area and shape: (left, top, right, bottom) in pixels.

    ``area`` is its smallest and largest share of the image (published: 8 % to 100 %); the ratio is
    log-uniform from 3:4 to 4:3. After ten attempts that do not fit, the largest centred crop of an
    admissible ratio is returned (Szegedy et al., CVPR 2015; as in torchvision).
    """
    for _ in range(_ATTEMPTS):
        pixels = width * height * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(rng.integers(0, width - w + 1))
            top = int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < CROP_RATIO[0]:
        h = min(height, round(width / CROP_RATIO[0]))
    elif width / height > CROP_RATIO[1]:
        w = min(width, round(height * CROP_RATIO[1]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
