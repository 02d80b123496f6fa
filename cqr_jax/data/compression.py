"""Quantisation tables of JPEGs, and the features of them that networks take.

This module imports neither TensorFlow nor JAX, so that the checks of configs and
restoring with OpenVINO import it quickly.
"""

import functools
from typing import NamedTuple

import numpy as np

# Name of a chroma sampling -> pixels per sample, vertically and horizontally.
SUBSAMPLINGS = {"4:2:0": (2, 2), "4:2:2": (1, 2), "4:4:4": (1, 1)}
SUBSAMPLING_NAMES = {sampling: name for name, sampling in SUBSAMPLINGS.items()}

# Tables at QF 50, in row-major order (ITU-T T.81, tables K.1 and K.2).
_LUMA = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99),
    *(24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99),
    *[99] * 32,
)

# The steps of a table are averaged over four bands of frequencies (u, v), in which
# u + v is 0, 1 to 2, 3 to 5, and 6 to 14.
_FREQUENCY = np.add.outer(np.arange(8), np.arange(8)).ravel()
_BANDS = tuple(
    np.isin(_FREQUENCY, np.arange(first, last + 1))
    for first, last in ((0, 0), (1, 2), (3, 5), (6, 14))
)

# How a network takes the compression; see `models.deblocker`.
CONDITIONINGS = ("none", "planes", "modulation")

FEATURES = 3 + 2 * len(_BANDS)  # length of the array that `features` returns


class Compression(NamedTuple):
    """Compression settings of a JPEG.

    Attributes:
      luma: quantisation table of Y, 64 numbers of at least 1, in row-major order.
      chroma: quantisation table of Cb and Cr; None for a gray JPEG.
      sampling: number of pixels per chroma sample, vertically and horizontally.
    """

    luma: tuple[int, ...]
    chroma: tuple[int, ...] | None = None
    sampling: tuple[int, int] = (1, 1)


def libjpeg(
    quality: int, sampling: tuple[int, int] = (2, 2), gray: bool = False
) -> Compression:
    """Returns the compression settings of libjpeg at a quality factor.

    Args:
      quality: the quality factor (QF), 1 to 100.
      sampling: chroma sampling, as in `Compression`; 4:2:0 is (2, 2).
      gray: whether the JPEG is gray. A gray JPEG has one table.
    """
    luma, chroma = (
        tuple(_scaled(table, quality).tolist()) for table in (_LUMA, _CHROMA)
    )
    return Compression(luma) if gray else Compression(luma, chroma, sampling)


def luma_table(quality: int) -> np.ndarray:
    """Returns libjpeg's (64,) quantisation table of Y at a quality of 1 to 100."""
    return _scaled(_LUMA, quality)


def _scaled(table: tuple[int, ...], quality: int) -> np.ndarray:
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((np.array(table) * scale + 50) // 100, 1, 255)


def nearest_quality(table: tuple[int, ...]) -> tuple[int, bool]:
    """Finds the quality factor of libjpeg with the nearest luma table.

    The distance is the mean absolute logarithm of the ratios of the steps.

    Args:
      table: 64 quantisation steps of Y, in row-major order.

    Returns:
      The quality factor, 1 to 100, and whether the table equals libjpeg's.
    """
    distances = np.abs(np.log(np.asarray(table)) - _log_luma_tables()).mean(1)
    best = int(np.argmin(distances))
    return best + 1, bool(distances[best] == 0)


@functools.cache
def _log_luma_tables() -> np.ndarray:
    """Returns the logarithms of libjpeg's luma tables at QF 1 to 100, (100, 64)."""
    return np.log([luma_table(quality) for quality in range(1, 101)])


def features(compression: Compression | None) -> np.ndarray:
    """Returns the features of a compression that a conditioned network takes.

    Args:
      compression: the compression, or None if it is unknown.

    Returns:
      float32, (`FEATURES`,). All features are zero if the compression is unknown.
      Otherwise the first is 1. The next two are log2 of the chroma sampling, the
      smaller number first. Networks are trained on 4:4:4, 4:2:2 and 4:2:0 alone, so
      4:4:0 and 4:1:1 become 4:2:2. The others are log2(mean quantisation step) / 8 in
      each band of frequencies, first of Y and then of chroma (0 for a gray JPEG).
    """
    if compression is None:
        return np.zeros(FEATURES, np.float32)
    steps = [
        np.log2(np.asarray(table)[band].mean()) / 8 if table else 0.0
        for table in (compression.luma, compression.chroma)
        for band in _BANDS
    ]
    sampling = np.log2(np.minimum(sorted(compression.sampling), 2))
    return np.array([1.0, *sampling, *steps], np.float32)
