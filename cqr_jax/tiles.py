"""Images of any size through a network, in overlapping tiles of one size.

What a tile costs in time and memory does not depend on the image, and a network is
compiled once.
"""

import itertools
from collections.abc import Callable

import numpy as np

from cqr_jax.data.jpeg import BLOCK

SIDE = 192
OVERLAP = 24


def restore(
    run: Callable[[np.ndarray], np.ndarray],
    y: np.ndarray,
    side: int = SIDE,
    overlap: int = OVERLAP,
    batch: int = 1,
) -> np.ndarray:
    """Restores an image tile by tile.

    Each tile hands over its middle; the borders, where it sees less of the image than
    the whole network would, are dropped but for those of the image itself.

    Args:
      run: restores (batch, side, side, 1), uint8.
      y: uint8, (height, width).
      side: of a tile in pixels, a multiple of 8.
      overlap: pixels dropped at each border of a tile, a multiple of 8, less than half
        of the side.
      batch: tiles at a time.

    Returns:
      uint8, (height, width).

    Raises:
      ValueError: side or overlap is not as above.
    """
    if side % BLOCK or overlap % BLOCK or not 0 <= 2 * overlap < side:
        raise ValueError(
            f"side={side} and overlap={overlap}: must be multiples of {BLOCK}, overlap "
            "less than half of side"
        )
    height, width = y.shape
    padding = [(0, max(side - length, -length % BLOCK)) for length in y.shape]
    image = np.pad(y, padding, mode="edge")
    restored = np.empty_like(image)
    rows, columns = (_places(length, side, overlap) for length in image.shape)
    places = list(itertools.product(rows, columns))
    tiles = np.zeros((batch, side, side, 1), np.uint8)
    for first in range(0, len(places), batch):
        group = places[first : first + batch]
        for i, ((top, _, _), (left, _, _)) in enumerate(group):
            tiles[i, ..., 0] = image[top : top + side, left : left + side]
        done = run(tiles)
        for i, ((top, y0, y1), (left, x0, x1)) in enumerate(group):
            part = done[i, y0 - top : y1 - top, x0 - left : x1 - left, 0]
            restored[y0:y1, x0:x1] = part
    return restored[:height, :width]


def _places(length: int, side: int, overlap: int) -> list[tuple[int, int, int]]:
    """Along one axis, each tile's start, and start and end of what it hands over."""
    last = length - side
    starts = [*range(0, last, side - 2 * overlap), last]
    ends = [start + side - overlap for start in starts[:-1]] + [length]
    return list(zip(starts, [0, *ends[:-1]], ends, strict=True))
