"""Pixels to the planes that the network restores, and back: Y, Cb and Cr, or gray.

The paper works on Y. Cb and Cr go through the same network where a file has them, at
the resolution at which a JPEG stored them: there its blocks are 8x8, as those of Y.
`benchmarks.colour` measures what colour gains by it (`benchmarks/results/colour.md`).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from cqr_jax.data.ycbcr import FROM_RGB, TO_RGB, ZERO
from cqr_jax.restoring.pictures import Picture

_UNKNOWN = (2, 2)  # sampling of chroma, where a file doesn't tell: the most common one


class Plane(NamedTuple):
    """What goes through the network as one image.

    Attributes:
      values: float32 in [0, 1], (height, width).
      sampling: pixels, down and across, that one of a JPEG's samples stands for.
    """

    values: np.ndarray
    sampling: tuple[int, int] = (1, 1)


def planes(picture: Picture) -> list[Plane]:
    """Of gray one, of RGB Y, Cb and Cr, of CMYK those of its inverted CMY, and K."""
    height, width, channels = picture.pixels.shape
    values = [np.empty((height, width), np.float32) for _ in range(channels)]
    for rows in _bands(height):
        x = picture.pixels[rows].astype(np.float32)
        x /= np.iinfo(picture.pixels.dtype).max
        if channels == 4:
            x[..., :3] = 1 - x[..., :3]
        if channels > 1:
            x[..., :3] = x[..., :3] @ FROM_RGB.T.astype(np.float32) + ZERO
        for i, plane in enumerate(values):
            plane[rows] = x[..., i]
    told = picture.compression
    chroma = told.sampling if told and told.chroma else _UNKNOWN
    sampling = [(1, 1), chroma, chroma, (1, 1)]
    return [Plane(*x) for x in zip(values, sampling, strict=False)]


def with_planes(
    picture: Picture, values: list[np.ndarray], dtype: np.typing.DTypeLike
) -> Picture:
    """The picture with the planes' new values, float32, as pixels of uint8 or uint16.

    The alpha is what it was, scaled where the dtype changes.
    """
    pixels = np.empty((*values[0].shape, len(values)), dtype)
    for rows in _bands(len(pixels)):
        x = np.stack([plane[rows] for plane in values], axis=-1)
        if len(values) > 1:
            x[..., :3] = (x[..., :3] - ZERO) @ TO_RGB.T.astype(np.float32)
        if len(values) == 4:
            x[..., :3] = 1 - x[..., :3]
        pixels[rows] = _to_dtype(x, dtype)
    return picture._replace(
        pixels=pixels,
        alpha=None if picture.alpha is None else _converted(picture.alpha, dtype),
    )


def _bands(height: int) -> Iterator[slice]:
    """Rows, some at a time: what is computed between takes the memory of a few."""
    return (slice(top, top + 256) for top in range(0, height, 256))


def reduce(plane: Plane) -> np.ndarray:
    """The plane at the resolution of its samples: their means, edges repeated."""
    down, across = plane.sampling
    if plane.sampling == (1, 1):
        return plane.values
    height, width = plane.values.shape
    padding = (0, -height % down), (0, -width % across)
    x = np.pad(plane.values, padding, mode="edge")
    return x.reshape(x.shape[0] // down, down, -1, across).mean((1, 3))


def without_colour(values: np.ndarray) -> np.ndarray:
    """Y of (height, width) as Y, Cb and Cr: (height, width, 3), float32."""
    image = np.empty((*values.shape, 3), np.float32)
    image[..., 0] = values
    image[..., 1:] = ZERO[1]
    return image


def change(plane: Plane, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The plane's values with what a network changed in its samples.

    The mean of the change is taken off, so that the mean colour of a picture stays what
    it was. (A network moves it by up to 0.8 of 255, and not nearer to the original's
    than the JPEG was.)

    Args:
      plane: as it came in.
      before: its samples, as of `reduce`.
      after: what the network made of them; overwritten, for its memory.
    """
    after -= before
    after -= after.mean(dtype=np.float64)
    return add(plane, after)


def add(plane: Plane, change: np.ndarray) -> np.ndarray:
    """The plane's values with what was added to its samples, interpolated linearly."""
    down, across = plane.sampling
    if plane.sampling != (1, 1):
        height, width = change.shape
        enlarged = Image.fromarray(change).resize(
            (width * across, height * down), Image.Resampling.BILINEAR
        )
        height, width = plane.values.shape
        change = np.asarray(enlarged)[:height, :width]
    return plane.values + change


def _to_dtype(values: np.ndarray, dtype) -> np.ndarray:
    most = np.iinfo(dtype).max
    return np.rint(np.clip(values, 0, 1) * np.float32(most)).astype(dtype)


def _converted(alpha: np.ndarray, dtype) -> np.ndarray:
    """Between 8 and 16 bits; 255 is 65535."""
    if alpha.dtype == dtype:
        return alpha
    return _to_dtype(alpha.astype(np.float32) / np.iinfo(alpha.dtype).max, dtype)
