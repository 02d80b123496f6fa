"""Metrics against scikit-image, against hand-computed values, and at the edges."""

import math

import numpy as np
import pytest
from skimage import metrics as oracle

from cqr_jax import metrics
from cqr_jax.data import jpeg


def _pairs():
    rng = np.random.default_rng(0)
    for shape in ((11, 11), (16, 24), (37, 50), (64, 64)):
        reference = rng.integers(0, 256, shape, dtype=np.uint8)
        noise = rng.integers(-20, 21, shape)
        yield reference, np.clip(reference + noise, 0, 255).astype(np.uint8)
        flat = np.full(shape, 128, np.uint8)
        yield flat, np.clip(flat + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("reference", "image"), list(_pairs()))
def test_psnr_and_ssim_equal_scikit_image(reference, image):
    expected = oracle.peak_signal_noise_ratio(reference, image)
    assert metrics.psnr(reference, image) == pytest.approx(expected, abs=1e-10)
    expected = oracle.structural_similarity(
        reference,
        image,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
    )
    assert metrics.ssim(reference, image) == pytest.approx(expected, abs=1e-10)


def test_identical_images(image):
    assert metrics.psnr(image, image) == math.inf
    assert metrics.ssim(image, image) == pytest.approx(1, abs=1e-12)


def test_blocking_effect_by_hand():
    # Two flat blocks of 8x8, 10 apart: at the one boundary every squared difference
    # is 100, elsewhere 0; eta = log2 8 / log2 8 = 1.
    image = np.repeat(np.array([100, 110], np.uint8), 8)[None].repeat(8, axis=0)
    assert metrics.blocking_effect(image) == pytest.approx(100)
    # 16x16: eta = 3 / 4; vertical differences are 0, so half the boundary's are.
    image = image.repeat(2, axis=0)
    assert metrics.blocking_effect(image) == pytest.approx(0.75 * 50)
    reference = np.full_like(image, 105)
    expected = 10 * math.log10(255**2 / (25 + 37.5))
    assert metrics.psnr_b(reference, image) == pytest.approx(expected)


def test_blocking_effect_is_zero_without_blocks():
    rng = np.random.default_rng(1)
    ramp = np.arange(32, dtype=np.uint8)[None].repeat(32, axis=0)
    assert metrics.blocking_effect(ramp) == 0
    assert metrics.blocking_effect(rng.integers(0, 9, (5, 7), dtype=np.uint8)) == 0


def test_blocking_effect_by_loops():
    image = np.random.default_rng(2).integers(0, 256, (21, 26), dtype=np.uint8)
    image[:, 8:16] //= 2
    at, off = [], []
    for y in range(21):
        for x in range(26):
            value = int(image[y, x])
            if x + 1 < 26:
                square = (value - int(image[y, x + 1])) ** 2
                (at if (x + 1) % 8 == 0 else off).append(square)
            if y + 1 < 21:
                square = (value - int(image[y + 1, x])) ** 2
                (at if (y + 1) % 8 == 0 else off).append(square)
    difference = np.mean(at) - np.mean(off)
    expected = max(0, math.log2(8) / math.log2(21) * difference)
    assert metrics.blocking_effect(image) == pytest.approx(expected)


def test_psnr_b_punishes_blocks(image):
    compressed = jpeg.compress(image, 10)
    assert metrics.psnr_b(image, compressed) < metrics.psnr(image, compressed) - 1


def test_bad_input_is_refused(image):
    with pytest.raises(ValueError, match="height, width"):
        metrics.psnr(image, image[:-1])
    with pytest.raises(ValueError, match="uint8"):
        metrics.ssim(image, image.astype(np.float32))
    with pytest.raises(ValueError, match="11 pixels"):
        metrics.ssim(image[:10], image[:10])


def test_to_uint8_rounds_and_clips():
    values = np.array([-0.1, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 2.0])
    np.testing.assert_array_equal(metrics.to_uint8(values), [0, 0, 0, 1, 255, 255])
