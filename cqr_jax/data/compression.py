"""How hard a picture was compressed: quantisation tables, and what networks are told.

Imports neither TensorFlow nor JAX: data preparation runs it in worker processes.
"""

from typing import NamedTuple

import numpy as np

# Tables at QF 50, row by row (ITU-T T.81, tables K.1 and K.2).
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

# A table's steps are averaged over bands of frequencies: those (u, v) with u + v of 0,
# 1 to 2, 3 to 5, and 6 to 14.
_FREQUENCY = np.add.outer(np.arange(8), np.arange(8)).ravel()
_BANDS = tuple(
    np.isin(_FREQUENCY, np.arange(first, last + 1))
    for first, last in ((0, 0), (1, 2), (3, 5), (6, 14))
)

# How a network is told the compression; see `models.deblocker`.
CONDITIONINGS = ("none", "planes", "modulation")

FEATURES = 3 + 2 * len(_BANDS)  # length of what `features` returns


class Compression(NamedTuple):
    """How a JPEG was compressed.

    Attributes:
      luma: quantisation table of Y, 64 numbers of at least 1, row by row.
      chroma: that of Cb and Cr; None in a gray JPEG.
      sampling: pixels, down and across, that one chroma sample stands for.
    """

    luma: tuple[int, ...]
    chroma: tuple[int, ...] | None = None
    sampling: tuple[int, int] = (1, 1)


def libjpeg(
    quality: int, sampling: tuple[int, int] = (2, 2), gray: bool = False
) -> Compression:
    """The compression of libjpeg at a quality factor of 1 to 100.

    Args:
      quality: the quality factor (QF).
      sampling: of chroma, as in `Compression`; 4:2:0 is (2, 2).
      gray: of a gray JPEG, which has one table.
    """
    luma, chroma = (
        tuple(_scaled(table, quality).tolist()) for table in (_LUMA, _CHROMA)
    )
    return Compression(luma) if gray else Compression(luma, chroma, sampling)


def luma_table(quality: int) -> np.ndarray:
    """libjpeg's quantisation table of Y at a quality factor of 1 to 100, (64,)."""
    return _scaled(_LUMA, quality)


def _scaled(table: tuple[int, ...], quality: int) -> np.ndarray:
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((np.array(table) * scale + 50) // 100, 1, 255)


def nearest_quality(table: tuple[int, ...]) -> tuple[int, bool]:
    """The quality factor of libjpeg whose luma table is nearest, in mean ratio.

    Args:
      table: 64 quantisation steps of Y, row by row.

    Returns:
      The quality factor, 1 to 100, and whether the table equals libjpeg's.
    """
    found = np.asarray(table)
    distances = [
        float(np.mean(np.abs(np.log(found / luma_table(quality)))))
        for quality in range(1, 101)
    ]
    best = int(np.argmin(distances))
    return best + 1, distances[best] == 0


def features(compression: Compression | None) -> np.ndarray:
    """What a conditioned network is told of a compression.

    Args:
      compression: None where it is unknown.

    Returns:
      float32, (`FEATURES`,). First 1 where the compression is known, else all zeros.
      Then log2 of the chroma sampling down and across. Then an eighth of log2 of the
      mean quantisation step in each band of frequencies, of Y and of chroma (0 in a
      gray JPEG).
    """
    if compression is None:
        return np.zeros(FEATURES, np.float32)
    steps = [
        np.log2(np.asarray(table)[band].mean()) / 8 if table else 0.0
        for table in (compression.luma, compression.chroma)
        for band in _BANDS
    ]
    return np.array([1.0, *np.log2(compression.sampling), *steps], np.float32)


def transposed(told: np.ndarray) -> np.ndarray:
    """What a network is told of images that are turned by a quarter.

    Args:
      told: (count, `FEATURES`), as `features` makes them.
    """
    order = np.arange(FEATURES)
    order[1:3] = 2, 1  # sampling down and across; bands are symmetric
    return told[:, order]
