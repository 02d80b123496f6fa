"""A decoded image with its metadata."""

from typing import NamedTuple

import numpy as np

from cqr_jax.data.compression import Compression
from cqr_jax.restoring.coefficients import Component
from cqr_jax.restoring.metadata import Metadata


class Picture(NamedTuple):
    """A decoded image.

    Attributes:
      pixels: uint8 or uint16 (full range), (height, width, channels): gray, RGB or CMYK
        (as in Pillow, 0 is no ink). The orientation in the metadata is not applied.
      alpha: alpha channel with the same dtype, (height, width), or None.
      compression: compression of a JPEG, from its tables; None for other files.
      stored: DCT coefficients of a gray or YCbCr JPEG, if requested.
      metadata: metadata to carry over.
      notes: sentences for the user on parts of the file that were dropped or are
        missing.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    compression: Compression | None = None
    stored: tuple[Component, ...] | None = None
    metadata: Metadata = Metadata()
    notes: tuple[str, ...] = ()

    def stacked(self) -> np.ndarray:
        """Returns the pixels, with any alpha as the last channel."""
        if self.alpha is None:
            return self.pixels
        return np.concatenate([self.pixels, self.alpha[..., None]], axis=-1)
