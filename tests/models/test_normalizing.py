"""Pooling before normalising, and normalised 1×1 convolutions, against plain float64 formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fct_jax.models.batch_norm import BatchNorm
from fct_jax.models.normalized_product import normalized_product
from fct_jax.models.pooling import max_pool
from fct_jax.runtime import sharding

EPS = 1e-5
HALF = 2.0**-8  # largest relative error of rounding to bfloat16
SUM = 1e-5  # rounding of a sum in float32, relative to the sum of magnitudes


@jax.jit
def found(x, kernel, scale, bias, cotangent):
    y, pullback, moments = jax.vjp(
        lambda *a: (lambda y, *m: (y, m))(*normalized_product(*a, EPS)),
        *(x, kernel, scale, bias),
        has_aux=True,
    )
    return y, moments, pullback(cotangent)


def case(images: int, offset: float, seed: int = 0):
    """Return inputs as of a ReLU, a kernel (6, 20), parameters and a gradient."""
    rng = np.random.default_rng(seed)
    x = jnp.asarray(np.maximum(rng.normal(size=(images, 5, 3, 6)) + offset, 0), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(6, 20)), jnp.bfloat16).astype(jnp.float32)
    scale, bias = rng.normal(size=(2, 20)).astype(np.float32)
    cotangent = jnp.asarray(rng.normal(size=(images, 5, 3, 20)), jnp.bfloat16)
    return x, kernel, scale, bias, cotangent.astype(jnp.float32)


def close(ours, expected, magnitudes, roundings: int):
    """Assert that a sum is right but for so many roundings of its terms to bfloat16."""
    bound = (roundings * HALF + SUM) * magnitudes
    assert (np.abs(np.asarray(ours, np.float64) - expected) <= bound).all()


def check(images: int, offset: float, parts: int = 1):
    inputs = case(images, offset)
    y, (mean, var), (by_x, by_kernel, by_scale, by_bias) = found(*inputs)

    x, kernel, scale, bias, gradient = (np.asarray(each, np.float64) for each in inputs)
    x, gradient = x.reshape(-1, 6), gradient.reshape(-1, 20)
    product = x @ kernel
    size = np.abs(x) @ np.abs(kernel)
    centred = product - product.mean(0)
    inverse = 1 / np.sqrt(product.var(0) + EPS)
    factor, normal = scale * inverse, centred * inverse
    close(mean, product.mean(0), size.mean(0), 0)
    close(var, product.var(0), np.square(size).mean(0), 0)
    # The moments' own errors, and one rounding of the product.
    spread = np.square(size).mean(0) * np.square(inverse)
    most = np.abs(factor) * (size + size.mean(0)) + np.abs(scale * normal) * spread + np.abs(bias)
    close(np.reshape(y, product.shape), factor * centred + bias, most, 1)

    close(by_bias, gradient.sum(0), np.abs(gradient).sum(0), 0)
    most = (np.abs(gradient) * (size + size.mean(0))).sum(0) * inverse
    close(by_scale, (gradient * normal).sum(0), most * (1 + spread), 0)
    slope = normal * (gradient * normal).mean(0)
    by_product = factor * (gradient - gradient.mean(0) - slope)
    # Before the terms cancel, they are as large as the products of magnitudes.
    terms = np.abs(gradient) + np.abs(gradient).mean(0)
    terms += (size + size.mean(0)) * inverse * np.abs(gradient * normal).mean(0) * (1 + spread)
    terms *= np.abs(factor)
    # The kernel of each convolution, its result, their difference.
    close(by_x.reshape(x.shape), by_product @ kernel.T, terms @ np.abs(kernel).T, 3)
    # Each device rounds its part, and their sum is rounded with each further one.
    of_parts = [
        a.T @ b for a, b in zip(np.split(x, parts), np.split(by_product, parts), strict=True)
    ]
    bound = parts * HALF * np.sum(np.abs(of_parts), 0) + SUM * (np.abs(x).T @ terms)
    assert (np.abs(by_kernel - np.sum(of_parts, 0)) <= bound).all()


@pytest.mark.parametrize(("images", "offset"), [(4, 0.0), (1, 0.5), (8, 30.0)])
def test_product_against_float64(images, offset):
    check(images, offset)


def test_parts_of_devices_make_one_batch(monkeypatch):
    """Each of four devices sums its own part; moments and gradients are those of the batch."""
    found.clear_cache()
    monkeypatch.setattr(sharding, "batch_parts", lambda size: 4)
    monkeypatch.setattr(sharding, "gathered", lambda array: array)
    try:
        check(8, 0.5, parts=4)
    finally:
        found.clear_cache()


def test_a_constant_channel_is_finite():
    """Nothing varies: the result is the bias, and no gradient is infinite."""
    _, kernel, scale, bias, cotangent = case(2, 0.0)
    y, (_, var), gradients = found(
        jnp.ones((2, 5, 3, 6), jnp.bfloat16), kernel, scale, bias, cotangent
    )
    # The variance is the rounding of sums of squares, all but zero.
    assert np.abs(var).max() <= SUM * np.square(np.abs(kernel).sum(0)).max()
    assert all(np.isfinite(each).all() for each in jax.tree.leaves((y, gradients)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pooled_first_is_pooled_afterwards(dtype):
    """Values, statistics and gradients, for scales above, below and equal to zero."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 9, 8, 5)), dtype)
    params = {
        "scale": jnp.asarray([1.5, -0.5, 0.0, -2.0, 1.0]),
        "bias": jnp.asarray(rng.normal(size=5), jnp.float32),
    }
    stats = {"mean": jnp.zeros(5), "var": jnp.ones(5)}
    norm = BatchNorm(dtype=jnp.dtype(dtype))

    def before(module, x):
        signs = module.signs(5)
        return module.of_pooled(x * signs.astype(x.dtype), signs)

    def afterwards(module, x):
        return max_pool(module(x, False))

    def run(method):
        def loss(params, x):
            variables = {"params": params, "batch_stats": stats}
            out, updated = norm.apply(variables, x, method=method, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(out.astype(jnp.float32))), (out, updated)

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)

    (_, (ours, updated)), (by_params, by_x) = run(before)
    (_, (theirs, expected)), (by_params2, by_x2) = run(afterwards)
    rounding = 1e-6 if dtype == "float32" else HALF
    scale = float(np.abs(theirs.astype(np.float32)).max())
    np.testing.assert_allclose(
        ours.astype(np.float32), theirs.astype(np.float32), rtol=0, atol=rounding * scale
    )
    for ours, theirs in zip(jax.tree.leaves(updated), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    if dtype == "bfloat16":
        return  # roundings make other values of a window equal, so the gradient goes elsewhere
    moving = np.array([0, 1, 3, 4])  # with a scale of zero all values of a window are equal
    for name, ours in by_params.items():
        theirs = by_params2[name]
        np.testing.assert_allclose(ours[moving], theirs[moving], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(by_x[..., moving], by_x2[..., moving], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(by_x[..., 2], 0)
