"""Metrics against scikit-image and against values computed by hand; edge cases."""

import math
import statistics

import numpy as np
import pytest
from skimage import metrics as oracle

from cqr_jax.data import jpeg
from cqr_jax.evaluation import metrics


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


def test_psnr_of_identical_images_is_infinite_and_ssim_is_1(image):
    assert metrics.psnr(image, image) == math.inf
    assert metrics.ssim(image, image) == pytest.approx(1, abs=1e-12)


def test_blocking_effect_equals_values_computed_by_hand():
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


def test_psnr_b_is_below_psnr_for_blocky_images(image):
    compressed = jpeg.compress(image, 10)
    assert metrics.psnr_b(image, compressed) < metrics.psnr(image, compressed) - 1


def test_wrong_shapes_and_dtypes_are_rejected(image):
    with pytest.raises(ValueError, match="height, width"):
        metrics.psnr(image, image[:-1])
    with pytest.raises(ValueError, match="uint8"):
        metrics.ssim(image, image.astype(np.float32))
    with pytest.raises(ValueError, match="11 pixels"):
        metrics.ssim(image[:10], image[:10])
    with pytest.raises(ValueError, match="3 pixels"):
        metrics.gmsd(image[:2], image[:2])


def test_to_uint8_rounds_and_clips():
    values = np.array([-0.1, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 2.0])
    np.testing.assert_array_equal(metrics.to_uint8(values), [0, 0, 0, 1, 255, 255])


def _blocking_effect_by_loops(image):
    """Computes the factor of Yim and Bovik over each pair of pixels."""
    height, width = image.shape
    at, off = [], []
    for y in range(height):
        for x in range(width):
            for dy, dx, position in ((0, 1, x + 1), (1, 0, y + 1)):
                if y + dy < height and x + dx < width:
                    square = (int(image[y, x]) - int(image[y + dy, x + dx])) ** 2
                    (at if position % 8 == 0 else off).append(square)
    if not at or not off:
        return 0
    difference = sum(at) / len(at) - sum(off) / len(off)
    return max(0, math.log(8) / math.log(min(height, width)) * difference)


def _gmsd_by_loops(reference, image):
    """Computes GMSD as Xue et al. define it, over each pixel."""

    def at(y, i, j):
        inside = 0 <= i < len(y) and 0 <= j < len(y[0])
        return float(y[i][j]) if inside else 0.0

    def magnitudes(y):
        height, width = y.shape
        halved = [
            [
                sum(at(y, i + a, j + b) for a in (0, 1) for b in (0, 1)) / 4
                for j in range(0, width, 2)
            ]
            for i in range(0, height, 2)
        ]
        found = []
        for i in range(len(halved)):
            for j in range(len(halved[0])):
                across = [
                    at(halved, i + k, j + 1) - at(halved, i + k, j - 1)
                    for k in (-1, 0, 1)
                ]
                down = [
                    at(halved, i + 1, j + k) - at(halved, i - 1, j + k)
                    for k in (-1, 0, 1)
                ]
                found.append(math.hypot(sum(across) / 3, sum(down) / 3))
        return found

    similarities = [
        (2 * a * b + 170) / (a * a + b * b + 170)
        for a, b in zip(magnitudes(reference), magnitudes(image), strict=True)
    ]
    return statistics.stdev(similarities)


@pytest.mark.parametrize(("reference", "image"), list(_pairs()))
def test_gmsd_equals_the_definition_in_loops(reference, image):
    expected = _gmsd_by_loops(reference, image)
    assert metrics.gmsd(reference, image) == pytest.approx(expected)


def test_gmsd_is_lower_for_better_images(image):
    assert metrics.gmsd(image, image) == 0
    found = [metrics.gmsd(image, jpeg.compress(image, q)) for q in (5, 10, 20, 40, 80)]
    assert found == sorted(found, reverse=True)


SHAPES = ((2, 9), (3, 40), (7, 7), (8, 8), (9, 10), (16, 16), (21, 26), (33, 12))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["noise", "constant", "blocks", "identical"])
def test_psnr_b_equals_the_definition_in_loops(shape, kind):
    rng = np.random.default_rng(sum(shape))
    reference = rng.integers(0, 256, shape, dtype=np.uint8)
    blocks = rng.integers(0, 256, (6, 6), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    image = {
        "noise": rng.integers(0, 256, shape, dtype=np.uint8),
        "constant": np.full(shape, 200, np.uint8),
        "blocks": blocks[: shape[0], : shape[1]],
        "identical": reference,
    }[kind]
    effect = _blocking_effect_by_loops(image)
    assert metrics.blocking_effect(image) == pytest.approx(effect)
    pairs = zip(reference.ravel().tolist(), image.ravel().tolist(), strict=True)
    error = sum((a - b) ** 2 for a, b in pairs) / image.size
    expected = (
        10 * math.log10(255**2 / (error + effect)) if error + effect else math.inf
    )
    assert metrics.psnr_b(reference, image) == pytest.approx(expected)
    if kind == "constant":
        assert effect == 0
    if kind == "identical":
        assert metrics.psnr(reference, image) == math.inf


def test_constant_images_equal_scikit_image():
    """Without structure, SSIM is its luminance term."""
    black, white = np.zeros((13, 30), np.uint8), np.full((13, 30), 255, np.uint8)
    assert metrics.psnr(black, white) == 0
    c1 = (0.01 * 255) ** 2
    assert metrics.ssim(black, white) == pytest.approx(c1 / (255**2 + c1))
    assert metrics.ssim(black, black) == 1


def test_blocking_in_an_image_of_one_row_is_rejected():
    row = np.arange(20, dtype=np.uint8)[None]
    assert metrics.blocking_effect(row) == 0
    blocks = np.repeat(np.array([0, 90, 0], np.uint8), 8)[None]
    with pytest.raises(ValueError, match="sides of at least 2"):
        metrics.psnr_b(blocks, blocks)
