"""Loads the photographs that benchmarks restore."""

import numpy as np

from cqr_jax.data import jpeg
from cqr_jax.data.held_out import held_out_images
from cqr_jax.errors import UserError


def held_out_colour(folder: str, count: int, least: int = 1) -> list[np.ndarray]:
    """Loads photographs of a folder that are held out from colour training.

    Args:
      folder: path of the folder.
      count: number of held-out images to load, in their order; 0 for all. Gray images
        are loaded, but not returned.
      least: number of photographs that the caller needs.

    Returns:
      uint8 RGB, (height, width, 3), of each colour photograph.

    Raises:
      UserError: if there are fewer than `least`, or an image can't be loaded.
    """
    paths = held_out_images(folder)[: count or None]
    loaded = [jpeg.load_named(path, jpeg.load_rgb) for path in paths]
    photographs = [image for image in loaded if image.ndim == 3]
    if len(photographs) < least:
        raise UserError(
            f"{folder}: {len(photographs)} colour photographs are held out, but at "
            f"least {least} are needed; name a folder with more photographs"
        )
    return photographs
