"""Pixels that nobody sees, where alpha is 0: out of the network, and back.

They often are black or white, whatever is beside them. A network sees an edge there
and changes the pixels that are seen.
"""

import numpy as np
from scipy import ndimage

from cqr_jax.restoring.pictures import Picture


def filled(picture: Picture) -> Picture:
    """The picture with each hidden pixel replaced by the nearest one that is seen.

    Without hidden pixels, or where all are hidden, it is the picture as it was.
    """
    if picture.alpha is None:
        return picture
    hidden = picture.alpha == 0
    if not hidden.any() or hidden.all():
        return picture
    rows, columns = ndimage.distance_transform_edt(
        hidden, return_distances=False, return_indices=True
    )
    pixels = picture.pixels.copy()
    pixels[hidden] = picture.pixels[rows[hidden], columns[hidden]]
    return picture._replace(pixels=pixels)


def with_hidden(picture: Picture, original: Picture) -> Picture:
    """A picture that was restored, with the hidden pixels of the original.

    They are scaled where the picture has another dtype, as 255 is 65535.
    """
    if original.alpha is None:
        return picture
    hidden = original.alpha == 0
    if not hidden.any():
        return picture
    dtype = picture.pixels.dtype
    values = original.pixels[hidden]
    if values.dtype != dtype:
        scale = np.iinfo(dtype).max / np.iinfo(values.dtype).max
        values = np.rint(values * scale).astype(dtype)
    pixels = picture.pixels.copy()
    pixels[hidden] = values
    return picture._replace(pixels=pixels)
