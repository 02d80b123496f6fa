"""Finds the compression of pictures that were JPEGs, such as PNGs made from them.

The DCT coefficients of a decoded JPEG are near multiples of its quantisation steps.
Compressing it again with the same tables on the same grid therefore changes it much
less than compressing it with slightly finer tables.
"""

import numpy as np

from cqr_jax.data import degradations, jpeg
from cqr_jax.data.compression import SUBSAMPLINGS, Compression, libjpeg
from cqr_jax.data.jpeg import BLOCK
from cqr_jax.data.ycbcr import FROM_RGB
from cqr_jax.restoring.picture import Picture

_SIDE = 256  # of the central square that is compressed, in pixels
_LEAST = 64  # shortest side of a picture, in pixels
_HIGHEST = 92  # quality factor; with finer tables, rounding to 8 bits hides the steps
# A quality factor is found if its error is below this share of the median error of the
# quality factors from 2 to 9 above it. In photographs that were no JPEGs, the share is
# above 1.
_SHARE = 0.5
_NOISE = 0.05  # mean squared error, of 255, that can be due to rounding alone


def find(picture: Picture) -> Compression | None:
    """Finds the compression of a picture from its pixels.

    Args:
      picture: a picture without tables. Its 8x8 grid must begin at its corner.

    Returns:
      The compression of libjpeg at the quality factor and the chroma sampling with
      which the picture was compressed. None if it was no JPEG, if its grid begins
      elsewhere, if its quality factor was above 92, or if its middle is too small or
      too flat.
    """
    pixels = _middle(picture)
    if min(pixels.shape[:2]) < _LEAST:
        return None
    gray = (pixels == pixels[..., :1]).all()
    y = pixels[..., 0] if gray else np.rint(pixels @ FROM_RGB[0]).astype(np.uint8)
    quality = _quality(y)
    if quality is None:
        return None
    if gray:
        return libjpeg(quality, gray=True)
    candidates = [libjpeg(quality, sampling) for sampling in SUBSAMPLINGS.values()]
    return min(
        candidates, key=lambda x: _error(degradations.compress(pixels, x), pixels)
    )


def _quality(y: np.ndarray) -> int | None:
    """Finds the quality factor of uint8 luma, or None."""
    errors = np.array(
        [_variance(jpeg.compress(y, quality), y) for quality in range(1, 101)]
    )
    finer = [np.median(errors[i + 2 : i + 10]) for i in range(_HIGHEST)]
    shares = np.full(_HIGHEST, np.inf)
    np.divide(errors[:_HIGHEST], finer, shares, where=np.greater(finer, _NOISE))
    if shares.min() > _SHARE:
        return None
    # Multiples of coarse steps can be multiples of finer steps too.
    first = int(np.argmax(shares <= min(_SHARE, max(2 * shares.min(), 0.1))))
    # The tables of neighbouring quality factors are similar.
    return 1 + first + int(np.argmin(errors[first : first + 2]))


def _middle(picture: Picture) -> np.ndarray:
    """Returns the central square as uint8 gray or RGB, cut to whole blocks.

    It begins where blocks of subsampled chroma begin.
    """
    slices = []
    for n in picture.pixels.shape[:2]:
        start = max(0, (n - _SIDE) // 2 // degradations.MCU * degradations.MCU)
        slices.append(slice(start, start + min(_SIDE, n // BLOCK * BLOCK)))
    pixels = picture.pixels[tuple(slices)]
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    return 255 - pixels[..., :3] if pixels.shape[-1] == 4 else pixels  # CMYK


def _variance(image: np.ndarray, reference: np.ndarray) -> float:
    """Returns the mean variance of the difference within a block.

    The mean of a block is left out. Its rounding error says nothing in a flat picture.
    """
    change = image.astype(np.float32) - reference
    height, width = change.shape
    blocks = change.reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    return float(np.mean(blocks.var((1, 3))))


def _error(image: np.ndarray, reference: np.ndarray) -> float:
    return float(np.mean(np.square(image.astype(np.float32) - reference)))
