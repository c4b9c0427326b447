"""Encoded image -> RGB array, with one kind of error for every kind of damage."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from fct_jax.errors import UserError


class UnreadableImage(UserError):
    """An image that cannot be decoded; the text names it."""


def decode(encoded: bytes | Path, name: str) -> np.ndarray:
    """Decode an image file or its bytes to RGB by Pillow.

    The EXIF orientation is ignored and transparency dropped, as torchvision's loader does.

    Args:
      encoded: the file's bytes, or its path.
      name: the image's name in error messages.

    Returns:
      uint8 (H, W, 3).

    Raises:
      UnreadableImage: the file is missing, empty, truncated or not an image.
    """
    try:
        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
            return np.asarray(_to_rgb(image))
    except Exception as error:  # Pillow's decoders raise many types for damaged files
        reason = str(error) or type(error).__name__
        if "cannot identify image file" in reason:  # the message would show a BytesIO address
            reason = "not an image, or damaged"
        raise UnreadableImage(f"cannot read image {name}: {reason}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I;16"):
        # Pillow would clip 16-bit grey levels at 255; the picture is in the upper 8 bits.
        grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # without this step Pillow warns; the colours are the same
    return image.convert("RGB")
