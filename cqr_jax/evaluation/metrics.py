"""PSNR, SSIM and PSNR-B as the JPEG artifact removal literature reports them; GMSD.

All take uint8 images of shape (height, width) and compute in float64. They use the
whole image: no border is cropped.
"""

import math

import numpy as np
from scipy import ndimage

from cqr_jax.data.jpeg import BLOCK
from cqr_jax.psnr import PEAK, psnr_of_mse

MIN_SIDE = 11  # shortest side of an image in pixels: the window of SSIM


def to_uint8(image: np.typing.ArrayLike) -> np.ndarray:
    """Scales values in [0, 1] to uint8, with rounding and clipping."""
    return np.clip(np.rint(np.asarray(image, np.float64) * PEAK), 0, PEAK).astype(
        np.uint8
    )


def psnr(reference: np.ndarray, image: np.ndarray) -> float:
    """Computes the peak signal-to-noise ratio in dB; infinite for equal images.

    Raises:
      ValueError: if the shapes differ.
    """
    return psnr_of_mse(_mse(reference, image))


def psnr_b(reference: np.ndarray, image: np.ndarray) -> float:
    """Computes PSNR-B in dB (Yim & Bovik 2011).

    PSNR-B adds the blocking effect factor of `image` to the mean squared error. The
    factor compares squared differences across the boundaries of the 8x8 grid with those
    elsewhere, each averaged over its true count.

    Raises:
      ValueError: if the shapes differ, or if an image whose shorter side is 1
        has blocking.
    """
    return psnr_of_mse(_mse(reference, image) + blocking_effect(image))


def blocking_effect(image: np.ndarray) -> float:
    """Computes the blocking effect factor BEF of `image` (Yim & Bovik 2011).

    Raises:
      ValueError: if an image whose shorter side is 1 has blocking, because BEF is then
        undefined.
    """
    image = image.astype(np.float64)
    sums, counts = np.zeros(2), np.zeros(2)  # elsewhere, at block boundaries
    for axis in (0, 1):
        squares = np.square(np.diff(image, axis=axis))
        at_boundary = np.arange(squares.shape[axis]) % BLOCK == BLOCK - 1
        for boundary in (0, 1):
            chosen = np.compress(at_boundary == boundary, squares, axis=axis)
            sums[boundary] += chosen.sum()
            counts[boundary] += chosen.size
    if not counts.all():  # no boundary, or only boundaries
        return 0.0
    elsewhere, boundary = sums / counts
    if boundary <= elsewhere:
        return 0.0
    if min(image.shape) < 2:
        raise ValueError(f"PSNR-B needs sides of at least 2 pixels, got {image.shape}")
    eta = math.log2(BLOCK) / math.log2(min(image.shape))
    return eta * (boundary - elsewhere)


def ssim(reference: np.ndarray, image: np.ndarray) -> float:
    """Computes single-scale structural similarity (Wang et al. 2004).

    Uses a Gaussian window of 11x11 with sigma 1.5, K1 = 0.01, K2 = 0.03 and population
    covariance. The result is averaged over the region where the window fits.

    Raises:
      ValueError: if shapes differ, or a side is shorter than the window.
    """
    _check_shapes(reference, image)
    if min(image.shape) < MIN_SIDE:
        raise ValueError(
            f"SSIM needs sides of at least {MIN_SIDE} pixels, got {image.shape}"
        )
    radius = MIN_SIDE // 2
    offsets = np.arange(-radius, radius + 1)
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window /= window.sum()

    def local_mean(values: np.ndarray) -> np.ndarray:
        rows = ndimage.correlate1d(values, window, axis=0)[radius:-radius]
        return ndimage.correlate1d(rows, window, axis=1)[:, radius:-radius]

    x, y = reference.astype(np.float64), image.astype(np.float64)
    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x = local_mean(x * x) - mean_x**2
    var_y = local_mean(y * y) - mean_y**2
    cov = local_mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    numerator = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    denominator = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return float(np.mean(numerator / denominator))


def gmsd(reference: np.ndarray, image: np.ndarray) -> float:
    """Computes the gradient magnitude similarity deviation, GMSD (Xue et al. 2014).

    GMSD is a perceptual metric that no network here was trained on. It is lower for
    better images, and 0 for equal ones. Images are averaged over 2x2 pixels and
    downsampled by 2. Gradients are Prewitt's, with zeros beyond the border. The
    similarity has the authors' constant of 170. The result is its sample standard
    deviation.

    Raises:
      ValueError: if shapes differ, or a side is shorter than 3 pixels.
    """
    _check_shapes(reference, image)
    if min(image.shape) < 3:
        raise ValueError(f"GMSD needs sides of at least 3 pixels, got {image.shape}")

    def gradient(y: np.ndarray) -> np.ndarray:
        # Average each pixel with those after it, as MATLAB's conv2 centres the window.
        y = ndimage.correlate(
            y.astype(np.float64), np.full((2, 2), 0.25), mode="constant", origin=-1
        )[::2, ::2]
        vertical, horizontal = (
            ndimage.prewitt(y, axis, mode="constant") / 3 for axis in (0, 1)
        )
        return np.hypot(vertical, horizontal)

    x, y = gradient(reference), gradient(image)
    similarity = (2 * x * y + 170) / (x * x + y * y + 170)
    return float(np.std(similarity, ddof=1))


# Metrics of (reference, image): those of the literature, then a perceptual one.
METRICS = {"psnr": psnr, "ssim": ssim, "psnr_b": psnr_b, "gmsd": gmsd}


def _mse(reference: np.ndarray, image: np.ndarray) -> float:
    _check_shapes(reference, image)
    return float(np.mean(np.square(reference.astype(np.float64) - image)))


def _check_shapes(reference: np.ndarray, image: np.ndarray) -> None:
    if reference.ndim != 2 or reference.shape != image.shape:
        raise ValueError(
            f"need two (height, width) images, got {reference.shape} and {image.shape}"
        )
    if reference.dtype != np.uint8 or image.dtype != np.uint8:
        raise ValueError(f"need uint8, got {reference.dtype} and {image.dtype}")
