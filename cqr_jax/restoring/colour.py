"""Pixels to the planes that the network restores, and back: Y, Cb and Cr, or gray.

The paper works on Y. Cb and Cr go through the same network where a file has them, at
the resolution at which a JPEG stored them: there its blocks are 8x8, as those of Y.
`benchmarks.colour` measures what colour gains by it.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from cqr_jax.restoring.pictures import Picture

# ITU-R BT.601 in full range, as JFIF has it.
_RGB_TO_YCC = np.array(
    [
        [0.299, 0.587, 0.114],
        [-0.168735892, -0.331264108, 0.5],
        [0.5, -0.418687589, -0.081312411],
    ]
)
_YCC_TO_RGB = np.linalg.inv(_RGB_TO_YCC)
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
    pixels = picture.pixels.astype(np.float32) / np.iinfo(picture.pixels.dtype).max
    if pixels.shape[-1] == 1:
        return [Plane(pixels[..., 0])]
    rgb, black = pixels[..., :3], pixels[..., 3:]
    ycc = (rgb if black.size == 0 else 1 - rgb) @ _RGB_TO_YCC.T.astype(np.float32)
    sampling = picture.sampling or _UNKNOWN
    chroma = [Plane(ycc[..., i] + 0.5, sampling) for i in (1, 2)]
    return [
        Plane(ycc[..., 0]),
        *chroma,
        *(Plane(black[..., i]) for i in range(black.shape[-1])),
    ]


def with_planes(
    picture: Picture, values: list[np.ndarray], dtype: np.typing.DTypeLike
) -> Picture:
    """The picture with the planes' new values, float32, as pixels of uint8 or uint16.

    The alpha is what it was, scaled where the dtype changes.
    """
    if len(values) == 1:
        pixels = values[0][..., None]
    else:
        ycc = np.stack([values[0], values[1] - 0.5, values[2] - 0.5], axis=-1)
        pixels = ycc @ _YCC_TO_RGB.T.astype(np.float32)
        if len(values) == 4:
            pixels = np.concatenate([1 - pixels, values[3][..., None]], axis=-1)
    return picture._replace(
        pixels=_to_dtype(pixels, dtype),
        alpha=None if picture.alpha is None else _converted(picture.alpha, dtype),
    )


def reduce(plane: Plane) -> np.ndarray:
    """The plane at the resolution of its samples: their means, edges repeated."""
    down, across = plane.sampling
    if plane.sampling == (1, 1):
        return plane.values
    height, width = plane.values.shape
    padding = (0, -height % down), (0, -width % across)
    x = np.pad(plane.values, padding, mode="edge")
    return x.reshape(x.shape[0] // down, down, -1, across).mean((1, 3))


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
