"""Converts pixels to the planes that the network restores, and back.

The planes are Y, Cb and Cr, or gray. A network with one channel restores Cb and Cr at
the resolution at which a JPEG stores them, because their blocks have 8x8 samples there,
like those of Y. This also takes less time than restoring enlarged chroma.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from cqr_jax.data.ycbcr import FROM_RGB, TO_RGB, ZERO
from cqr_jax.restoring.picture import Picture

_DEFAULT_SAMPLING = (2, 2)  # the most common one (4:2:0), for files that are no JPEG


class Plane(NamedTuple):
    """One plane of a picture.

    Attributes:
      values: float32 in [0, 1], (height, width).
      sampling: pixels per sample of a JPEG, vertically and horizontally.
    """

    values: np.ndarray
    sampling: tuple[int, int] = (1, 1)


def samples(picture: Picture) -> np.ndarray:
    """Returns float32 samples in [0, 1], (height, width, channels).

    The channels are gray; Y, Cb and Cr of RGB; or Y, Cb and Cr of inverted CMY, and K.
    """
    channels = picture.pixels.shape[-1]
    found = np.empty(picture.pixels.shape, np.float32)
    for rows in _bands(len(found)):
        x = picture.pixels[rows].astype(np.float32)
        x /= np.iinfo(picture.pixels.dtype).max
        if channels == 4:
            x[..., :3] = 1 - x[..., :3]
        if channels > 1:
            x[..., :3] = x[..., :3] @ FROM_RGB.T.astype(np.float32) + ZERO
        found[rows] = x
    return found


def chroma_sampling(picture: Picture) -> tuple[int, int]:
    """Returns the chroma sampling of a picture's JPEG; 4:2:0 if it is unknown."""
    known = picture.compression
    return known.sampling if known and known.chroma else _DEFAULT_SAMPLING


def planes(picture: Picture, values: np.ndarray | None = None) -> list[Plane]:
    """Returns the planes of a picture, as views of its samples.

    Args:
      picture: the picture.
      values: `samples` of the picture, if they are there already.
    """
    if values is None:
        values = samples(picture)
    chroma = chroma_sampling(picture)
    sampling = [(1, 1), chroma, chroma, (1, 1)]
    parts = np.moveaxis(values, -1, 0)
    return [Plane(*x) for x in zip(parts, sampling, strict=False)]


def with_planes(
    picture: Picture, values: list[np.ndarray], dtype: np.typing.DTypeLike
) -> Picture:
    """Returns the picture with new planes.

    Args:
      picture: the original picture.
      values: float32 in [0, 1], (height, width) each, in the order of `samples`. Values
        outside of the range are clipped.
      dtype: uint8 or uint16. Alpha is scaled if its dtype differs.
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
    """Yields slices of rows, which limit the memory of intermediate results."""
    return (slice(top, top + 256) for top in range(0, height, 256))


def reduce(plane: Plane) -> np.ndarray:
    """Returns the mean of the pixels of each sample; the plane is edge-padded."""
    down, across = plane.sampling
    if plane.sampling == (1, 1):
        return plane.values
    height, width = plane.values.shape
    padding = (0, -height % down), (0, -width % across)
    x = np.pad(plane.values, padding, mode="edge")
    return x.reshape(x.shape[0] // down, down, -1, across).mean((1, 3))


def without_colour(values: np.ndarray) -> np.ndarray:
    """Adds neutral Cb and Cr to Y: (height, width) becomes (height, width, 3)."""
    image = np.empty((*values.shape, 3), np.float32)
    image[..., 0] = values
    image[..., 1:] = ZERO[1]
    return image


def change(plane: Plane, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Returns the plane's values with the network's change of its samples.

    The mean of the change is subtracted, so that the mean colour of a picture is kept.
    Networks shift it by up to 0.8 of 255, and not towards that of the original.

    Args:
      plane: the input plane.
      before: the samples of the input plane, from `reduce`.
      after: the restored samples. The array is overwritten to save memory.
    """
    after -= before
    after -= after.mean(dtype=np.float64)
    return add(plane, after)


def add(plane: Plane, change: np.ndarray) -> np.ndarray:
    """Adds a change of the samples, interpolated bilinearly, to the plane's values."""
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
    """Converts alpha between uint8 and uint16; 255 corresponds to 65535."""
    if alpha.dtype == dtype:
        return alpha
    return _to_dtype(alpha.astype(np.float32) / np.iinfo(alpha.dtype).max, dtype)
