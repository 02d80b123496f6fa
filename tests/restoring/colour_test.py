"""Tests of the conversion between pixels and planes."""

import numpy as np
import pytest
from PIL import Image

from cqr_jax.restoring import colour
from cqr_jax.restoring.colour import Plane
from cqr_jax.restoring.picture import Picture

RNG = np.random.default_rng(0)


def test_luma_and_chroma_are_those_of_jpeg():
    rgb = RNG.integers(0, 256, (16, 24, 3), np.uint8)
    expected = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    for i, plane in enumerate(colour.planes(Picture(rgb))):
        np.testing.assert_allclose(255 * plane.values, expected[..., i], atol=1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_unchanged_planes_give_the_same_pixels(dtype, channels):
    most = np.iinfo(dtype).max
    pixels = RNG.integers(0, most + 1, (40, 50, channels), dtype)
    alpha = RNG.integers(0, most + 1, (40, 50), dtype)
    picture = Picture(pixels, alpha)
    values = [plane.values for plane in colour.planes(picture)]
    found = colour.with_planes(picture, values, dtype)
    np.testing.assert_array_equal(found.pixels, pixels)
    np.testing.assert_array_equal(found.alpha, alpha)
    assert len(values) == channels


def test_conversion_from_8_to_16_bits_and_back_is_exact():
    pixels = RNG.integers(0, 256, (4, 5, 3), np.uint8)
    alpha = np.array([[0, 128, 255, 1, 7]] * 4, np.uint8)
    picture = Picture(pixels, alpha)
    values = [plane.values for plane in colour.planes(picture)]
    wide = colour.with_planes(picture, values, np.uint16)
    np.testing.assert_allclose(wide.pixels, pixels.astype(int) * 257, atol=1)
    np.testing.assert_array_equal(wide.alpha, alpha.astype(int) * 257)
    values = [plane.values for plane in colour.planes(wide)]
    back = colour.with_planes(wide, values, np.uint8)
    np.testing.assert_array_equal(back.pixels, pixels)
    np.testing.assert_array_equal(back.alpha, alpha)


def test_reduce_averages_the_pixels_of_each_sample():
    values = np.arange(15, dtype=np.float32).reshape(3, 5)
    found = colour.reduce(Plane(values, (2, 2)))
    np.testing.assert_allclose(found, [[3, 5, 6.5], [10.5, 12.5, 14]])
    np.testing.assert_array_equal(colour.reduce(Plane(values)), values)


def test_add_interpolates_a_change_bilinearly():
    values = RNG.random((16, 16), np.float32)
    change = np.zeros((8, 8), np.float32)
    np.testing.assert_allclose(colour.add(Plane(values, (2, 2)), change), values)
    change[2, 3] = 1
    gained = colour.add(Plane(values, (2, 2)), change) - values
    assert gained.sum() == pytest.approx(4)
    # Bilinear, centred between the four pixels that share the sample.
    np.testing.assert_allclose(gained[4:6, 6:8], 0.5625, atol=1e-6)
    odd = colour.add(Plane(values[:15, :13], (2, 2)), change[:8, :7])
    assert odd.shape == (15, 13)
    np.testing.assert_allclose(odd - values[:15, :13], gained[:15, :13], atol=1e-6)
