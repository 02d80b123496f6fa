"""Compares the convolution with its own input gradient to XLA's convolution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cqr_jax.models.convolution import strided_conv


@pytest.mark.parametrize("size", [(8, 6), (7, 10), (9, 5), (2, 3)])
def test_strided_conv_and_its_gradients_equal_xlas(size):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *size, 3), np.float32)
    kernel = rng.standard_normal((4, 4, 3, 5), np.float32)
    weight = rng.standard_normal((2, size[0] // 2, size[1] // 2, 5), np.float32)
    found, expected = (
        functools.partial(
            convolve,
            window_strides=(2, 2),
            padding=((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        for convolve in (strided_conv, jax.lax.conv_general_dilated)
    )
    np.testing.assert_array_equal(found(x, kernel), expected(x, kernel))

    def gradients(convolve):
        return jax.grad(lambda *a: jnp.sum(weight * convolve(*a)), (0, 1))(x, kernel)

    for mine, theirs in zip(gradients(found), gradients(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
