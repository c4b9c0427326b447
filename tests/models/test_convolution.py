"""Every form of convolution and pooling gives the values and gradients of the plain form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export

from fct_jax.models import convolution, pooling


def loop(x, kernel, stride):
    """Convolve one output pixel at a time."""
    size = kernel.shape[0]
    pad = size // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows = range(0, x.shape[1] - size + 1, stride)
    columns = range(0, x.shape[2] - size + 1, stride)
    return np.stack(
        [
            np.stack(
                [
                    np.einsum("nijc,ijco->no", x[:, r : r + size, c : c + size], kernel)
                    for c in columns
                ],
                1,
            )
            for r in rows
        ],
        1,
    )


@functools.partial(jax.jit, static_argnums=3)
def values(x, kernel, cotangent, stride):
    """Return {form: values and gradients} from one program, which compiles faster than many."""
    found = {}
    for form in (convolution.plain, convolution.as_matrix_product, convolution.convolve):
        out, pullback = jax.vjp(lambda x, k, form=form: form(x, k, stride), x, kernel)
        found[form.__name__] = (out, *pullback(cotangent))
    return found


@settings(max_examples=6, deadline=None)
@given(
    size=st.sampled_from([1, 3, 7]),
    stride=st.sampled_from([1, 2]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_forms_agree(size, stride, height, width, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, height, width, 3)).astype(np.float32)
    kernel = rng.normal(size=(size, size, 3, 4)).astype(np.float32)
    expected = loop(x, kernel, stride)
    cotangent = rng.normal(size=expected.shape).astype(np.float32)
    found = values(x, kernel, cotangent, stride)
    assert len(found) == 3
    for out, *gradients in found.values():
        np.testing.assert_allclose(out, expected, atol=1e-4)
        for a, b in zip(gradients, found["plain"][1:], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_choice_by_platform_and_map_size(platform):
    def lowered(function, side):
        x = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
        return export.export(jax.jit(function), platforms=[platform])(x).mlir_module()

    kernel = jnp.ones((3, 3, 3, 4))
    small = lowered(lambda x: convolution.convolve(x, kernel, 1), 7)
    large = lowered(lambda x: convolution.convolve(x, kernel, 1), 16)
    assert ("stablehlo.convolution" in small) == (platform != "cpu")
    assert "stablehlo.convolution" in large
    pool = lowered(pooling.max_pool, 8)
    assert ("reduce_window" in pool) == (platform != "cpu")


@jax.jit
def pooled_and_gradient(x, cotangent):
    out, pullback = jax.vjp(pooling.max_pool, x)
    return out, pullback(cotangent)[0]


@settings(max_examples=6, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 99))
def test_pooling_with_ties(height, width, seed):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 3, (2, height, width, 3)).astype(np.float32)
    theirs = torch.tensor(x.transpose(0, 3, 1, 2).copy(), requires_grad=True)
    pooled = torch.nn.functional.max_pool2d(theirs, 3, 2, 1)
    expected_out = pooled.detach().numpy().transpose(0, 2, 3, 1)
    cotangent = rng.normal(size=expected_out.shape).astype(np.float32)
    pooled.backward(torch.tensor(cotangent.transpose(0, 3, 1, 2).copy()))
    out, gradient = pooled_and_gradient(x, cotangent)
    np.testing.assert_array_equal(out, expected_out)
    expected = theirs.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_pooling_keeps_nan():
    x = np.zeros((1, 8, 8, 1), np.float32)
    x[0, 3, 3] = np.nan
    assert np.isnan(pooling.max_pool(x)).sum() == 4
