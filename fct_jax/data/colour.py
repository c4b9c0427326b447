"""Colour changes of whole batches of images (B, H, W, 3) in [0, 1], on the device."""

import jax
import jax.numpy as jnp

_GREY = (0.299, 0.587, 0.114)  # weights of red, green and blue (ITU-R BT.601)


def jitter(x: jax.Array, key: jax.Array, strength: float = 1.0) -> jax.Array:
    """Change brightness, contrast, saturation and hue at random, in a random order.

    The factors are uniform in [max(0, 1 - 0.8·strength), 1 + 0.8·strength] and the hue turns by up
    to ±0.2·strength of the circle; both are drawn per image. The order is drawn once per batch
    (the published code draws it per image).

    Source: SimCLR, ICML 2020, appendix A.
    """
    keys = jax.random.split(key, 5)
    low, high = max(0.0, 1 - 0.8 * strength), 1 + 0.8 * strength
    factors = [jax.random.uniform(k, x.shape[:1], minval=low, maxval=high) for k in keys[:3]]
    limit = min(0.2 * strength, 0.5)
    turn = jax.random.uniform(keys[3], x.shape[:1], minval=-limit, maxval=limit)
    changes = [
        lambda x: brightness(x, factors[0]),
        lambda x: contrast(x, factors[1]),
        lambda x: saturation(x, factors[2]),
        lambda x: hue(x, turn),
    ]
    for change in jax.random.permutation(keys[4], len(changes)):
        x = jax.lax.switch(change, changes, x)
    return x


def greyscale(x: jax.Array) -> jax.Array:
    """Return three equal channels."""
    return jnp.broadcast_to(_luminance(x), x.shape)


def brightness(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiply by ``factor`` (B,)."""
    return _blend(x, 0.0, factor)


def contrast(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiply the difference from the image's mean luminance by ``factor`` (B,)."""
    return _blend(x, _luminance(x).mean((1, 2), keepdims=True), factor)


def saturation(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiply the difference from each pixel's luminance by ``factor`` (B,)."""
    return _blend(x, _luminance(x), factor)


def hue(x: jax.Array, turn: jax.Array) -> jax.Array:
    """Turn the hue of the HSV colour by ``turn`` (B,), in circles; saturation and value stay."""
    value, least = x.max(-1), x.min(-1)
    chroma = value - least
    safe = jnp.where(chroma > 0, chroma, 1.0)
    red, green, blue = x[..., 0], x[..., 1], x[..., 2]
    sextant = jnp.where(
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sextant = sextant + 6 * turn[:, None, None]
    # Each channel is a trapezoid of the hue, shifted by a third of the circle.
    position = (sextant[..., None] + jnp.array([5.0, 3.0, 1.0])) % 6
    drop = jnp.clip(jnp.minimum(position, 4 - position), 0, 1)
    return value[..., None] - chroma[..., None] * drop


def _luminance(x: jax.Array) -> jax.Array:
    """Return the luminance (B, H, W, 1)."""
    return jnp.sum(x * jnp.asarray(_GREY), -1, keepdims=True)


def _blend(x: jax.Array, base, factor: jax.Array) -> jax.Array:
    """Go from ``base`` to x and beyond, within [0, 1]."""
    return jnp.clip(base + factor[:, None, None, None] * (x - base), 0, 1)
