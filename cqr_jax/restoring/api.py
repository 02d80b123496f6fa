"""Restores images in memory: `cqr_jax.restore`."""

import contextlib
import operator
import os
from typing import TypeVar

import numpy as np
from PIL import Image

from cqr_jax.restoring import pictures, restorer
from cqr_jax.restoring.picture import Picture

_IN_INFO = ("exif", "icc_profile", "xmp", "dpi")  # metadata, by Pillow's names
_T = TypeVar("_T", np.ndarray, Image.Image)


def restore(
    image: _T,
    *,
    strength: float = 1.0,
    weights: str | os.PathLike | None = None,
    self_ensemble: bool = False,
    quality_factor: int | None = None,
    projection: bool = True,
) -> _T:
    """Removes the artifacts of JPEG compression from a decoded image.

    Args:
      image: gray (height, width) or (height, width, 1), RGB (height, width, 3) or RGBA
        (height, width, 4) array, uint8 or uint16; or a Pillow image, such as
        `Image.open("photo.jpg")`. Of an animation, the current frame is restored.
      strength: share of the change to make, 0 (none) to 1.
      weights: path of a deblocker's weights; None for those in the package.
      self_ensemble: whether to average over flips and rotations. This is slightly
        better and eight times as slow.
      quality_factor: quality factor to give to the network, 1 to 100. Lower values
        remove more. If None, the network takes the quantisation tables of a JPEG opened
        by Pillow; for other images, it is found from the pixels where possible.
      projection: whether to keep the result within the quantisation intervals that a
        JPEG file stores. This needs a Pillow image that is not loaded yet, as
        `Image.open` returns it, and no `quality_factor`.

    Returns:
      The restored image, with the same type, size and dtype. Its alpha is unchanged. A
      Pillow image becomes one of mode L, LA, RGB, RGBA, CMYK or I;16: one with a
      palette or in YCbCr becomes RGB, for example. Its `info` holds EXIF (with the
      orientation), colour profile, XMP and resolution if that of the input did, except
      for the EXIF of a TIFF.

    Raises:
      TypeError: if `image` is neither an array nor a Pillow image.
      ValueError: if an array has another shape or dtype, if `strength` is outside 0 to
        1, or if `quality_factor` is not a whole number of 1 to 100.
      UserError: if the weights can't be read, or don't take a quality factor.
      ImageError: if a Pillow image is damaged, or has a mode that can't be restored.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength={strength}: must be 0 to 1")
    if quality_factor is not None:
        quality_factor = _whole(quality_factor)
    run = restorer.load(weights, self_ensemble)
    restorer.check_quality_factor(run, quality_factor)
    if isinstance(image, Image.Image):
        projecting = projection and quality_factor is None
        stored = projecting and _is_as_stored(image)
        picture = pictures.from_pillow(image, stored)
    else:
        picture = _picture(image)
    (restored,) = restorer.restore_pictures(
        run,
        [picture],
        strength,
        quality_factor=quality_factor,
        projecting=projection,
    )
    if isinstance(image, Image.Image):
        return _to_pillow(restored)
    return restored.stacked().reshape(image.shape)


def _whole(quality_factor: int) -> int:
    """Returns a quality factor as an int; raises a ValueError for a bad one."""
    with contextlib.suppress(TypeError):  # for a float or a string
        factor = operator.index(quality_factor)
        if 1 <= factor <= 100 and not isinstance(quality_factor, bool):
            return factor
    raise ValueError(
        f"quality_factor={quality_factor!r}: must be a whole number of 1 to 100"
    )


def _is_as_stored(image: Image.Image) -> bool:
    """Returns whether an opened JPEG is the first picture of its file, in full size.

    An MPO file holds several pictures.
    """
    return not pictures.is_reduced(image) and image.tell() == 0


def _to_pillow(picture: Picture) -> Image.Image:
    """Converts a picture to a Pillow image, with its metadata in `info`."""
    image = pictures.to_pillow(picture)
    kept = {name: getattr(picture.metadata, name) for name in _IN_INFO}
    image.info.update({name: value for name, value in kept.items() if value})
    return image


def _picture(image: np.ndarray) -> Picture:
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"an image of {type(image)}: must be a NumPy array or a Pillow image"
        )
    shape, dtype = image.shape, image.dtype
    if image.ndim == 2:
        image = image[..., None]
    good = image.ndim == 3 and image.shape[-1] in (1, 3, 4) and image.size
    if not good or dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"an image of shape {shape} and dtype {dtype}: must be (height, width) or "
            "(height, width, 1, 3 or 4), uint8 or uint16"
        )
    alpha = image[..., 3] if image.shape[-1] == 4 else None
    return Picture(image[..., :3], alpha)
