"""Replaces hidden pixels, whose alpha is 0, while a picture is restored.

Hidden pixels are often black or white. The network would see an edge between them and
visible pixels, and change the visible ones.
"""

import numpy as np

from cqr_jax.restoring.picture import Picture


def filled(picture: Picture) -> Picture:
    """Replaces each hidden pixel by the nearest visible one.

    A picture without hidden pixels, or with hidden pixels only, is returned unchanged.
    """
    if picture.alpha is None:
        return picture
    hidden = picture.alpha == 0
    if not hidden.any() or hidden.all():
        return picture
    from scipy import ndimage  # here, because few pictures need it and it takes long

    rows, columns = ndimage.distance_transform_edt(
        hidden, return_distances=False, return_indices=True
    )
    pixels = picture.pixels.copy()
    pixels[hidden] = picture.pixels[rows[hidden], columns[hidden]]
    return picture._replace(pixels=pixels)


def with_hidden(picture: Picture, original: Picture) -> Picture:
    """Gives a restored picture the hidden pixels of the original.

    They are scaled if the dtypes differ; 255 corresponds to 65535.
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
