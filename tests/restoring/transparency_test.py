"""Tests that hidden pixels are unchanged and do not affect visible ones."""

import numpy as np
import pytest
from PIL import Image

from cqr_jax.data.compression import libjpeg
from cqr_jax.data.degradations import encode
from cqr_jax.restoring import pictures, restorer, transparency
from cqr_jax.restoring.picture import Picture

RNG = np.random.default_rng(0)


def test_hidden_pixels_take_the_nearest_visible_value():
    pixels = np.array([[[1], [2], [3], [4], [5]]], np.uint8)
    alpha = np.array([[9, 0, 0, 0, 1]], np.uint8)
    found = transparency.filled(Picture(pixels, alpha))
    assert found.pixels[0, :, 0].tolist()[:2] == [1, 1]
    assert found.pixels[0, :, 0].tolist()[3:] == [5, 5]
    assert found.pixels[0, 2, 0] in (1, 5)  # both are equally near
    np.testing.assert_array_equal(found.alpha, alpha)
    assert pixels[0, 1, 0] == 2  # the input is unchanged


@pytest.mark.parametrize("alpha", [None, 0, 1, 255])
def test_pictures_without_hidden_or_visible_pixels_are_unchanged(alpha):
    pixels = RNG.integers(0, 256, (7, 5, 3), np.uint8)
    plane = None if alpha is None else np.full((7, 5), alpha, np.uint8)
    picture = Picture(pixels, plane)
    assert transparency.filled(picture) is picture


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_hidden_pixels_get_their_original_values(dtype):
    pixels = RNG.integers(0, 256, (7, 5, 3), np.uint8)
    alpha = RNG.integers(0, 2, (7, 5), np.uint8)
    scale = 257 if dtype == np.uint16 else 1
    other = Picture(np.full((7, 5, 3), 99, dtype), alpha.astype(dtype) * scale)
    found = transparency.with_hidden(other, Picture(pixels, alpha)).pixels
    np.testing.assert_array_equal(
        found[alpha == 0], pixels[alpha == 0].astype(int) * scale
    )
    assert (found[alpha > 0] == 99).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("hidden", [0, 255])
def test_hidden_pixels_do_not_worsen_visible_ones_at_the_edge(channels, hidden):
    """Uses the shipped weights."""
    coarse = RNG.integers(60, 200, (12, 14, 3), np.uint8)
    whole = Image.fromarray(coarse).resize((112, 96), Image.Resampling.BICUBIC)
    clean = np.asarray(whole if channels == 3 else whole.convert("L"))
    clean = clean.reshape(96, 112, channels)
    rows, columns = np.indices((96, 112))
    alpha = np.where(np.hypot(rows - 48, columns - 56) < 35, 255, 0).astype(np.uint8)
    near = (np.hypot(rows - 48, columns - 56) > 30) & (alpha > 0)
    opaque = _compressed(clean)
    pixels = np.where(alpha[..., None] > 0, opaque, np.uint8(hidden))
    run = restorer.load()
    (found,) = restorer.restore_pictures(run, [Picture(pixels, alpha)])
    (unfilled,) = restorer.restore_pictures(run, [Picture(pixels)])

    def error(x):
        return float(np.mean((x[near].astype(float) - clean[near]) ** 2))

    assert error(found.pixels) < error(pixels)
    assert error(found.pixels) < error(unfilled.pixels)
    np.testing.assert_array_equal(found.pixels[alpha == 0], pixels[alpha == 0])
    np.testing.assert_array_equal(found.alpha, alpha)


def _compressed(pixels):
    gray = pixels.shape[-1] == 1
    return pictures.decode(encode(pixels, libjpeg(10, gray=gray))).pixels


@pytest.mark.parametrize("name", ["png", "webp", "tiff"])
def test_files_keep_hidden_pixels(name):
    pixels = RNG.integers(0, 256, (20, 30, 3), np.uint8)
    alpha = RNG.integers(0, 2, (20, 30), np.uint8) * np.uint8(200)
    found = pictures.decode(pictures.encode(Picture(pixels, alpha), name))
    np.testing.assert_array_equal(found.pixels, pixels)
    np.testing.assert_array_equal(found.alpha, alpha)
